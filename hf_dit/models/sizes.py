"""The sizes of DiT by name (Peebles and Xie 2023, table 1), and smaller ones for CPUs and tests."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

# depth, heads, channels of a head, patch sizes
_SIZES = {
    "s": (12, 6, 64, (2, 4, 8)),
    "b": (12, 12, 64, (2, 4, 8)),
    "l": (24, 16, 64, (2, 4, 8)),
    "xl": (28, 16, 72, (2, 4, 8)),
    "tiny": (6, 5, 32, (2, 4)),
    "micro": (2, 2, 16, (2,)),
}

DIT_SIZES: dict[str, dict] = {
    f"dit-{size}-{patch}": {
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "patch_size": patch,
    }
    for size, (depth, heads, head_dim, patches) in _SIZES.items()
    for patch in patches
}


def dit_config(name: str, **overrides: Any) -> dict:
    """The arguments of `DiTModel` for a size such as `"dit-s-2"` (S with patches of 2), updated with `overrides`.

    An unknown `name` is a `ValueError`.
    """
    if name not in DIT_SIZES:
        raise ValueError(f"name must be one of {', '.join(DIT_SIZES)}, got {name!r:.120}")
    return {**DIT_SIZES[name], **overrides}


def height_and_width(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """Of the samples of a model whose config has this `sample_size`, one number for both or two."""
    sides: Any = (sample_size, sample_size) if isinstance(sample_size, Integral) else sample_size
    height, width = sides
    return height, width
