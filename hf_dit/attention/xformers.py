"""`xformers:full`, `xformers:swa64`: the kernels of xformers, for CUDA."""

import re

import torch
from torch import Tensor

from .base import Grid, KernelAttnProcessor
from .full import FullAttnProcessor
from .sliding_window import SlidingWindowAttnProcessor


class XFormersAttnProcessor(KernelAttnProcessor):
    """Full attention, or a window of `window` tokens to each side, by xformers' `memory_efficient_attention`.

    xformers has kernels for CUDA alone, and for windows in float16 and bfloat16 alone (Ampere or newer).
    """

    forms = "xformers:full, xformers:swaW"
    kernel = "xformers"
    paper = (
        "B. Lefaudeux and others",
        "xFormers: A modular and hackable Transformer modelling library",
        "https://github.com/facebookresearch/xformers, 2022",
        None,
    )

    def __init__(self, window: int | None = None):
        super().__init__(FullAttnProcessor() if window is None else SlidingWindowAttnProcessor(window))
        self.window = window

    @classmethod
    def from_spec(cls, spec: str) -> "XFormersAttnProcessor | None":
        match = re.fullmatch(r"xformers:(?:full|swa([0-9]{1,9}))", spec)
        return match and cls(None if match[1] is None else int(match[1]))

    def bias(self):
        """xformers' attention bias: None or a `LocalAttentionFromBottomRightMask`."""
        if self.window is None:
            return None
        from xformers.ops.fmha.attn_bias import LocalAttentionFromBottomRightMask

        return LocalAttentionFromBottomRightMask(self.window, self.window)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value, attn_bias=self.bias())

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        self._require("xformers")
        if device.type != "cuda":
            raise RuntimeError(f"attention {self.spec!r}: xformers runs on CUDA alone; got device {device}")
        self._probe(device, dtype, grid, head_dim, training)
