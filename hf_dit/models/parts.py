"""What the blocks of a DiT share, however they are conditioned."""

from typing import ClassVar

from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from ..attention.base import DiTAttnProcessor
from ..attention.layer import DiTAttention
from ..attention.rotary import AxialRotary

GATED_MULTIPLE = 8


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    # (B, N, C), (B, C), (B, C) float -> (B, N, C)
    return x * (1 + scale[:, None]) + shift[:, None]


def gated_width(dim: int, mlp_ratio: float) -> int:
    """Hidden channels of a SwiGLU: two thirds of those of a plain MLP, for it has three matrices in place of two.

    Shazeer 2020 (arXiv:2002.05202, section 2). Rounded up to a multiple of 8, which matrix products in half precision
    are fast for: what `int(2 / 3 * mlp_ratio * dim)` is for DiT-S, B and XL already; L has 2736, not 2730.
    """
    return -(-int(2 / 3 * mlp_ratio * dim) // GATED_MULTIPLE) * GATED_MULTIPLE


def feed_forward(kind: str, dim: int, mlp_ratio: float, dropout: float) -> FeedForward:
    """The MLP, (B, N, dim) -> (B, N, dim): `"gelu"` (its tanh approximation, as the paper's code) or `"swiglu"`.

    diffusers' SwiGLU has the values in the first half of its first matrix and the gates in the second; LightningDiT's
    has them the other way round.
    """
    if kind == "swiglu":
        return FeedForward(dim, inner_dim=gated_width(dim, mlp_ratio), dropout=dropout, activation_fn="swiglu")
    return FeedForward(dim, mult=mlp_ratio, dropout=dropout, activation_fn="gelu-approximate")


class DiTBlockBase(nn.Module):
    """The parts of every block: a norm and attention, a norm and an MLP.

    Attributes:
        modulated: how many vectors are made of the condition by `modulation`. A block without any has affine layer
            norms, as in ViT, for nothing else scales what they give.
    """

    modulated: ClassVar[int] = 0

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        mlp_ratio: float,
        dropout: float,
        attention_bias: bool,
        norm_eps: float,
        mlp_norm_eps: float,
        processor: DiTAttnProcessor,
        mlp: str = "gelu",
        qk_norm: str | None = None,
        rotary: AxialRotary | None = None,
    ):
        super().__init__()
        affine = not self.modulated
        if self.modulated:
            self.modulation = nn.Linear(dim, self.modulated * dim)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=affine)
        self.attn = DiTAttention(
            dim, heads, head_dim, attention_bias, dropout, processor=processor, qk_norm=qk_norm, rotary=rotary
        )
        self.norm2 = nn.LayerNorm(dim, eps=mlp_norm_eps, elementwise_affine=affine)
        self.ff = feed_forward(mlp, dim, mlp_ratio, dropout)
