"""Where an encoder runs, and that it runs in full precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def default_device(device: str | torch.device | None) -> str | torch.device:
    """`device`, or an accelerator if there is one, or the CPU."""
    if device is not None:
        return device
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"


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
