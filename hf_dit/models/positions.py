"""Where a token stands: fixed sines and cosines."""

import math

import torch
from torch import Tensor


def position_embedding(
    grid: tuple[int, int], native_grid: tuple[int, int], dim: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Fixed sines and cosines of the places of (h, w) tokens, row by row: (h * w, dim), made in float64.

    The first half of the channels tells the column, the second half the row; in each half, sines before cosines of
    `place * 10000 ** (-4 i / dim)`. Another grid than the native one is scaled onto its extent: the column `x` of `w`
    stands at `x * native_w / w`. `dim` is divisible by 4.
    """
    float64 = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    exponents = torch.arange(dim // 4, device=device, dtype=float64) / (dim // 4)
    frequencies = torch.exp(-math.log(10_000) * exponents)

    def axis(tokens: int, native: int) -> Tensor:  # -> (tokens, dim / 2)
        angles = torch.outer(torch.arange(tokens, device=device, dtype=float64) * (native / tokens), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    (h, w), (native_h, native_w) = grid, native_grid
    columns = axis(w, native_w)[None].expand(h, w, dim // 2)
    rows = axis(h, native_h)[:, None].expand(h, w, dim // 2)
    return torch.cat([columns, rows], dim=2).reshape(h * w, dim).to(dtype)
