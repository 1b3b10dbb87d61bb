"""Attention of the tokens of an image to a few others: the condition."""

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from .layer import head_norms, normalised


class CrossAttention(nn.Module):
    """Multi-head attention of N tokens to M others of one width.

    It is no layer with a processor: `attn_processors`, `set_attn_processor` and specs speak of the self-attention
    alone, for M is 2 and there is no pattern to choose.

    Args:
        dim (`int`): width of both.
        heads (`int`), head_dim (`int`): heads and width of a head.
        bias (`bool`): of the projections to queries, keys and values; the output projection always has one.
        dropout (`float`): on the output.
        qk_norm (`str`, *optional*): as in [`DiTAttention`].
    """

    def __init__(self, dim: int, heads: int, head_dim: int, bias: bool, dropout: float, qk_norm: str | None):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.to_q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.to_k = nn.Linear(dim, heads * head_dim, bias=bias)
        self.to_v = nn.Linear(dim, heads * head_dim, bias=bias)
        self.norm_q, self.norm_k = head_norms(qk_norm, head_dim)
        self.to_out = nn.ModuleList([nn.Linear(heads * head_dim, dim), nn.Dropout(dropout)])

    def forward(self, hidden_states: Tensor, others: Tensor) -> Tensor:  # (B, N, dim), (B, M, dim) -> (B, N, dim)
        projected = (self.to_q(hidden_states), self.to_k(others), self.to_v(others))
        query, key, value = (x.unflatten(-1, (self.heads, self.head_dim)) for x in projected)
        query, key = normalised(self.norm_q, query), normalised(self.norm_k, key)
        out = dispatch_attention_fn(query, key, value).flatten(2)
        return self.to_out[1](self.to_out[0](out))
