"""The block of a DiT."""

from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from ..attention.base import DiTAttnProcessor
from ..attention.layer import DiTAttention


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    # (B, N, C), (B, C), (B, C) float -> (B, N, C)
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """A transformer block with adaLN-Zero (section 3.2): shift, scale and gate of both branches from the condition."""

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
    ):
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.attn = DiTAttention(dim, heads, head_dim, bias=attention_bias, dropout=dropout, processor=processor)
        self.norm2 = nn.LayerNorm(dim, eps=mlp_norm_eps, elementwise_affine=False)
        self.ff = FeedForward(dim, mult=mlp_ratio, dropout=dropout, activation_fn="gelu-approximate")

    def forward(self, hidden_states: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        # (B, N, C), (B, C) after its SiLU, N = h * w -> (B, N, C)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        attended = self.attn(modulate(self.norm1(hidden_states), shift1, scale1), grid)
        hidden_states = hidden_states + gate1[:, None] * attended
        return hidden_states + gate2[:, None] * self.ff(modulate(self.norm2(hidden_states), shift2, scale2))
