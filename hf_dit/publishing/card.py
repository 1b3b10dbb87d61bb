"""The model card of a trained DiT, from the JSON that the scripts wrote and from nothing else.

card = dit_pipeline_card(results, repo_id="user/name", study=study, scores=scores, pictures={"study": ["study.png"]})
"""

import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files

from huggingface_hub import ModelCard, ModelCardData

from hf_common.run_folder import RESULTS
from hf_common.tables import cell, code, escaped

from .commands import sampling_command, scoring_command, training_command
from .papers import papers
from .scores import METRICS, TASK, model_index, score_rows, told_apart
from .words import (
    PREDICTED,
    attention_in_words,
    data_in_words,
    design_in_words,
    example_labels,
    folders_in_words,
    images_in_words,
    in_words,
    listed,
    objective_in_words,
    origin,
    shortened,
    size_in_words,
    token_grid,
    tokens,
)

TEMPLATE = "dit_pipeline.md.jinja"
USUAL_STEPS, USUAL_GUIDANCE = 50, 4.0  # the pipeline's defaults


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
    rows = [row for one in scores for row in score_rows(one)]
    name = repo_id.split("/")[-1]
    run = f"runs/{name}"
    card = ModelCard.from_template(
        _card_data(results, rows, name),
        template_str=(files("model_cards") / "templates" / TEMPLATE).read_text(encoding="utf-8"),
        repo_id=repo_id,
        name=name,
        results=results,
        config=results["config"],
        settings=results["settings"],
        measured=in_words,
        in_cell=lambda value: cell(escaped(value)),
        code=code,
        escaped=escaped,
        **_of_training(results),
        **_of_scores(rows),
        **_of_example(results, rows),
        study=study,
        grids=study and study_grids(study),
        pictures=pictures,
        training_command=training_command(results, run),
        other_commands=_other_commands(study, scores, run, results["config"]["attention"]),
        papers=papers(
            results["config"], results["settings"], study["axes"]["attentions"] if study else (), _measured(rows)
        ),
        results_file=RESULTS,
    )
    return f"{card}\n"


def _card_data(results: dict, rows: Sequence[dict], name: str) -> ModelCardData:
    settings, from_hub = results["settings"], results["from_hub"]
    classes = ["class-conditional-image-generation"] * bool(results["config"]["num_classes"])
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["dit", "diffusion-transformer", *classes],
        datasets=settings["dataset_name"] if "dataset_name" in from_hub else None,
        base_model=settings["model"] if "model" in from_hub else None,
        model_name=name,
        eval_results=model_index([row for row in rows if not row["real"]]) or None,
    )


def _of_training(results: dict) -> dict:
    """What the template says of the model and its training."""
    config, settings = results["config"], results["settings"]
    return {
        "image_size": images_in_words(config, settings),
        "latent_size": size_in_words(config),
        "tokens": tokens(config),
        "origin": origin(settings),
        "objective": objective_in_words(settings),
        "predicted": PREDICTED[settings["prediction_type"]],
        "attention_in_words": attention_in_words(config["attention"], config["num_layers"], token_grid(config)),
        "design": design_in_words(config),
        "classes": shortened(results["label_names"]),
        "source": data_in_words(results),
        "folders": folders_in_words(results),
        "visits": results["steps"] * settings["global_batch"] / results["train_images"],
        "guided": _is_guided(config),
    }


def _of_scores(rows: Sequence[dict]) -> dict:
    """What the template says of the scores."""
    rows = told_apart(rows)
    measured = _measured(rows)
    return {
        "rows": rows,
        "columns": [(key, title) for key, _, _, title, _ in METRICS if key in measured],
        "references": listed(f"{row['n_references']:,} images of {escaped(row['references'])}" for row in rows),
        "encoders": list(dict.fromkeys(row["encoder"] for row in rows)),
        "notes": sorted({escaped(note) for row in rows for note in row["notes"]}),
    }


def _of_example(results: dict, rows: Sequence[dict]) -> dict:
    """What the template's example calls the pipeline with."""
    config = results["config"]
    scale, steps = _best_setting(
        [row for row in rows if not row["real"]], _is_guided(config), results["settings"]["ddpm_num_steps"]
    )
    return {
        "labels": example_labels(results["label_names"]),
        "scale": scale,
        "example_steps": steps,
        "other_attention": "full" if config["attention"] != "full" else "na3",
    }


def _is_guided(config: dict) -> bool:
    return config["num_classes"] is not None and config["class_dropout_prob"] > 0


def _measured(rows: Sequence[dict]) -> set[str]:
    return {key for row in rows for key in row["values"]}


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


def _best_setting(rows: Sequence[dict], guided: bool, most_steps: int) -> tuple[float, int]:
    """Guidance and steps for the example: those of the lowest CMMD, or else the usual ones."""
    scored = [row for row in rows if row["sampling"] is not None and "cmmd_unbiased" in row["values"]]
    if scored:
        best = min(scored, key=lambda row: row["values"]["cmmd_unbiased"][0])["sampling"]
        return best["guidance_scale"], best["num_inference_steps"]
    return USUAL_GUIDANCE if guided else 1.0, min(USUAL_STEPS, most_steps)


def _other_commands(study: dict | None, scores: Sequence[dict], run: str, attention: str) -> list[str]:
    """Commands of the study, of the samples that were scored and of the scores, each once."""
    commands = [_sampling_command(study["settings"], study["axes"], run, f"{run}-study", attention)] if study else []
    folders: list[dict] = []  # samples of other settings get a folder of their own
    samples: dict[tuple, list] = {}
    scorings = []
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
