"""`natten:na7`: the kernels of NATTEN."""

import re

import torch
from torch import Tensor

from .base import Grid, KernelAttnProcessor
from .neighborhood import NeighborhoodAttnProcessor


class NattenAttnProcessor(KernelAttnProcessor):
    """`kernel_size` x `kernel_size` neighbourhood, windows moved inwards at the border, by NATTEN's `na2d`."""

    forms = "natten:naK"
    kernel = "natten"
    paper = (
        "A. Hassani, W.-M. Hwu, H. Shi",
        "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
        "NeurIPS 2024",
        "2403.04690",
    )

    def __init__(self, kernel_size: int):
        super().__init__(NeighborhoodAttnProcessor(kernel_size))
        self.kernel_size = kernel_size

    @classmethod
    def from_spec(cls, spec: str) -> "NattenAttnProcessor | None":
        match = re.fullmatch(r"natten:na([0-9]{1,9})(?:/shift)?", spec)
        return match and cls(int(match[1]))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        from natten import na2d

        query, key, value = (x.unflatten(1, grid) for x in (query, key, value))
        return na2d(query, key, value, kernel_size=(self.kernel_size, self.kernel_size)).flatten(1, 2)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        self._require("natten")
        if self.kernel_size > min(grid):
            raise RuntimeError(f"attention {self.spec!r}: NATTEN takes no kernel larger than the grid; got {grid}")
        self._probe(device, dtype, grid, head_dim, training)
