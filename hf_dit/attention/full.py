"""`full`: every token sees every token, by the attention backend of diffusers."""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from .base import DiTAttnProcessor, Grid


class FullAttnProcessor(DiTAttnProcessor):
    """Every token sees every token, by the attention backend that is set (`DiTModel.set_attention_backend`)."""

    # diffusers' `set_attention_backend` and its context parallelism write here.
    _attention_backend = None
    _parallel_config = None
    forms = "full"
    spec = "full"
    words = "every token sees all"

    @classmethod
    def from_spec(cls, spec: str) -> "FullAttnProcessor | None":
        return cls() if spec == "full" else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    def mask(self, grid: Grid) -> None:
        return None

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        # 16 tokens tell whether a backend takes device, dtype and head size; all of them would cost N x N.
        self._probe(device, dtype, (min(grid[0], 4), min(grid[1], 4)), head_dim, training)
