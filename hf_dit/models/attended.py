"""Blocks whose condition is attended to: by cross-attention, or as tokens among those of the image."""

from typing import Any

from torch import Tensor, nn

from ..attention.cross import CrossAttention
from .parts import DiTBlockBase


class CrossAttentionBlock(DiTBlockBase):
    """Cross-attention (Peebles and Xie 2023, section 3.2): tokens attend to a sequence of timestep and label.

    `x += attn(norm(x)); x += cross(norm(x), condition); x += mlp(norm(x))`: the attention to the condition stands
    between the two others. The paper does not say more: here each branch has a layer norm with weights, as in ViT, and
    the condition has none.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, **options: Any):
        super().__init__(dim, heads, head_dim, **options)
        self.norm_cross = nn.LayerNorm(dim, eps=options["norm_eps"])
        self.cross_attn = CrossAttention(
            dim, heads, head_dim, options["attention_bias"], options["dropout"], options.get("qk_norm")
        )

    def forward(self, hidden_states: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        # (B, N, C), (B, 2, C) or (B, 1, C), N = h * w -> (B, N, C)
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), grid)
        hidden_states = hidden_states + self.cross_attn(self.norm_cross(hidden_states), condition)
        return hidden_states + self.ff(self.norm2(hidden_states))


class InContextBlock(DiTBlockBase):
    """In-context conditioning (Peebles and Xie 2023, section 3.2): a block of ViT, to which a condition is tokens.

    `x += attn(norm(x)); x += mlp(norm(x))`, layer norms with weights.
    """

    def forward(self, hidden_states: Tensor, condition: None, grid: tuple[int, int]) -> Tensor:
        # (B, N + 2, C) or (B, N + 1, C), nothing, N = h * w -> as hidden_states: the condition is its last tokens
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), grid)
        return hidden_states + self.ff(self.norm2(hidden_states))
