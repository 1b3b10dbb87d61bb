"""`natten:na7`: the kernels of NATTEN."""

from typing import Any

import torch
from torch import Tensor

from .base import Grid, KernelAttnProcessor
from .neighborhood import NeighborhoodAttnProcessor


class NattenAttnProcessor(KernelAttnProcessor):
    """Windows of [`NeighborhoodAttnProcessor`] that are moved inwards at the border, by NATTEN's `na2d`.

    NATTEN takes kernels from 2 to the length of the axis. On a CPU it computes dense scores, for sampling alone and
    for heads of 8, 16, ... 512 channels: a check of the pattern, no faster than full attention.
    """

    forms = "natten: with naK"
    kernel = "natten"
    paper = (
        "A. Hassani, W.-M. Hwu, H. Shi",
        "Faster Neighborhood Attention: Reducing the O(n^2) Cost of Self Attention at the Threadblock Level",
        "NeurIPS 2024",
        "2403.04690",
    )
    pattern: NeighborhoodAttnProcessor

    def __init__(self, kernel_size: Any, **options: Any):
        super().__init__(NeighborhoodAttnProcessor(kernel_size, **options))
        if self.pattern.boundary != "shift":
            raise ValueError(f"boundary must be shift, as NATTEN has it; got {self.pattern.boundary!r}")

    @property
    def kernel_size(self) -> int | tuple[int, int]:
        """Of both axes, or rows and columns."""
        return self.pattern.kernel_size

    @classmethod
    def from_spec(cls, spec: str) -> "NattenAttnProcessor | None":
        kernel, _, pattern = spec.partition(":")
        inner = NeighborhoodAttnProcessor.from_spec(pattern) if kernel == cls.kernel else None
        if inner is None or inner.boundary != "shift":
            return None
        return cls(inner.kernel_size, **inner.options)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        from natten import na2d

        query, key, value = (x.unflatten(1, grid) for x in (query, key, value))
        # It would choose none by itself for windows that are the whole grid.
        on_cpu = {"attention_kwargs": {"backend": "flex-fmha"}} if query.device.type == "cpu" else {}
        kernel_size = tuple(window.kernel for window in self.pattern.windows)
        return na2d(query, key, value, kernel_size=kernel_size, **self.pattern.options, **on_cpu).flatten(1, 2)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        self._require("natten")
        if any(window.kernel * window.dilation > n for window, n in zip(self.pattern.windows, grid, strict=True)):
            raise RuntimeError(f"attention {self.spec!r}: NATTEN takes no kernel larger than the grid; got {grid}")
        if min(window.kernel for window in self.pattern.windows) < 2:
            raise RuntimeError(f"attention {self.spec!r}: NATTEN takes no kernel of 1")
        self._probe(device, dtype, grid, head_dim, training)
