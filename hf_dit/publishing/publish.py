"""A finished run of train_dit.py as a Hub repository: pipeline with its code, results, pictures and card."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import CommitInfo

from hf_common.files import replace_text, write_json
from hf_common.foreign import Check, check_fields, dict_of, list_of, number, read_json, refuse, whole
from hf_common.hub import push_folder
from hf_common.public import public_results, without_paths
from hf_common.run_folder import RESULTS

from ..models.weights import weights_digest
from ..sampling.export import PIPELINE_FILE, export_pipeline
from ..sampling.pipeline import DiTImagePipeline
from ..studies.cells import SETTINGS_FIELDS, check_cell, check_study
from ..training.records import read_training
from .card import dit_pipeline_card
from .commands import NOT_OF_VALUES
from .scores import METRICS

# Patterns of all that such a repository may hold.
REPOSITORY_FILES = (
    "README.md",
    "model_index.json",
    f"{PIPELINE_FILE}.py",
    "transformer/*",
    "scheduler/*",
    "vae/*",
    RESULTS,
    "loss_curve.png",
    "samples.png",
    "study.json",
    "study*.png",
    "scores.json",
)


def read_study(folder: str | os.PathLike) -> dict:
    """The study that sample_dit.py wrote into a folder; a `ValueError` if there is none or it is not finished."""
    path = Path(folder) / "study.json"
    study = read_json(_written_by(path, "sample_dit.py"))
    check_fields(study, {"pictures": list}, path)
    if not study["pictures"]:
        raise ValueError(f"the study in {os.fspath(folder)!r} is not finished; run sample_dit.py again")
    check_study(study, path)
    return study


def read_scores(folders: Sequence[str | os.PathLike]) -> list[dict]:
    """What evaluate_images.py wrote into each folder, without the arguments that no value depends on.

    With `sampling`: what sample_dit.py wrote of the cell whose images were scored, but for their names; None for other
    images. Paths of folders are cut to their last part, or the last two where both sources have the same last part.

    Raises:
        ValueError: a folder without results.
    """
    scores = []
    for folder in folders:
        found = _checked_scores(_written_by(Path(folder) / RESULTS, "evaluate_images.py"))
        scores += [_published_scores(one) for one in found]
    return scores


def _published_scores(one: dict) -> dict:
    """Scores of one set, without the arguments that no value depends on and without paths."""
    given = one["arguments"]
    cell = Path(f"{Path(given['predictions'])}.json")  # also of a folder that is given with a slash at its end
    sampling = None
    if os.path.isfile(cell):  # False also for what no path can be
        sampling = read_json(cell)
        check_cell(sampling, cell)
        check_fields(sampling, {"settings": dict}, cell)
        check_fields(sampling["settings"], SETTINGS_FIELDS, cell, "settings.")
        del sampling["images"]
    arguments = {name: value for name, value in given.items() if name not in NOT_OF_VALUES}
    for name in ("predictions", "references", "inception_weights", "encoders"):
        arguments[name] = without_paths(given[name])
    images, others = (Path(os.path.abspath(given[role])) for role in ("predictions", "references"))
    if arguments["predictions"] == arguments["references"] and images != others:
        # Two folders of one name: the card would take equal sources for real images.
        arguments["predictions"] = f"{images.parent.name}/{images.name}"
    values = [
        {
            **{key: value for key, value in score.items() if key not in ("predictions", "references")},
            "encoder": without_paths(score["encoder"]),
            "notes": [_without_names(note, given) for note in score["notes"]],
        }
        for score in one["scores"]
    ]
    return {**one, "arguments": arguments, "scores": values, "sampling": sampling}


def _without_names(note: str, arguments: dict) -> str:
    """A note in which the sources go by the last part of their paths."""
    for role in ("predictions", "references"):
        note = note.replace(arguments[role], without_paths(arguments[role]))
    return note


def _checked_scores(path: Path) -> list[dict]:
    """The content of a file, for each set of predictions that it is of."""
    content = read_json(path)
    ran_on: dict[str, Check] = {"processes?": whole(1), "hardware?": str, "versions?": dict_of(str)}
    check_fields(content, {"arguments": dict, "scores": list_of(dict), **ran_on}, path)
    roles = ("predictions", "references")
    given: dict[str, Check] = {**dict.fromkeys(("references", "inception_weights"), str), "encoders": list_of(str)}
    given["predictions"] = (str, list_of(str))  # a name in files of before
    given |= {f"{role}_{part}": (str, None) for role in roles for part in ("config", "split")}
    given |= {"metrics": list_of(str), "dtype": str, "normalize": bool, "seed": whole()}
    check_fields(content["arguments"], given, path, "arguments.")
    for place, score in enumerate(content["scores"]):
        fields: dict[str, Check] = {"encoder": str, "n_predictions": whole(1), "n_references": whole(1)}
        fields |= {f"{key}?": number() for key, *_ in METRICS}
        measured = [error for key, error, *_ in METRICS if error is not None and score.get(key) is not None]
        fields |= dict.fromkeys(measured, (number(0), None))
        check_fields(score, fields | {"notes": list_of(str)}, path, f"scores[{place}].")
        told: dict[str, Check] = {"dim?": whole(1), "dtype?": str, "normalized?": bool, "digest?": str}
        check_fields(score, told, path, f"scores[{place}].")
    names = content["arguments"]["predictions"]
    found = []
    for name in [names] if isinstance(names, str) else names:
        rows = [row for row in content["scores"] if row.get("predictions", name) == name]
        if len(rows) != len(content["arguments"]["encoders"]):
            raise refuse(path, "must hold a score for each of its encoders")
        found.append({**content, "arguments": {**content["arguments"], "predictions": name}, "scores": rows})
    return found


def published_results(results: dict) -> dict:
    """Results of a training in which a local folder goes by the last part of its path."""
    named = ("dataset_name", "train_data_dir", "model", "vae")
    return public_results(results, [name for name in named if name not in results["from_hub"]])


def write_repository(
    run_dir: str | os.PathLike,
    folder: str | os.PathLike,
    repo_id: str,
    *,
    study_dir: str | os.PathLike | None = None,
    score_dirs: Sequence[str | os.PathLike] = (),
) -> None:
    """Write the files of `REPOSITORY_FILES` of a finished run into `folder`, which is new or empty.

    The pipeline is exported with its code, the last sample grid becomes `samples.png`; checkpoints stay behind.

    Args:
        run_dir: `output_dir` of the training.
        repo_id: where the folder will lie on the Hub.
        study_dir: `output_dir` of a study by sample_dit.py of this model.
        score_dirs: `output_dir` of calls of evaluate_images.py.

    Raises:
        ValueError: study or scores are not there, or of a model with other weights.
    """
    run_dir, folder = Path(run_dir), Path(folder)
    study = None if study_dir is None else read_study(study_dir)
    scores = read_scores(score_dirs)
    check_weights(run_dir, study, scores)
    export_pipeline(DiTImagePipeline.from_pretrained(run_dir), folder)
    results = published_results(read_training(_written_by(run_dir / RESULTS, "train_dit.py")))
    write_json(folder / RESULTS, results)
    shutil.copyfile(run_dir / "loss_curve.png", folder / "loss_curve.png")
    shutil.copyfile(run_dir / "samples" / f"step-{results['steps']:07d}.png", folder / "samples.png")
    if study is not None and study_dir is not None:
        write_json(folder / "study.json", study)
        for name in study["pictures"]:
            shutil.copyfile(Path(study_dir) / name, folder / name)
    if scores:
        write_json(folder / "scores.json", scores)
    card = dit_pipeline_card(
        results,
        repo_id=repo_id,
        study=study,
        scores=scores,
        pictures={
            "loss_curve": ["loss_curve.png"],
            "samples": ["samples.png"],
            "study": study["pictures"] if study else [],
        },
    )
    replace_text(folder / "README.md", card)


def push_pipeline(
    run_dir: str | os.PathLike,
    target: Mapping,
    study_dir: str | os.PathLike | None = None,
    score_dirs: Sequence[str | os.PathLike] = (),
) -> CommitInfo:
    """Publish the finished run in `run_dir`, by one commit: see [`write_repository`] and [`push_folder`].

    Args:
        target: the arguments of `push_folder` that [`check_push`] shares, `repo_id` and `names` among them.
    """
    with TemporaryDirectory(prefix=".hub-", dir=run_dir) as folder:
        write_repository(run_dir, folder, target["repo_id"], study_dir=study_dir, score_dirs=score_dirs)
        return push_folder(folder, **target, commit_message="Upload pipeline, results and card")


def check_weights(run_dir: str | os.PathLike, study: dict | None, scores: Sequence[dict]) -> None:
    """Raise a `ValueError` if study or scores are of samples of other weights than those of the run."""
    sampled = {"the study": study} | {
        f"the scores of {one['arguments']['predictions']}": one["sampling"] for one in scores
    }
    digests: dict[str, str] = {}
    for what, result in sampled.items():
        if result is None:
            continue
        dtype, wanted = result["settings"]["dtype"], result["settings"]["weights"]
        if dtype not in digests:
            pipeline = DiTImagePipeline.from_pretrained(run_dir, dtype=getattr(torch, dtype))
            digests[dtype] = weights_digest(pipeline.transformer, pipeline.vae)
        if digests[dtype] != wanted:
            raise ValueError(
                f"{what} must be of the weights in {os.fspath(run_dir)!r}, {digests[dtype]}; got {wanted}"
            )


def _written_by(path: Path, script: str) -> Path:
    if not path.exists():
        raise ValueError(f"{str(path)!r} is not there: it is what {script} writes when it has finished")
    return path
