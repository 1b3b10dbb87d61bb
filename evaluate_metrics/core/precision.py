"""Where an encoder runs, and that it runs in full precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def default_device(device: str | torch.device | None) -> str | torch.device:
    """`device`, or an accelerator if there is one, or the CPU; a `ValueError` for one that this machine lacks."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return accelerator or "cpu"
    counts = {"cpu": 1}
    if accelerator is not None:
        counts[accelerator.type] = torch.accelerator.device_count()
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):  # a name that torch does not know
        wanted = None
    if wanted is None or (wanted.index or 0) >= counts.get(wanted.type, 0):
        there = ", ".join(f"{count} x {name}" for name, count in counts.items())
        raise ValueError(f"device must be of those that torch {torch.__version__} finds here, {there}; got {device!r}")
    return device


@contextmanager
def full_precision() -> Iterator[None]:
    """Products and convolutions of float32 numbers without TF32, the same in every run."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
