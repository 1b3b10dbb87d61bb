"""Blocks whose condition shifts and scales what the layer norms give: adaLN and adaLN-Zero."""

from torch import Tensor

from .parts import DiTBlockBase, modulate


class DiTBlock(DiTBlockBase):
    """adaLN-Zero (Peebles and Xie 2023, section 3.2): shift, scale and gate of both branches from the condition.

    `x += gate * branch((1 + scale) * norm(x) + shift)`; all six are zero at first, which makes the block the identity.
    """

    modulated = 6

    def forward(self, hidden_states: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        # (B, N, C), (B, C) after its SiLU, N = h * w -> (B, N, C)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        attended = self.attn(modulate(self.norm1(hidden_states), shift1, scale1), grid)
        hidden_states = hidden_states + gate1[:, None] * attended
        return hidden_states + gate2[:, None] * self.ff(modulate(self.norm2(hidden_states), shift2, scale2))


class AdaLNBlock(DiTBlockBase):
    """adaLN (Peebles and Xie 2023, section 3.2): shift and scale of both branches from the condition, and no gates.

    `x += branch((1 + scale) * norm(x) + shift)`.
    """

    modulated = 4

    def forward(self, hidden_states: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        # (B, N, C), (B, C) after its SiLU, N = h * w -> (B, N, C)
        shift1, scale1, shift2, scale2 = self.modulation(condition).chunk(4, dim=1)
        hidden_states = hidden_states + self.attn(modulate(self.norm1(hidden_states), shift1, scale1), grid)
        return hidden_states + self.ff(modulate(self.norm2(hidden_states), shift2, scale2))
