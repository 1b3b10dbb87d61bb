"""The output folder of a run: free for it, or finished."""

from pathlib import Path

from hf_common.run_folder import RESULTS, SETTINGS, begun, check_same_run, chosen_checkpoint, settings_difference

from ..reports.results import read_results
from ..training.checkpoints import complete_checkpoints


def finished_results(output_dir: Path, settings: dict) -> dict | None:
    """What the `results.json` of this very run holds; None if it is not finished. A `ValueError` for another run."""
    if not (output_dir / RESULTS).exists() or not (output_dir / SETTINGS).exists():
        return None
    results = read_results(output_dir / RESULTS)
    if difference := settings_difference(settings, results["settings"]):
        raise ValueError(f"output_dir {str(output_dir)!r} holds another run: {difference}; choose another")
    return results


def claim_output_dir(output_dir: Path, settings: dict, resume: str | None = None) -> str | None:
    """The checkpoint to go on from, or None for a start; a `ValueError` unless the folder is free for this run.

    Args:
        output_dir (`Path`): must be new, empty, or hold an unfinished run of these very settings.
        settings (`dict`): what [`run_settings`] gives.
        resume (`str`, *optional*): `"last"`, which starts where there is no complete checkpoint yet, or a checkpoint
            folder in `output_dir`; needed where checkpoints are.
    """
    started = begun(output_dir)
    if started:
        check_same_run(output_dir, settings)
        if (output_dir / RESULTS).exists():
            raise ValueError(
                f"output_dir {str(output_dir)!r} holds this very run, finished; read {RESULTS}, choose another, or "
                "upload it with --push_to_hub"
            )
    checkpoints = complete_checkpoints(output_dir) if started else []
    chosen = chosen_checkpoint(output_dir, checkpoints, resume)
    return None if chosen is None else str(chosen)
