"""Pictures on their way to a model: written where their batch lies, in memory that is used again.

Getting new memory takes longer than filling it, and a batch that threads write needs no copy by the one that waits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class BatchMemory:
    """Room for two batches of tensors of one shape: one that a model has, and one that is written meanwhile."""

    def __init__(self) -> None:
        self._rooms = [torch.empty(0), torch.empty(0)]

    def slots(self, count: int, like: Tensor) -> Tensor:
        """(count, *shape of `like`), uninitialised: holds until the second call after this one."""
        room = self._rooms.pop(0)
        if len(room) < count:
            with torch.inference_mode(False):  # a mode of this thread alone: others could not write to it
                room = like.new_empty((count, *like.shape))
        self._rooms.append(room)
        return room[:count]


def placed(pixels: Tensor, out: Tensor | None) -> Tensor:
    """`out` with the values of `pixels` where they fit, else `pixels`."""
    return pixels if out is None or out.shape != pixels.shape else out.copy_(pixels)


def as_batch(prepared: Sequence[Tensor], rows: Sequence[Tensor | None], slots: Tensor) -> Tensor:
    """`slots`, if each of `prepared` is its row, already written; else a new tensor with those.

    Raises:
        RuntimeError: tensors of several shapes.
    """
    if all(pixels is row for pixels, row in zip(prepared, rows, strict=True)):
        return slots
    return torch.stack(list(prepared))
