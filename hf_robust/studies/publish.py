"""A finished run of train_robust.py on the Hub: the command that reproduces it, its card, its files."""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, get_args, get_origin, get_type_hints

from huggingface_hub import CommitInfo
from transformers.dynamic_module_utils import get_relative_import_files

from hf_common.commands import command_line, launch_command
from hf_common.files import replace_text, write_json
from hf_common.foreign import Check, check_fields, read_json, refuse, whole
from hf_common.hub import local_files
from hf_common.public import public_results
from hf_common.run_folder import RESULTS
from hf_common.tables import code

from ..losses import parse_loss_spec
from ..losses.spec import link_words
from ..losses.table import SOFTMAX
from ..models import MODELS
from ..noise.from_matrix import PREFIX, is_matrix_name
from ..noise.semantic import CONTAMINATED
from ..reports.card import FIGURES, drawn_by_rule, is_hub_id, render_card, same_setting
from ..reports.order import compact
from ..reports.results import RECIPE, read_results
from ..training.arguments import default_optim_args, default_weight_decay
from ..training.push import push_model
from .arguments import DataArguments, ExperimentArguments, ModelArguments
from .flags import LATER_FLAGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

WIDTH = 90  # of a line of a command
# What `save_pretrained` of a tokenizer writes, as far as it is needed to load it.
TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model", "*.spm",
)  # fmt: skip
# Of a run's folder, beside the code: what is pushed.
RUN_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    *TOKENIZER_FILES,
    *FIGURES.values(),
)
NOISE_FILE = "noise.npy"  # stands for the file of a noise, of which the name has the digest
MATRIX_FILE = "matrix.json"  # stands for the file of a transition matrix, of which the settings have the digest


def run_card(
    results: Sequence[dict],
    repo_id: str,
    *,
    figures: Mapping[str, str] | None = None,
    baseline: Sequence[dict] = (),
) -> str:
    """The model card of one run, or of several that differ in their seeds alone, Markdown with its YAML.

    Args:
        results: the content of each run's `results.json`; the model is that of the first.
        repo_id: where the card will lie, `user/name`.
        figures: names of `FIGURES` -> paths from the card on. By default those that a run's folder has.
        baseline: results of another loss and otherwise the same settings, to compare with.
    """
    first = same_setting(results)
    if figures is None:
        figures = {name: FIGURES[name] for name in run_figures(first)}
    return render_card(
        results,
        repo_id=repo_id,
        task="text-classification" if first["settings"].get("text_column_name") else "image-classification",
        reproduce=_reproduce(results, f"runs/{repo_id.split('/')[-1]}"),
        figures=figures,
        baseline=baseline,
    )


def run_figures(result: dict) -> list[str]:
    """Names of `FIGURES` that a run draws: none if it does not both train and evaluate."""
    history = result["history"]
    if not (result["settings"]["do_train"] and history):
        return []
    noise = any(result["noise"].get(name) is not None for name in ("matrix", "estimated_matrix"))  # none of a stream
    return ["curves"] + ["noise"] * noise + ["losses"] * any("loss_histogram" in row for row in history)


def draw_figures(results: Sequence[dict], baseline: Sequence[dict] = ()) -> "dict[str, Figure]":
    """The figures of a card, by the names of `FIGURES`; the curves are of all runs, the others of the first."""
    from ..reports.loss_plots import plot_loss_histograms  # and with them matplotlib, when all is done
    from ..reports.matrix_plot import plot_transition_matrices
    from ..reports.plots import plot_curves, plot_runs

    draw = {
        "curves": lambda run: (
            plot_curves(run) if len(results) == 1 and not baseline else plot_runs([*results, *baseline])
        ),
        "noise": plot_transition_matrices,
        "losses": plot_loss_histograms,
    }
    return {name: draw[name](results[0]) for name in run_figures(results[0])}


def reproducing_command(
    settings: Mapping, output_dir: str, hardware: str, plugins: Sequence[str] | None = None
) -> str:
    """The call of train_robust.py that makes a run of these settings again, as a shell takes it.

    `run_settings` of its arguments gives `settings`, unless these have the digest of a transition matrix's file.

    Args:
        settings, hardware, plugins: of a `results.json`.
    """
    given = {"plugins": list(plugins) if plugins else None} | _data_flags(settings)
    given |= {
        field.name: settings[field.name] for field in fields(ModelArguments) if settings[field.name] != field.default
    }
    defaults = {field.name: field.default for field in fields(ExperimentArguments)}
    defaults |= {
        "weight_decay": default_weight_decay(settings["loss"]),
        "optim_args": default_optim_args(settings["optim"]),
    }
    given |= {name: settings[name] for name in RECIPE if settings[name] != defaults[name]}
    given["loss"] = compact(settings["loss"])
    given |= settings["other_arguments"]
    if str(given.get("transition_matrix", "")).startswith("sha256:"):
        given["transition_matrix"] = MATRIX_FILE
    launch, flags = launch_command("scripts/train_robust.py", settings["processes"], hardware)
    given |= flags | ({"ddp_backend": "gloo"} if flags else {})
    return command_line(launch, given | {"output_dir": output_dir}, width=WIDTH)


def read_run(path: str | os.PathLike) -> dict:
    """[`read_results`] with all settings that the card and its command say, of the types of their flags.

    Raises:
        ValueError: naming the file and what in it is not as it must be.
    """
    results = read_results(path)
    hints = get_type_hints(DataArguments) | get_type_hints(ModelArguments) | get_type_hints(ExperimentArguments)
    names = [field.name for part in (DataArguments, ModelArguments) for field in fields(part)] + list(RECIPE)
    kinds: dict[str, Check] = {f"{name}?" if name in LATER_FLAGS else name: _json_kind(hints[name]) for name in names}
    kinds |= {"noise": str, "processes": whole(1), "other_arguments": dict}
    check_fields(results["settings"], kinds, path, "settings.")
    try:
        parse_loss_spec(results["settings"]["loss"])
    except ValueError as error:
        raise refuse(path, f"settings.loss: {error}") from None
    check_fields(results, {"hardware": str, "versions": dict, "train_images?": whole(1)}, path)
    return results


def _json_kind(hint: object) -> Check:
    """Of the values of a flag with this annotation, as JSON has them."""
    plain = [get_origin(kind) or kind for kind in get_args(hint) or (hint,)]  # list[str] is a list
    kinds = [kind for kind in plain if kind in (str, int, float, bool, dict, list, NoneType)]
    # An enum is its text.
    return tuple(kinds) if len(kinds) == len(get_args(hint) or (hint,)) else (*kinds, str, NoneType)


def push_run(args: ExperimentArguments) -> CommitInfo:
    """Upload the finished run in `args.output_dir` to `args.hub_model_id`, as one commit.

    That is weights, config, code, image processor, results, figures and card; no checkpoint, nothing pickled, and
    nothing else that may lie in the folder.

    Raises:
        ValueError: the folder lacks the model, or what `check_push` refuses.
        PermissionError, ConnectionError: as for `push_folder`.
    """
    run, repo_id = Path(args.output_dir), args.hub_model_id or ""
    results = public_results(read_run(run / RESULTS))
    if (link := link_words(parse_loss_spec(results["settings"]["loss"]))) != SOFTMAX:
        logger.warning(
            "%s takes %s for the model's probabilities, the Hub's widget and pipeline() the softmax of the logits: "
            "the order of the classes is the same, the scores are not the model's; the card says so",
            results["settings"]["loss"],
            link,
        )
    names = local_files(run, RUN_FILES).keys() | _code_files(run)
    text = bool(results["settings"].get("text_column_name"))
    processor = "tokenizer_config.json" if text else "preprocessor_config.json"
    if not {"config.json", processor} <= names or not any(n.endswith(".safetensors") for n in names):
        lacking = "tokenizer" if text else "image processor"
        raise ValueError(f"output_dir {str(run)!r} can't be pushed: it lacks the model or its {lacking}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in sorted(names):
            shutil.copyfile(run / file, folder / file)
        write_json(folder / RESULTS, results)
        replace_text(folder / "README.md", run_card([results], repo_id))
        return push_model(args, folder, f"{results['settings']['model']} trained with {results['settings']['loss']}")


def _code_files(run: Path) -> set[str]:
    """What `trust_remote_code=True` would run, and no other Python file that may lie there."""
    config = run / "config.json"
    references = read_json(config).get("auto_map", {}).values() if config.exists() else ()
    modules = {reference.split(".")[0] for reference in references if "--" not in reference}  # "--": another repo's
    files = [str(run / f"{module}.py") for module in modules]
    return {Path(file).name for main in files for file in (main, *get_relative_import_files(main))}


def _reproduce(results: Sequence[dict], output_dir: str) -> str:
    first = results[0]
    settings = first["settings"]
    command = reproducing_command(settings, output_dir, first["hardware"], first.get("plugins"))
    text = f"With `hf_robust`:\n\n```bash\n{command}\n```"
    others = [
        f"`--seed {run['settings']['seed']} --noise_seed {run['settings']['noise_seed']}`" for run in results[1:]
    ]
    if others:
        text += f"\n\nThe other seeds: {', '.join(others)}, each with an `--output_dir` of its own."
    for name, known in (("dataset", ("digits",)), ("model", MODELS)):
        if settings[name] not in known and not is_hub_id(settings[name]):
            text += f"\n\nThe {name} {code(settings[name])} was a folder: give the path of yours."
    if NOISE_FILE in text:
        text += f"\n\n`{NOISE_FILE}` stands for the file of the noise's transition matrix, {settings['noise']}."
    if f" {MATRIX_FILE}" in text:
        digest = settings["other_arguments"]["transition_matrix"]
        text += f'\n\n`{MATRIX_FILE}`: `robust_loss["transition_matrix"]` of `config.json`; the file was {digest}.'
    return text


def _data_flags(settings: Mapping) -> dict:
    defaults = {field.name: field.default for field in fields(DataArguments)}
    usual = DataArguments(
        dataset=settings["dataset"],
        resolution=settings.get("resolution"),
        text_column_name=settings.get("text_column_name"),
    )
    defaults["augmentation"] = usual.augmentation
    defaults["label_column_name"] = usual.label_column_name
    given = {
        name: settings[name]
        for name in defaults
        if name != "noise" and name in settings and settings[name] != defaults[name]
    }
    # The settings have the noise under which a run is known: also that of a config, which is not added.
    noise = settings["noise"].removeprefix(CONTAMINATED)
    if is_matrix_name(noise) and noise != settings["dataset_config"]:
        given["noise"] = f"{PREFIX}{NOISE_FILE}"
    elif drawn_by_rule(noise) and noise != settings["dataset_config"]:
        given["noise"] = noise
    return given
