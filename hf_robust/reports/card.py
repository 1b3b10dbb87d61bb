"""The model card of a trained classifier, from the results of its runs and from nothing else.

A result is what `results.json` of a run holds. Of it the card reads what `results` says, and `settings` with all its
training arguments, `parameters`, `train_images`, `test_images`, `hardware`, `images_per_second`, `versions` and
`remote_code`, whether the model brings its code. What is None or empty is left out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from statistics import mean, stdev
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_common.plugins import needs_plugins
from hf_common.run_folder import settings_difference
from hf_common.tables import cell, code, escaped

from ..losses import list_losses, parse_loss_spec
from ..losses.papers import loss_bibtex
from ..losses.spec import format_value, link_words
from ..losses.table import SOFTMAX
from ..models import MODELS
from ..noise.bounds import CANNOT_TELL
from ..noise.from_matrix import is_matrix_name
from ..noise.kinds import kind_of
from ..noise.semantic import CONTAMINATED, CONTAMINATED_WORDS
from ..noise.summary import untold_in_words
from .results import RECIPE, last_row

TEMPLATE = "robust_classifier.md.jinja"
# Patterns of all that a model repository may hold: nothing pickled, no folders.
MODEL_FILES = ("README.md", "*.json", "*.safetensors", "*.py", "*.png", "*.txt", "*.model", "*.spm", "*.jinja")
# Name of a figure -> its file.
FIGURES = {"curves": "curves.png", "noise": "noise.png", "losses": "loss_histograms.png"}
# Settings in which runs of one card may differ.
OF_SEED = ("seed", "noise_seed", "data_seed")


def render_card(
    results: Sequence[dict],
    *,
    repo_id: str,
    reproduce: str,
    name: str | None = None,
    task: str | None = "image-classification",
    figures: Mapping[str, str] | None = None,
    baseline: Sequence[dict] = (),
    metadata: Mapping | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown with its YAML.

    Args:
        results: of one run, or of runs that differ in their seeds alone; the model is that of the first.
        repo_id: where the card will lie, `user/name`.
        reproduce: how to train it again, Markdown.
        name: the title. By default the last part of `repo_id`.
        task: of the Hub; the example is for `image-classification` or `text-classification`, without it there is none.
        figures: which of `FIGURES` there are: name -> path from the card on.
        baseline: results of another loss and otherwise the same settings, to compare with.
        metadata: further arguments of `ModelCardData`, which win where they are not None.
        tags: beside the card's own.

    Raises:
        ValueError: there is no result, they differ in more than their seeds, or a plugin that is not imported
            registers their noise.
    """
    first = same_setting(results)
    if baseline:
        same_setting([first, *baseline], but=("loss", "weight_decay"))
    name = name or repo_id.split("/")[-1]
    card = ModelCard.from_template(
        _metadata(results, name, task, tags, metadata or {}),
        template_str=(files("model_cards") / "templates" / TEMPLATE).read_text(encoding="utf-8"),
        repo_id=repo_id,
        name=name,
        task=task,
        code=code,
        escaped=escaped,
        reproduce=reproduce,
        figures=figures or {},
        result=first,
        settings=first["settings"],
        results=results,
        **_model_facts(first),
        **_noise_facts(results),
        **_measured_facts(results, baseline),
        **_loss_facts(first["settings"]["loss"]),
    )
    return f"{card}".rstrip() + "\n"


def _metadata(
    results: Sequence[dict], name: str, task: str | None, tags: Sequence[str], given: Mapping
) -> ModelCardData:
    """The YAML of the card; what is `given` and not None wins."""
    first, settings = results[0], results[0]["settings"]
    noise_tag = [settings["noise"]] if noise_in_words(settings) else []
    own = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["noisy-labels", "robust-loss", "hf_robust", *noise_tag, *tags],
        "datasets": settings["dataset"] if is_hub_id(settings["dataset"]) else None,
        "base_model": settings["model"] if is_hub_id(settings["model"]) else None,
        "metrics": ["accuracy"] if first["accuracy"] else None,
        "model_name": name,
        "eval_results": accuracy_entries(results, task) or None,
    }
    return ModelCardData(**own | {key: value for key, value in given.items() if value is not None})


def _model_facts(first: dict) -> dict:
    settings = first["settings"]
    return {
        "classes": first["label_names"],
        "from_scratch": settings["model"] in MODELS,
        "from_hub": is_hub_id(settings["model"]),
        "remote_code": first.get("remote_code", settings["model"] in MODELS),  # unsaid by results of older versions
        "data_on_hub": is_hub_id(settings["dataset"]),
    }


def _noise_facts(results: Sequence[dict]) -> dict:
    settings = results[0]["settings"]
    noise = settings["noise"]
    by_rule = noise is not None and drawn_by_rule(noise)
    # By the run itself, from its seed: labels of a config of that name were drawn by whoever made the data set.
    drawn = by_rule and noise != settings.get("dataset_config") and "noise_seed" in settings
    if drawn and kind_of(noise) is None and results[0].get("plugins"):
        raise ValueError(f"noise {noise!r:.80} {needs_plugins(results[0]['plugins'])}")
    seeds = {run["settings"].get("noise_seed") for run in results}
    return {
        "noise_text": noise_in_words(settings),
        "by_rule": by_rule,
        "drawn": drawn,
        "noise_drawn_anew": drawn and len(seeds) == len(results) > 1,
        "untold": _untold(results[0]),
    }


def _measured_facts(results: Sequence[dict], baseline: Sequence[dict]) -> dict:
    first = results[0]
    return {
        "last_epoch": last_row(first["history"]).get("epoch"),
        "best_epochs": [f"{run['accuracy']['best_epoch']:g}" for run in results if run["accuracy"]],
        "head": _head(results, baseline),
        "rows": result_rows(results, baseline),
        "test_error": _test_error(first),
        "memorised": [run["memorisation"].get("train_memorised") for run in results],
        "hyper_parameters": hyper_parameters(results),
        "seeds": [run["settings"]["seed"] for run in results],
    }


def _loss_facts(spec: str) -> dict:
    known = {info.name: info for info in list_losses()}
    losses = [(term, known[term.name]) for term in parse_loss_spec(spec)]
    papers = {info.paper: loss_bibtex(info) for _, info in losses}
    rows = [
        {
            "weight": format_value(term.weight),
            "name": term.name,
            "formula": cell(info.formula),
            "params": ", ".join(f"{key}={format_value(value)}" for key, value in term.params.items()),
            "paper": info.paper,
        }
        for term, info in losses
    ]
    link = link_words(term for term, _ in losses)
    return {
        "losses": rows,
        "bibtex": [entry for entry in papers.values() if entry],
        "link": None if link == SOFTMAX else link,
    }


def _told_rate(run: dict) -> float | None:
    """The estimate of a run, where its predictions can tell."""
    return None if _untold(run) else run["noise"].get("estimated_rate")


def _untold(run: dict) -> str | None:
    """Why the predictions of a run can't tell the noise, where they can't."""
    estimate = run["noise"].get("estimate")
    return untold_in_words(estimate) if estimate and estimate["verdict"] == CANNOT_TELL else None


def result_rows(results: Sequence[dict], baseline: Sequence[dict] = ()) -> list[tuple[str, list[str]]]:
    """The table of what was measured, in percent: a title, and a cell for each column of its head."""
    measured = {
        "test accuracy, last epoch": lambda run: run["accuracy"].get("last"),
        "test accuracy, best epoch": lambda run: run["accuracy"].get("best"),
        "wrong labels memorised": lambda run: run["memorisation"].get("train_memorised"),
        "wrong labels recovered": lambda run: run["memorisation"].get("train_recovered"),
        "training labels that are wrong": lambda run: run["noise"]["rate"],
        "the same, estimated": _told_rate,
    }
    table = []
    for title, value in measured.items():
        if value(results[0]) is None:
            continue
        cells = [_spread([value(run) for run in results])]
        if len(results) > 1:
            cells.append(", ".join(_spread([value(run)]) for run in results))
        if baseline:
            cells.append(_spread([value(run) for run in baseline]))
        table.append((title, cells))
    return table


def accuracy_entries(results: Sequence[dict], task: str | None) -> list[EvalResult]:
    """The model index: last and best test accuracy, means over the runs; none where data set or task is unknown."""
    settings, accuracies = results[0]["settings"], [run["accuracy"] for run in results]
    if not accuracies[0] or task is None or settings["dataset"] is None:
        return []
    epochs = {
        "last": [last_row(run["history"])["epoch"] for run in results],
        "best": [accuracy["best_epoch"] for accuracy in accuracies],
    }
    entries = []
    for which in ("last", "best"):
        values = [accuracy[which] for accuracy in accuracies]
        how = {
            **({} if results[0]["test_images"] is None else {"n": results[0]["test_images"]}),
            "seed": _one_or_all([run["settings"]["seed"] for run in results]),
            "epoch": _one_or_all(epochs[which]),
        }
        if len(values) > 1:
            how["standard_deviation"] = round(stdev(values), 6)
        entries.append(
            EvalResult(
                task_type=task,
                dataset_type=settings["dataset"],
                dataset_name=settings["dataset"],
                dataset_config=settings["noise"],
                dataset_split=settings.get("test_split_name"),
                metric_type="accuracy",
                metric_name=f"accuracy ({which} epoch)",
                metric_value=round(mean(values), 6),
                metric_args=how,
            )
        )
    return entries


def hyper_parameters(results: Sequence[dict]) -> list[tuple[str, str]]:
    """Name and value of each training argument, and of what changes the network or its input."""
    settings = results[0]["settings"]
    names = [name for name in RECIPE if name not in ("loss", "do_train")]
    shown = {name: settings[name] for name in names if settings[name] is not None}
    shown |= {
        name: _one_or_all([run["settings"][name] for run in results])
        for name in ("seed", "noise_seed")
        if name in settings
    }
    shown |= {name: settings[name] for name in ("processes", "augmentation") if name in settings}
    shown |= {name: settings[name] for name in ("config_overrides",) if settings.get(name) is not None}
    return [(name, _in_table(value)) for name, value in (shown | settings["other_arguments"]).items()]


def noise_in_words(settings: Mapping) -> str | None:
    """What `symmetric_40` and so on mean; None for a name that is none of ours."""
    noise = settings["noise"]
    kind = None if noise is None else kind_of(noise)
    if kind is None:
        return None
    words = kind.words.format(rate=noise.rpartition("_")[2])
    return words + CONTAMINATED_WORDS * noise.startswith(CONTAMINATED)


def drawn_by_rule(noise: str) -> bool:
    """Whether the noise of that name in results makes labels wrong by drawing: people gave the human ones."""
    kind = kind_of(noise)
    return kind is None or kind.rated or is_matrix_name(noise)


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be that of a repository of some user on the Hub, and not a folder's or one of our own."""
    return name is not None and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def same_setting(results: Sequence[dict], but: Sequence[str] = ()) -> dict:
    """The first of the results; a `ValueError` if there is none or they differ in more than seeds and `but`."""
    if not results:
        raise ValueError("results: there is none; a card needs the result of one run or more")
    settings = [
        {key: value for key, value in run["settings"].items() if key not in (*OF_SEED, *but)} for run in results
    ]
    for other in settings[1:]:
        if difference := settings_difference(other, settings[0]):
            raise ValueError(f"results of one card may differ in their seeds alone; these differ in {difference}")
    return results[0]


def _head(results: Sequence[dict], baseline: Sequence[dict]) -> list[str]:
    seeds = ", ".join(str(run["settings"]["seed"]) for run in results)
    several = ["mean ± s.d.", f"seeds {seeds}"]
    head = several if len(results) > 1 else [f"seed {seeds}"]
    return head + ([f"with {code(baseline[0]['settings']['loss'])}"] if baseline else [])


def _spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    return f"{mean(percent):.1f}" + (f" ± {stdev(percent):.1f}" if len(percent) > 1 else "")


def _test_error(result: dict) -> float | None:
    """Standard error of the last accuracy, in percent, from the choice of the test images alone."""
    if not result["accuracy"] or not result["test_images"]:
        return None
    accuracy = result["accuracy"]["last"]
    return 100 * math.sqrt(accuracy * (1 - accuracy) / result["test_images"])


def _one_or_all(values: list) -> Any:
    whole = [int(value) if value == int(value) else value for value in values]
    return whole[0] if len(set(whole)) == 1 else whole


def _in_table(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return cell(escaped(text)).removesuffix(".0")
