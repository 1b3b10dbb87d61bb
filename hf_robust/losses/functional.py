"""The closed-form losses as pure per-sample functions: `nce(logits, labels)`, `gce(logits, labels, q=0.5)`.

Each takes (B, K) logits and (B,) int64 labels as `base.LossInputs` describes them, and gives (B,) float32 (float64
for float64 logits), zero where the label is -100. Notation: p = softmax(logits), p_y that of the given label.

The names are those of the table of losses, registered ones included.
"""

from collections.abc import Callable

from .base import IGNORE_INDEX as IGNORE_INDEX
from .table import LOSSES

__all__ = ["IGNORE_INDEX", *(info.name for info in LOSSES.values() if not info.stateful)]


def __getattr__(name: str) -> Callable:
    if name not in LOSSES or LOSSES[name].stateful:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return LOSSES[name].build


def __dir__() -> list[str]:
    return sorted(__all__)
