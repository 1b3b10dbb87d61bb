"""`swa64`: tokens at most 64 away in row-major order, in plain PyTorch."""

import re

from torch import Tensor

from .base import DiTAttnProcessor, Grid
from .local import checked_whole_number, window_attention_1d, window_mask_1d


class SlidingWindowAttnProcessor(DiTAttnProcessor):
    """Each token sees those at most `window` before or after it in row-major order ([`window_attention_1d`])."""

    forms = "swaW"
    papers = (
        (
            "I. Beltagy, M. E. Peters, A. Cohan",
            "Longformer: The Long-Document Transformer",
            "2020 (sliding windows)",
            "2004.05150",
        ),
    )

    def __init__(self, window: int):
        self.window = window = checked_whole_number("window", window, 0)
        self.spec = f"swa{window}"
        self.words = f"a token sees those at most {window} away in row-major order"

    @classmethod
    def from_spec(cls, spec: str) -> "SlidingWindowAttnProcessor | None":
        match = re.fullmatch(r"swa([0-9]{1,9})", spec)  # of more digits than any grid has tokens
        return match and cls(int(match[1]))

    def sees_all(self, grid: Grid) -> bool:
        return self.window >= grid[0] * grid[1] - 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return window_attention_1d(query, key, value, self.window)

    def mask(self, grid: Grid) -> Tensor:
        return window_mask_1d(grid[0] * grid[1], self.window)
