"""The check of a card's metadata that the Hub makes before it takes a README.md."""

import re

import yaml

LICENSES = set(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by
    odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other""".split()
)
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SDKS = {"gradio", "streamlit", "docker", "static"}
BLOCK = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)(?:\r?\n|\A)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def metadata(card: str) -> dict:
    """The mapping between the two lines of dashes, {} where there is none; `yaml.YAMLError` if it is no YAML."""
    block = BLOCK.match(card)
    found = yaml.safe_load(block.group(1)) if block else None
    return found if isinstance(found, dict) else {}


def check(card: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings."""
    block = BLOCK.match(card)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block.group(1))
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["YAML Metadata Error: must be a mapping"], []
    errors = list(_common(data))
    errors += {"model": _model, "dataset": _dataset, "space": _space}[repo_type](data)
    return errors, []


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _common(data: dict):
    licenses = data.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            yield f'"license" must be one of [{", ".join(sorted(LICENSES))}]; got {name!r}'
    if "tags" in data and not _texts(data["tags"]):
        yield '"tags" must be an array of strings'
    if "language" in data and not isinstance(data["language"], str) and not _texts(data["language"]):
        yield '"language" must be a string or an array of strings'


def _model(data: dict):
    for key in ("library_name", "pipeline_tag"):
        if key in data and not isinstance(data[key], str):
            yield f'"{key}" must be a string'
    for key in ("datasets", "metrics", "base_model"):
        if key in data and not isinstance(data[key], str) and not _texts(data[key]):
            yield f'"{key}" must be a string or an array of strings'
    index = data.get("model-index", [])
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index):
        where = f'"model-index[{i}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not model["name"]:
            yield f'{where}.name" is required'
            continue
        if not isinstance(model.get("results"), list):
            yield f'{where}.results" must be an array'
            continue
        for j, result in enumerate(model["results"]):
            yield from _result(result, f"{where}.results[{j}]")


def _result(result, where: str):
    if not isinstance(result, dict):
        yield f'{where}" must be an object'
        return
    for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
        for key in keys:
            value = result.get(part)
            if not isinstance(value, dict) or not isinstance(value.get(key), str) or not value[key]:
                yield f'{where}.{part}.{key}" is required'
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f'{where}.metrics" is required'
        return
    for k, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str):
            yield f'{where}.metrics[{k}].type" is required'
        elif metric.get("value") is None:
            yield f'{where}.metrics[{k}].value" is required'


def _dataset(data: dict):
    for key in ("task_categories", "task_ids", "size_categories"):
        if key in data and not _texts(data[key]):
            yield f'"{key}" must be an array of strings'
    configs = data.get("configs", [])
    if not isinstance(configs, list):
        yield '"configs" must be an array'
        return
    for i, config in enumerate(configs):
        if not isinstance(config, dict) or not isinstance(config.get("config_name"), str):
            yield f'"configs[{i}].config_name" is required'


def _space(data: dict):
    if data.get("sdk") not in SDKS:
        yield f'"sdk" must be one of [{", ".join(sorted(SDKS))}]'
    for key in ("colorFrom", "colorTo"):
        if key in data and data[key] not in COLOURS:
            yield f'"{key}" must be one of [{", ".join(sorted(COLOURS))}]'
    if "pinned" in data and not isinstance(data["pinned"], bool):
        yield '"pinned" must be a boolean'
    if "sdk_version" in data and not isinstance(data["sdk_version"], str):
        yield '"sdk_version" must be a string'
    if len(str(data.get("short_description", ""))) > 60:
        yield '"short_description" length must be less than or equal to 60 characters long'
