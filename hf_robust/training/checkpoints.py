"""Checkpoint folders: which are whole and good, when they are written, and what lies in them beside the weights."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from hf_common.files import digests, write_json
from hf_common.foreign import (
    Check,
    check_fields,
    dict_of,
    first_line,
    list_of,
    number,
    read_json,
    read_tensors,
    refuse,
    short,
    whole,
)
from hf_common.signals import Stopped, deferred, requested_signal

from ..losses import RobustLoss
from .restore import saved_weights_digest

STATE, LOSS_STATE = "trainer_state.json", "loss.safetensors"
PROGRESS = "progress.json"
# Of a checkpoint, written before its progress: a training goes on from them alone.
STATES = ("optimizer.pt", "scheduler.pt", LOSS_STATE)
STATE_FIELDS: dict[str, Check] = {
    "global_step": whole(),
    "max_steps": whole(),
    "epoch?": number(0),
    "log_history": list_of(dict),
    "stateful_callbacks": dict,
    "total_flos": number(0),
    "train_batch_size?": whole(1),
    "best_model_checkpoint?": str,
}
# What `torch.load` and `load_state_dict` raise for damaged files; PyTorch seeks before one that is too short.
UNREADABLE = (AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, UnpicklingError, ValueError)


class SaveAfterEvaluation(TrainerCallback):
    """Moves the save of an epoch's last step behind the log and the evaluation of that epoch.

    `Trainer` saves such a step before them under `save_strategy="steps"`: a run that is killed then and resumed goes
    on with the next epoch, and its record would lack this one.
    """

    def __init__(self):
        self.moved = False

    def on_step_end(self, args, state, control, **kwargs):
        if ends_epoch(state) and control.should_save:
            control.should_save, self.moved = False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.moved
        self.moved = False


class StopOnSignal(TrainerCallback):
    """Ends a training at the step in which SIGINT or SIGTERM came to any of its processes, with a checkpoint.

    It looks at [`requested_signal`], so that it belongs in a block of [`deferred`] of a script that runs under
    [`run_command`]; [`train_until_stopped`] is that block. A training that is resumed from that checkpoint has the
    record of one that was never stopped.
    """

    def __init__(self):
        self.signal = 0  # the number of the one that ended the training
        self.stopped_within_epoch = False

    def on_step_end(self, args, state, control, **kwargs):
        self.signal = _largest(requested_signal(), args)
        if not self.signal:
            return
        control.should_training_stop = True
        self.stopped_within_epoch = not ends_epoch(state)
        control.should_save |= self.stopped_within_epoch

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped_within_epoch:  # it is saved; what follows an epoch comes when it is over
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.signal:
            control.should_save = True


def train_until_stopped(trainer: Trainer, resume_from_checkpoint: str | None) -> None:
    """`trainer.train(...)`, which a signal ends with a checkpoint, on all processes; [`Stopped`] is raised then."""
    stop = StopOnSignal()
    trainer.add_callback(stop)
    with deferred():
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    if stop.signal:  # on the processes, too, that no signal came to
        raise Stopped(stop.signal)


def ends_epoch(state: TrainerState) -> bool:
    """Whether the step just made is an epoch's last, or the last of all: `Trainer` then ends the epoch."""
    return state.epoch == int(state.epoch) or state.global_step >= state.max_steps


def _largest(number: int, args: TrainingArguments) -> int:
    """The largest of a number over the processes."""
    if args.world_size == 1:
        return number
    numbers = torch.tensor(number, device=args.device)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


def complete_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of `output_dir` that were written to the end, newest first.

    `Trainer` writes its state file last: a checkpoint whose state can't be read was cut off while being written.
    """
    steps = {folder: _complete_step(folder) for folder in Path(output_dir).glob("checkpoint-*")}
    complete = [(step, folder) for folder, step in steps.items() if step is not None]
    return [folder for _, folder in sorted(complete, reverse=True)]


def _complete_step(folder: Path) -> int | None:
    try:
        step = TrainerState.load_from_json(str(folder / STATE)).global_step
        return step if whole()(step) else None
    except (OSError, ValueError, TypeError, RecursionError):  # TypeError: written by a version with other fields
        return None


def last_good_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of `output_dir` whose weights are all finite; None if there is none."""
    for folder in complete_checkpoints(output_dir):
        files = sorted(folder.glob("*.safetensors"))
        if files and all(tensor.isfinite().all() for file in files for tensor in load_file(file).values()):
            return folder
    return None


def resumable_checkpoint(
    asked: str | Path | bool, output_dir: str | Path, processes: int, sharded: bool = False
) -> tuple[str, dict | None]:
    """The checkpoint that `resume_from_checkpoint=asked` means, and its [`save_progress`]; None for older ones.

    Args:
        sharded: whether FSDP or DeepSpeed keep the optimizer, in files of their own.

    Raises:
        ValueError: there is none, it was not written to the end, it lacks what `Trainer` would go on without in
            silence, or another number of processes wrote it, whose random numbers and order of samples are not those
            of this one.
    """
    complete = complete_checkpoints(output_dir) if asked is True else []
    if asked is True and not complete:
        raise ValueError(f"resume_from_checkpoint=True: {str(output_dir)!r} holds no complete checkpoint")
    checkpoint = complete[0] if isinstance(asked, bool) else Path(asked)
    if _complete_step(checkpoint) is None:
        raise ValueError(f"resume_from_checkpoint={str(asked)!r} is no complete checkpoint: it has no whole {STATE}")
    progress = _read_progress(checkpoint)
    _check_state(checkpoint, progress)
    if progress is not None and len(progress["losses"]) != processes:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} can be resumed by as many processes as wrote it, "
            f"{len(progress['losses'])}; got {processes}"
        )
    needed = ["rng_state.pth"] if processes == 1 else [f"rng_state_{index}.pth" for index in range(processes)]
    needed += [] if sharded else ["optimizer.pt", "scheduler.pt"]
    if missing := [name for name in needed if not (checkpoint / name).is_file()]:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} can't be resumed: it lacks {short(', '.join(missing), 80)} "
            "(save_only_model=True writes none)"
        )
    written = (progress or {}).get("files", {})
    found = digests(checkpoint, written)  # what is missing is told by those that read it
    changed = [name for name in found if found[name] != written[name]]
    if changed:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} can't be resumed: {', '.join(changed)} is not what was written there"
        )
    return str(checkpoint), progress


def _check_state(checkpoint: Path, progress: dict | None) -> None:
    """Raise a `ValueError` for a state file that is not of this step, or that contradicts itself."""
    path = checkpoint / STATE
    state = read_json(path)
    check_fields(state, STATE_FIELDS, path)
    step, epoch, history = state["global_step"], state.get("epoch"), state["log_history"]
    if re.fullmatch(r"checkpoint-\d+", checkpoint.name) and checkpoint.name != f"checkpoint-{step}":
        raise refuse(path, f"'global_step' must be that of the folder's name, is {step}")
    if progress is not None and progress["logged_step"] > 0 and not history:
        raise refuse(path, f"'log_history' is empty, but step {progress['logged_step']} was logged")
    for place, row in enumerate(history):
        check_fields(row, {"step": whole(0, step), "epoch?": number(0)}, path, f"log_history[{place}].")
        # Both count batches, so that they are proportional to each other.
        if (
            step
            and epoch
            and row.get("epoch")
            and not math.isclose(row["epoch"] * step, epoch * row["step"], rel_tol=1e-6)
        ):
            raise refuse(path, f"'epoch' is {epoch} at step {step}, but {row['epoch']} at step {row['step']}")


@contextmanager
def naming(checkpoint: str | Path | None, what: str) -> Iterator[None]:
    """A block that reads `what` from a checkpoint: errors of a damaged file are a `ValueError` that says which."""
    try:
        yield
    except UNREADABLE as error:
        reason = f"its {what} can't be read: {short(first_line(error), 120)}"
        raise ValueError(f"checkpoint {str(checkpoint)!r} can't be resumed: {reason}") from error


def save_progress(checkpoint: str | Path, *, logged_step: int, losses: list[float], total: float) -> None:
    """Write what of the training loss is not logged yet, and the digests of what is written already.

    Args:
        logged_step: the step of the last log.
        losses: the sums of the losses since then, one a process.
        total: the sum of the losses until then.
    """
    # As hexadecimal digits: to the last bit, and JSON has no NaN, which a loss may be.
    content = {
        "logged_step": logged_step,
        "losses": [float(loss).hex() for loss in losses],
        "total": float(total).hex(),
        "files": digests(checkpoint, STATES),
    }
    write_json(Path(checkpoint) / PROGRESS, content | {"weights": saved_weights_digest(checkpoint)})


def refuse_changed_weights(checkpoint: str | Path) -> None:
    """Raise a `ValueError` unless the weights of a checkpoint are those that [`save_progress`] saw.

    Call it after [`restore_weights`], which names the tensors that are missing.
    """
    progress = _read_progress(Path(checkpoint))
    if progress is not None and progress["weights"] not in (None, saved_weights_digest(checkpoint)):
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} can't be resumed: its weights are not what was written there"
        )


def _read_progress(checkpoint: Path) -> dict | None:
    path = checkpoint / PROGRESS
    if not path.exists():
        return None
    progress = read_json(path)
    wanted: dict[str, Check] = {
        "logged_step": whole(),
        "losses": list_of(_is_hex),
        "total": _is_hex,
        "files?": dict_of(str),
        "weights?": str,
    }
    check_fields(progress, wanted, path)
    losses, total = [float.fromhex(loss) for loss in progress["losses"]], float.fromhex(progress["total"])
    files = progress.get("files") or {}  # none in those of older versions
    more = {"files": files, "weights": progress.get("weights")}
    return {"logged_step": progress["logged_step"], "losses": losses, "total": total} | more


def _is_hex(value: object) -> bool:
    """a number in hexadecimal digits"""
    try:
        return isinstance(value, str) and isinstance(float.fromhex(value), float)
    except (ValueError, OverflowError):
        return False


def save_loss_state(loss: RobustLoss, checkpoint: str | Path) -> None:
    """Write what the loss remembers, if anything, to a checkpoint folder."""
    state = {name: tensor.cpu().contiguous() for name, tensor in loss.state_dict().items()}
    if state:
        save_file(state, Path(checkpoint) / LOSS_STATE)


def load_loss_state(loss: RobustLoss, checkpoint: str | Path) -> None:
    """Restore what the loss remembers from a checkpoint folder; a `ValueError` where that holds another's."""
    path = Path(checkpoint) / LOSS_STATE
    state = read_tensors(path)[0] if path.exists() else {}
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
