"""The folder of one training run: whose it is, and its checkpoints, each of which is complete or not there."""

import json
import os
import re
import shutil
from pathlib import Path

SETTINGS, RESULTS = "settings.json", "results.json"
RESUME_LATEST = "latest"


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
    final = output_dir / f"checkpoint-{step}"
    if final.exists():  # of a run that went on from an older one
        shutil.rmtree(final)
    os.replace(temporary_checkpoint(output_dir, step), final)
    if total_limit:
        for old in checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
    for unfinished in output_dir.glob(".checkpoint-*.tmp"):
        shutil.rmtree(unfinished)
    return final


def settings_difference(wanted: dict, found: dict) -> str:
    """`"seed=1 (it has 0)"` and so on for every setting in which two runs differ; empty if they are one."""
    return ", ".join(
        f"{key}={wanted.get(key)!r} (it has {found.get(key)!r})"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    )


def claim_output_dir(output_dir: Path, settings: dict, max_train_steps: int, resume: str | None) -> Path | None:
    """The checkpoint to go on from, or None for a start at step 0.

    Args:
        output_dir: must be new, empty, or hold a run of these very settings that made fewer steps.
        settings: JSON values of everything that the result depends on, but for the number of steps.
        max_train_steps: the steps that are wanted.
        resume: `"latest"`, which starts at step 0 where there is no checkpoint yet, or a checkpoint folder in
            `output_dir`; needed where checkpoints are.

    Raises:
        ValueError: the folder holds something else, or a run that is finished.
    """
    name = repr(str(output_dir))
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {name} is a file")
    # A kill while the first file was being written leaves its temporary name alone.
    started = output_dir.exists() and any(not path.match(".*.tmp") for path in output_dir.iterdir())
    found = checkpoints(output_dir) if started else []
    if started:
        if not (output_dir / SETTINGS).exists():
            raise ValueError(f"output_dir {name} holds files that are no run of this script; choose another")
        difference = settings_difference(settings, json.loads((output_dir / SETTINGS).read_text(encoding="utf-8")))
        if difference:
            raise ValueError(f"output_dir {name} holds another run: {difference}; choose another")
        done = finished_steps(output_dir)
        if done is not None and done >= max_train_steps:
            raise ValueError(
                f"output_dir {name} holds this run, finished after {done} steps; read {RESULTS}, publish it with "
                "--push_to_hub, ask for more steps, or choose another"
            )
        if found and resume is None:
            raise ValueError(f"output_dir {name} holds this run, begun; go on with --resume_from_checkpoint latest")
    if resume is None:
        return None
    if resume == RESUME_LATEST:
        chosen = found[-1] if found else None
    elif Path(resume).resolve() in [path.resolve() for path in found]:
        chosen = Path(resume)
    else:
        raise ValueError(
            f"resume_from_checkpoint must be {RESUME_LATEST!r} or one of {[str(path) for path in found]}; "
            f"got {resume!r}"
        )
    if chosen is not None and checkpoint_step(chosen) > max_train_steps:
        raise ValueError(f"checkpoint {str(chosen)!r} is beyond max_train_steps={max_train_steps}")
    return chosen


def finished_results(output_dir: Path, settings: dict, max_train_steps: int) -> dict | None:
    """The results of the run in the folder, if it is one of these very settings, finished after so many steps."""
    if finished_steps(output_dir) != max_train_steps:
        return None
    there = json.loads((output_dir / SETTINGS).read_text(encoding="utf-8"))
    if settings_difference(settings, there):
        return None
    return json.loads((output_dir / RESULTS).read_text(encoding="utf-8"))


def finished_steps(output_dir: Path) -> int | None:
    """The steps of the finished run in the folder, or None."""
    results = output_dir / RESULTS
    return json.loads(results.read_text(encoding="utf-8"))["steps"] if results.exists() else None


def publish_folder(temporary: Path, output_dir: Path) -> None:
    """Move everything in a temporary folder into `output_dir`, in place of what has the same name."""
    for path in temporary.iterdir():
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    temporary.rmdir()
