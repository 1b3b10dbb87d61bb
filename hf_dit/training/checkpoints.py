"""Checkpoints of a training, each of which is complete or not there, and the run's claim to its folder."""

import re
import shutil
from pathlib import Path

from hf_common.files import publish_folder
from hf_common.foreign import read_json
from hf_common.run_folder import RESULTS, SETTINGS, begun, check_same_run, chosen_checkpoint, settings_difference

from .records import read_training


def checkpoint_step(folder: Path) -> int:
    """The step in the name of a checkpoint folder, `checkpoint-500`; -1 for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    found = [path for path in output_dir.iterdir() if path.is_dir() and checkpoint_step(path) >= 0]
    return sorted(found, key=checkpoint_step)


def temporary_checkpoint(output_dir: Path, step: int) -> Path:
    """Where a checkpoint is written before [`publish_checkpoint`] gives it its name."""
    return output_dir / f".checkpoint-{step}.tmp"


def publish_checkpoint(output_dir: Path, step: int, total_limit: int = 0) -> Path:
    """Rename the checkpoint that was written; delete unfinished ones and the oldest beyond `total_limit` (0: none)."""
    final = output_dir / f"checkpoint-{step}"  # which may be there, of a run that went on from an older one
    publish_folder(temporary_checkpoint(output_dir, step), final)
    if total_limit:
        for old in checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    for unfinished in output_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(unfinished)
    return final


def claimed_checkpoint(output_dir: Path, settings: dict, max_train_steps: int, resume: str | None) -> Path | None:
    """The checkpoint to go on from, or None for a start at step 0.

    Args:
        output_dir: must be new, empty, or hold a run of these very settings that made fewer steps.
        settings: JSON values of everything that the result depends on, but for the number of steps.
        max_train_steps: the steps that are wanted.
        resume: `"last"`, which starts at step 0 where there is no checkpoint yet, or a checkpoint folder in
            `output_dir`; needed where checkpoints are.

    Raises:
        ValueError: the folder holds something else, or a run that is finished.
    """
    started = begun(output_dir)
    if started:
        check_same_run(output_dir, settings)
        done = finished_steps(output_dir)
        if done is not None and done >= max_train_steps:
            raise ValueError(
                f"output_dir {str(output_dir)!r} holds this run, finished after {done} steps; read {RESULTS}, publish "
                "it with --push_to_hub, ask for more steps, or choose another"
            )
    found = checkpoints(output_dir)[::-1] if started else []
    chosen = chosen_checkpoint(output_dir, found, resume)
    if chosen is not None and checkpoint_step(chosen) > max_train_steps:
        raise ValueError(f"checkpoint {str(chosen)!r} is beyond max_train_steps={max_train_steps}")
    return chosen


def finished_training(output_dir: Path, settings: dict, max_train_steps: int) -> dict | None:
    """The results of the run in the folder, if it is one of these very settings, finished after so many steps."""
    if finished_steps(output_dir) != max_train_steps:
        return None
    if settings_difference(settings, read_json(output_dir / SETTINGS)):
        return None
    return read_training(output_dir / RESULTS)


def finished_steps(output_dir: Path) -> int | None:
    """The steps of the finished run in the folder, or None."""
    results = output_dir / RESULTS
    return read_training(results)["steps"] if results.exists() else None
