"""Pictures of one size as one batch, in memory that is used again: getting new memory takes longer than filling it."""

import threading

import torch
from torch import Tensor


class BatchBuffer:
    """Stacks b tensors (C, H, W) to (b, C, H, W); what it gives holds until the next call in the same thread."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def stack(self, pixels: list[Tensor]) -> Tensor:
        """The batch; `RuntimeError` for tensors of several shapes."""
        first = pixels[0]
        buffer: Tensor = getattr(self._of_thread, "buffer", torch.empty(0))
        if len(buffer) < len(pixels) or buffer.shape[1:] != first.shape or buffer.dtype != first.dtype:
            buffer = self._of_thread.buffer = first.new_empty((len(pixels), *first.shape))
        return torch.stack(pixels, out=buffer[: len(pixels)])
