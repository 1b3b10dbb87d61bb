"""`na7`, `na7/truncate`: 7 x 7 tokens around a token of the grid, in plain PyTorch."""

import re

from torch import Tensor

from .base import DiTAttnProcessor, Grid
from .local import checked_kernel, neighborhood_attention_2d, neighborhood_mask_2d


class NeighborhoodAttnProcessor(DiTAttnProcessor):
    """Each token sees the `kernel_size` x `kernel_size` tokens around it ([`neighborhood_attention_2d`])."""

    forms = "naK, naK/truncate"
    papers = (
        (
            "A. Hassani, S. Walton, J. Li, S. Li, H. Shi",
            "Neighborhood Attention Transformer",
            "CVPR 2023",
            "2204.07143",
        ),
    )

    def __init__(self, kernel_size: int, boundary: str = "shift"):
        self.kernel_size = kernel_size = checked_kernel(kernel_size, boundary)
        self.boundary = boundary
        self.spec = f"na{kernel_size}" + ("" if boundary == "shift" else f"/{boundary}")
        self.words = f"a token sees the {kernel_size} x {kernel_size} around it"

    @classmethod
    def from_spec(cls, spec: str) -> "NeighborhoodAttnProcessor | None":
        match = re.fullmatch(r"na([0-9]{1,9})(?:/(shift|truncate))?", spec)
        return match and cls(int(match[1]), match[2] or "shift")

    def sees_all(self, grid: Grid) -> bool:
        return all(self.kernel_size >= (2 * n - 1 if self.boundary == "truncate" else n) for n in grid)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return neighborhood_attention_2d(query, key, value, grid, self.kernel_size, self.boundary)

    def mask(self, grid: Grid) -> Tensor:
        return neighborhood_mask_2d(grid, self.kernel_size, self.boundary)
