"""The model card of a trained DiT, from the JSON that the scripts wrote and from nothing else.

card = dit_pipeline_card(results, repo_id="user/name", study=study, scores=scores, pictures={"study": ["study.png"]})
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_common.run_folder import RESULTS

from ..attention.spec import make_attn_processors
from ..models.sizes import DIT_SIZES
from .commands import sampling_command, scoring_command, training_command
from .papers import papers

TEMPLATE = "dit_pipeline.md.jinja"
TASK = "unconditional-image-generation"  # the Hub's only tag for images that no text or image is given for
MOST_NAMES = 12  # of classes in a sentence
USUAL_STEPS, USUAL_GUIDANCE = 50, 4.0  # the pipeline's defaults
# What evaluate_images.py measures: key of the value, of its standard error; type for the model index; titles with any
# encoder, and with the FID network.
METRICS = (
    ("cmmd_unbiased", "standard_error", "cmmd", "CMMD, unbiased", "CMMD, unbiased"),
    ("cmmd", "standard_error", "cmmd", "CMMD, as published", "CMMD, as published"),
    ("frechet_distance", None, "fid", "Fréchet distance (FD)", "FID"),
    ("fd_infinity", "fd_infinity_standard_error", "fid", "FD, n → ∞", "FID, n → ∞"),
    ("kid", None, "kid", "kernel distance", "KID"),
)


def dit_pipeline_card(
    results: dict,
    *,
    repo_id: str,
    study: dict | None = None,
    scores: Sequence[dict] = (),
    pictures: Mapping[str, Sequence[str]],
) -> str:
    """The card of an exported pipeline, Markdown with its YAML.

    Args:
        results: `results.json` of train_dit.py.
        repo_id: where the card will lie.
        study: `study.json` of sample_dit.py.
        scores: each the `results.json` of evaluate_images.py, with `sampling` added: what sample_dit.py says of the
            cell whose images were scored, or None. One that scores its references' own source is of real images.
        pictures: paths from the card on: of `loss_curve`, `samples`, `study`; those that there are.
    """
    config, settings = results["config"], results["settings"]
    guided = config["num_classes"] is not None and config["class_dropout_prob"] > 0
    rows = [row for one in scores for row in score_rows(one)]
    of_model = [row for row in rows if not row["real"]]
    measured = {key for row in rows for key in row["values"]}
    scale, steps = _best_setting(of_model, guided, settings["ddpm_num_steps"])
    name = repo_id.split("/")[-1]
    run = f"runs/{name}"
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["dit", "diffusion-transformer", *(["class-conditional-image-generation"] * bool(config["num_classes"]))],
        datasets=settings["dataset_name"] if "dataset_name" in results["from_hub"] else None,
        base_model=settings["model"] if "model" in results["from_hub"] else None,
        model_name=name,
        eval_results=eval_results(of_model) or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=(files("model_cards") / TEMPLATE).read_text(encoding="utf-8"),
        repo_id=repo_id,
        name=name,
        results=results,
        config=config,
        settings=settings,
        image_size=_images_in_words(config, settings),
        latent_size=_size_in_words(config),
        tokens=_tokens(config),
        origin=_origin(settings),
        attention_in_words=attention_in_words(config["attention"], config["num_layers"]),
        classes=_shortened(results["label_names"]),
        source=_data_in_words(results),
        folders=_folders_in_words(results),
        visits=results["steps"] * settings["global_batch"] / results["train_images"],
        guided=guided,
        labels=_example_labels(results["label_names"]),
        scale=scale,
        example_steps=steps,
        other_attention="full" if config["attention"] != "full" else "na3",
        rows=rows,
        measured=in_words,
        columns=[(key, title) for key, _, _, title, _ in METRICS if key in measured],
        references=_listed(f"{row['n_references']:,} images of {row['references']}" for row in rows),
        encoders=list(dict.fromkeys(row["encoder"] for row in rows)),
        notes=sorted({note for row in rows for note in row["notes"]}),
        study=study,
        grids=study and study_grids(study),
        pictures=pictures,
        training_command=training_command(results, run),
        other_commands=_other_commands(study, scores, run, config["attention"]),
        papers=papers(config, study["axes"]["attentions"] if study else (), measured),
        results_file=RESULTS,
    )
    return f"{card}\n"


def score_rows(one: dict) -> list[dict]:
    """A row for each encoder of a scoring: what was scored, in `values` each value with its standard error or None."""
    arguments, sampling = one["arguments"], one["sampling"]
    real = arguments["predictions"] == arguments["references"]
    return [
        {
            "real": real,
            "sampling": sampling,
            "predictions": _source(arguments, "predictions"),
            "references": _source(arguments, "references"),
            "arguments": arguments,
            "encoder": score["encoder"],
            "n_predictions": score["n_predictions"],
            "n_references": score["n_references"],
            "values": {
                key: (score[key], score[error] if error else None)
                for key, error, *_ in METRICS
                if score.get(key) is not None
            },
            "notes": score["notes"],
        }
        for score in one["scores"]
    ]


def in_words(value: float, error: float | None, figures: int = 3) -> str:
    """`"0.493 ± 0.019"`: two figures of the error and as many decimals of the value, or `figures` of it alone."""
    decimals = _decimals(error, 2) if error else _decimals(value, figures)
    return f"{value:.{decimals}f}" + (f"\u00a0±\u00a0{error:.{decimals}f}" if error else "")


def eval_results(rows: Sequence[dict]) -> list[EvalResult]:
    """The model index: an entry for each value, with encoder, numbers of images, standard error and sampling."""
    entries = []
    for row in rows:
        arguments, sampling, inception = row["arguments"], row["sampling"], row["encoder"].startswith("inception")
        how = {"encoder": row["encoder"], "n": row["n_predictions"], "n_references": row["n_references"]}
        if sampling is None:
            how["predictions"] = row["predictions"]
        else:
            how |= {key: sampling[key] for key in ("guidance_scale", "num_inference_steps", "scheduler", "attention")}
            how["seed"] = sampling["settings"]["seed"]
        for key, _, kind, title, title_of_inception in METRICS:
            if key in row["values"]:
                value, error = row["values"][key]
                entries.append(
                    EvalResult(
                        task_type=TASK,
                        dataset_type=arguments["references"],
                        dataset_name=arguments["references"],
                        dataset_config=arguments["references_config"],
                        dataset_split=arguments["references_split"],
                        metric_type=kind if inception or kind == "cmmd" else key,
                        metric_name=title_of_inception if inception else title,
                        metric_value=_rounded(value),
                        metric_args={**how, **({} if error is None else {"standard_error": _rounded(error)})},
                    )
                )
    return entries


def study_grids(study: dict) -> list[dict]:
    """A table for each attention and scheduler: of each guidance scale a row, in it the cells by their steps."""
    axes = study["axes"]
    cells = {
        (cell["attention"], cell["scheduler"], cell["guidance_scale"], cell["num_inference_steps"]): cell
        for cell in study["cells"]
    }
    return [
        {
            "attention": attention,
            "scheduler": scheduler,
            "rows": [
                (scale, [cells[attention, scheduler, scale, steps] for steps in axes["steps"]])
                for scale in axes["guidance_scales"]
            ],
        }
        for attention, scheduler in itertools.product(axes["attentions"], axes["schedulers"])
    ]


def attention_in_words(spec: str, num_layers: int) -> str:
    """`"na7*5,full"` -> what the tokens of such a model see."""
    return "; ".join(dict.fromkeys(processor.words for processor in make_attn_processors(spec, num_layers)))


def _source(arguments: dict, role: str) -> str:
    config, split = arguments[f"{role}_config"], arguments[f"{role}_split"]
    return " ".join(part for part in (arguments[role], config, split) if part is not None)


def _best_setting(rows: Sequence[dict], guided: bool, most_steps: int) -> tuple[float, int]:
    """Guidance and steps for the example: those of the lowest CMMD, or else the usual ones."""
    scored = [row for row in rows if row["sampling"] is not None and "cmmd_unbiased" in row["values"]]
    if scored:
        best = min(scored, key=lambda row: row["values"]["cmmd_unbiased"][0])["sampling"]
        return best["guidance_scale"], best["num_inference_steps"]
    return USUAL_GUIDANCE if guided else 1.0, min(USUAL_STEPS, most_steps)


def _example_labels(names: Sequence[str] | None) -> list[int | str] | None:
    """The first and the last class, by name if no name means two classes."""
    if names is None:
        return None
    ids = [0, len(names) - 1] if len(names) > 1 else [0]
    stripped = [name.strip() for name in names]
    plain = all(stripped) and len(set(stripped)) == len(names) and not any("," in name for name in names)
    return [stripped[i] for i in ids] if plain else ids


def _origin(settings: dict) -> str:
    if settings["model"] not in DIT_SIZES:
        return f"`{settings['model']}`, trained on"
    changed = f" with {settings['config_overrides']}" if settings["config_overrides"] else ""
    return f"`{settings['model']}`{changed} from scratch"


def _data_in_words(results: dict) -> str:
    name = results["settings"]["dataset_name"]
    if "dataset_name" in results["from_hub"]:
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return f"`{name or results['settings']['train_data_dir']}`"


def _folders_in_words(results: dict) -> str | None:
    """Which settings are the names of folders on the machine of the training."""
    settings, from_hub = results["settings"], results["from_hub"]
    names = [settings["dataset_name"] or settings["train_data_dir"]] * ("dataset_name" not in from_hub)
    names += [settings["model"]] * (settings["model"] not in DIT_SIZES and "model" not in from_hub)
    names += [settings["vae"]] * (settings["vae"] is not None and "vae" not in from_hub)
    if not names:
        return None
    return f"{_listed(f'`{name}`' for name in names)} {'was a folder' if len(names) == 1 else 'were folders'}"


def _images_in_words(config: dict, settings: dict) -> str:
    if settings["vae"] is None:
        return f"{_size_in_words(config)} images"
    side = settings["resolution"]
    return f"{side} x {side} images" if side is not None else f"images of {_size_in_words(config)} latents"


def _listed(words: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(words))


def _size_in_words(config: dict) -> str:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def _tokens(config: dict) -> int:
    height, width = _size_in_words(config).split(" x ")
    return (int(height) // config["patch_size"]) * (int(width) // config["patch_size"])


def _shortened(names: Sequence[str] | None) -> str | None:
    if names is None or len(names) <= MOST_NAMES:
        return names and ", ".join(names)
    return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"


def _other_commands(study: dict | None, scores: Sequence[dict], run: str, attention: str) -> list[str]:
    """Commands of the study, of the samples that were scored and of the scores, each once."""
    commands = [_sampling_command(study["settings"], study["axes"], run, f"{run}-study", attention)] if study else []
    folders, samples, scorings = [], {}, []  # samples of other settings get a folder of their own
    for one in scores:
        arguments, sampling = one["arguments"], one["sampling"]
        if sampling is not None:
            if sampling["settings"] not in folders:
                folders.append(sampling["settings"])
            number = folders.index(sampling["settings"])
            folder = f"{run}-samples" + (f"-{number + 1}" if number else "")
            key = (number, folder, sampling["attention"], sampling["scheduler"], sampling["num_inference_steps"])
            samples.setdefault(key, []).append(sampling["guidance_scale"])
            arguments = {**arguments, "predictions": f"{folder}/cells/{arguments['predictions']}"}
        scorings.append(scoring_command(arguments))
    for (number, folder, spec, scheduler, steps), scales in samples.items():
        axes = {
            "attentions": [spec],
            "schedulers": [scheduler],
            "guidance_scales": list(dict.fromkeys(scales)),
            "steps": [steps],
        }
        commands.append(_sampling_command(folders[number], axes, run, folder, attention))
    return list(dict.fromkeys(commands + scorings))


def _sampling_command(settings: dict, axes: dict, run: str, folder: str, attention: str) -> str:
    own = axes["attentions"] == [attention]
    return sampling_command(settings, {**axes, "attentions": None} if own else axes, run, folder)


def _decimals(value: float, figures: int) -> int:
    return max(0, figures - 1 - math.floor(math.log10(abs(value)))) if value else 0


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
