"""Where a token stands, told to its queries and keys by a rotation; and tables of positions that are kept."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Grid
from .kept import is_traced

THETA = 10_000.0  # of RoFormer (Su et al. 2021, arXiv:2104.09864, section 3.2.2), and of every DiT with rotations


def scaled_places(tokens: int, native: int, device: torch.device) -> Tensor:
    """Where the tokens of an axis stand, (tokens,) float64: another size is scaled onto the native extent.

    Token `x` of `tokens` stands at `x * native / tokens`. MPS, which has no float64, gets float32.
    """
    float64 = torch.float32 if device.type == "mps" else torch.float64
    return torch.arange(tokens, device=device, dtype=float64) * (native / tokens)


class KeptTable:
    """`make(grid, device=, dtype=)`, whose last result is kept.

    Not a buffer: that would lose digits in `.to(bfloat16)` and come back empty from the meta device.
    """

    def __init__(self, make: Callable[..., Tensor]):
        self.make = make
        self.last: tuple[tuple, Tensor] | None = None

    def __call__(self, grid: Grid, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        # A graph must not keep a tensor that it made; it is cheap to make again.
        if torch.compiler.is_compiling() or is_traced():
            return self.make(grid, device=device, dtype=dtype)
        key = (grid, device, dtype)
        last = self.last  # another thread may set it to that of another grid meanwhile
        if last is None or last[0] != key:
            self.last = last = (key, self.make(grid, device=device, dtype=dtype))
        return last[1]


class AxialRotary:
    """Axial rotary positions: a half of a head's channels is turned by the row, the other half by the column.

    In each half of width D = head_dim / 2, the pair of neighbouring channels (2 i, 2 i + 1) of a token at place p is
    turned by `p * 10000 ** (-2 i / D)` (Su et al. 2021, equations 13 to 15, once for each axis). Order of the axes and
    pairs are LightningDiT's (Yao et al. 2025, arXiv:2501.01423), as is the rule for another grid than the native one,
    which is that of the sin-cos table too: [`scaled_places`].

    Args:
        head_dim: channels of a head, divisible by 4.
        native_grid: rows and columns of tokens of a training sample.
    """

    def __init__(self, head_dim: int, native_grid: Grid):
        self.head_dim, self.native_grid = head_dim, native_grid
        self.table = KeptTable(self._table)

    def __call__(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, N or more, heads, head_dim) float -> the same shape and dtype, turned; N = rows * columns of `grid`.

        Tokens after the first N have no place, and stay as they are. Computed in float32 at least.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = self.table(grid, device=x.device, dtype=wide).unbind(0)
        more = x.shape[1] - cos.shape[0]
        cos, sin = F.pad(cos, (0, 0, 0, more), value=1.0)[:, None], F.pad(sin, (0, 0, 0, more))[:, None]
        first, second = x.to(wide).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2).to(x.dtype)

    def _table(self, grid: Grid, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        # -> (2, N, head_dim / 2): cosines and sines of the angle of each pair
        width = self.head_dim // 2  # of an axis
        axes = [scaled_places(n, native, device) for n, native in zip(grid, self.native_grid, strict=True)]
        exponents = torch.arange(0, width, 2, device=device, dtype=axes[0].dtype) / width
        rows, columns = (torch.outer(places, THETA**-exponents) for places in axes)
        angles = torch.cat(
            [rows[:, None].expand(*grid, width // 2), columns[None].expand(*grid, width // 2)], dim=2
        ).flatten(0, 1)
        return torch.stack([angles.cos(), angles.sin()]).to(dtype)
