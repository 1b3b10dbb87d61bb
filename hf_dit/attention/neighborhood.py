"""`na7`, `na7x5`, `na7d2`, `na7c`: 7 x 7 tokens around a token of the grid and its like, in plain PyTorch."""

import re
from typing import Any

import torch
from torch import Tensor

from .base import DiTAttnProcessor, Grid
from .local import neighborhood_attention_2d, neighborhood_mask_2d
from .windows import Window, make_windows

NUMBER = "([0-9]{1,9})"
PAIR = f"{NUMBER}(?:x{NUMBER})?"  # one for both axes, or rows x columns
SPEC = re.compile(f"na{PAIR}(?:d{PAIR})?(?:s{PAIR})?(c(?:([01])x([01]))?)?(?:/(shift|truncate))?")


class NeighborhoodAttnProcessor(DiTAttnProcessor):
    """Each token sees the `kernel_size` x `kernel_size` tokens around it ([`neighborhood_attention_2d`]).

    Specs: `na7` is 7 x 7 tokens, `na7x5` 7 rows of 5 columns; then, each where it is wanted and in this order, `d2`
    dilation, `s2` stride (of both axes, or as `d2x1` of rows and columns), `c` causal on both axes (`c1x0`: along the
    rows' axis alone), `/truncate` the boundary: `na7x5d2s2c/truncate`.

    Args: as [`neighborhood_attention_2d`] takes them.
    """

    forms = "naK, naK/truncate (K also as 7x5, and after it dilation d2, stride s2, causal c)"
    papers = (
        (
            "A. Hassani, S. Walton, J. Li, S. Li, H. Shi",
            "Neighborhood Attention Transformer",
            "CVPR 2023",
            "2204.07143",
        ),
    )

    def __init__(
        self, kernel_size: Any, boundary: str = "shift", *, dilation: Any = 1, is_causal: Any = False, stride: Any = 1
    ):
        self.windows = rows, columns = make_windows(kernel_size, boundary, dilation, is_causal, stride)
        self.boundary = boundary
        self.spec = f"na{_in_spec(rows.kernel, columns.kernel)}"
        for letter, pair in (("d", (rows.dilation, columns.dilation)), ("s", (rows.stride, columns.stride))):
            self.spec += letter + _in_spec(*pair) if pair != (1, 1) else ""
        causal = rows.is_causal, columns.is_causal
        self.spec += {(False, False): "", (True, True): "c"}.get(causal, f"c{causal[0]:d}x{causal[1]:d}")
        self.spec += "" if boundary == "shift" else f"/{boundary}"
        self.words = _window_words(rows, columns)

    @classmethod
    def from_spec(cls, spec: str) -> "NeighborhoodAttnProcessor | None":
        match = SPEC.fullmatch(spec)
        if match is None:
            return None
        kernel, dilation, stride = (
            (int(match[axis] or 1), int(match[axis + 1] or match[axis] or 1)) for axis in (1, 3, 5)
        )
        causal = (match[8] == "1", match[9] == "1") if match[8] else match[7] is not None
        return cls(kernel, match[10] or "shift", dilation=dilation, is_causal=causal, stride=stride)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of [`neighborhood_attention_2d`] beside the kernel size and the boundary."""
        rows, columns = self.windows
        return {
            "dilation": (rows.dilation, columns.dilation),
            "is_causal": (rows.is_causal, columns.is_causal),
            "stride": (rows.stride, columns.stride),
        }

    @property
    def kernel_size(self) -> int | tuple[int, int]:
        """Of both axes, or rows and columns."""
        rows, columns = self.windows
        return rows.kernel if rows.kernel == columns.kernel else (rows.kernel, columns.kernel)

    def sees_all(self, grid: Grid) -> bool:
        return all(window.sees_all(length) for window, length in zip(self.windows, grid, strict=True))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return neighborhood_attention_2d(query, key, value, grid, self.kernel_size, self.boundary, **self.options)

    def mask(self, grid: Grid) -> Tensor:
        return neighborhood_mask_2d(grid, self.kernel_size, self.boundary, **self.options)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        for window, length in zip(self.windows, grid, strict=True):
            try:
                window.check_length(length)
            except ValueError as error:
                raise RuntimeError(f"attention {self.spec!r}: {error}") from error


def _in_spec(rows: int, columns: int) -> str:
    return str(rows) if rows == columns else f"{rows}x{columns}"


def _window_words(rows: Window, columns: Window) -> str:
    """What a token sees, as a clause."""
    words = f"a token sees the {rows.kernel} x {columns.kernel} around it"
    if (rows.dilation, columns.dilation) != (1, 1):
        words += f", {rows.dilation} rows and {columns.dilation} columns apart"
    if (rows.stride, columns.stride) != (1, 1):
        words += f", the same for {rows.stride} x {columns.stride} tokens"
    causal = " and ".join(name for name, axis in (("rows", rows), ("columns", columns)) if axis.is_causal)
    return f"{words}, none of later {causal}" if causal else words
