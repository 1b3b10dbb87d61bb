"""Where a token stands: fixed sines and cosines."""

import math

import torch
from torch import Tensor

from ..attention.rotary import scaled_places


def position_embedding(
    grid: tuple[int, int], native_grid: tuple[int, int], dim: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Fixed sines and cosines of the places of (h, w) tokens, row by row: (h * w, dim), made in float64.

    The first half of the channels tells the column, the second half the row; in each half, sines before cosines of
    `place * 10000 ** (-4 i / dim)`. Another grid than the native one is scaled onto its extent: the column `x` of `w`
    stands at `x * native_w / w`. `dim` is divisible by 4.
    """

    def axis(tokens: int, native: int) -> Tensor:  # -> (tokens, dim / 2)
        places = scaled_places(tokens, native, device)
        exponents = torch.arange(dim // 4, device=device, dtype=places.dtype) / (dim // 4)
        angles = torch.outer(places, torch.exp(-math.log(10_000) * exponents))
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    (h, w), (native_h, native_w) = grid, native_grid
    columns = axis(w, native_w)[None].expand(h, w, dim // 2)
    rows = axis(h, native_h)[:, None].expand(h, w, dim // 2)
    return torch.cat([columns, rows], dim=2).reshape(h * w, dim).to(dtype)
