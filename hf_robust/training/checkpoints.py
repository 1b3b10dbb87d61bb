"""Checkpoint folders: which are whole and good, and what the loss remembers in them."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import TrainerState

from ..losses import RobustLoss

LOSS_STATE = "loss.safetensors"


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of `output_dir` that were written to the end, newest first.

    `Trainer` writes its state file last: a checkpoint whose state can't be read was cut off while being written.
    """
    complete = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            step = TrainerState.load_from_json(str(folder / "trainer_state.json")).global_step
        except (OSError, ValueError, TypeError):  # TypeError: written by a version with other fields
            continue
        complete.append((step, folder))
    return [folder for _, folder in sorted(complete, reverse=True)]


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of `output_dir` whose weights are all finite; None if there is none."""
    for folder in complete_checkpoints(output_dir):
        files = sorted(folder.glob("*.safetensors"))
        if files and all(tensor.isfinite().all() for file in files for tensor in load_file(file).values()):
            return folder
    return None


def save_loss_state(loss: RobustLoss, checkpoint: str | Path) -> None:
    """Write what the loss remembers, if anything, to a checkpoint folder."""
    state = {name: tensor.cpu().contiguous() for name, tensor in loss.state_dict().items()}
    if state:
        save_file(state, Path(checkpoint) / LOSS_STATE)


def load_loss_state(loss: RobustLoss, checkpoint: str | Path) -> None:
    """Restore what the loss remembers from a checkpoint folder; a `ValueError` where that holds another's."""
    path = Path(checkpoint) / LOSS_STATE
    # Read into memory: a tensor of `load_file` may be the file's own pages.
    state = {name: tensor.clone() for name, tensor in load_file(path).items()} if path.exists() else {}
    # By name, for `load_state_dict` misses no buffer that has no value yet: ELR would begin anew in silence.
    if set(state) != _state_names(loss):
        kept = f"keeps {', '.join(sorted(state))}" if path.exists() else "is missing"
        wanted = ", ".join(sorted(_state_names(loss))) or "nothing"
        raise ValueError(
            f"checkpoint {checkpoint} can't be resumed with loss {loss.spec!r}, which remembers {wanted}: "
            f"its {LOSS_STATE} {kept}. It was saved with another loss or is incomplete."
        )
    loss.load_state_dict(state)


def _state_names(loss: RobustLoss) -> set[str]:
    """The names in the `state_dict` of a loss that has seen a batch."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in loss.named_modules()
        for name in module._buffers.keys() - module._non_persistent_buffers_set
    }
