"""The attention of a DiT block: projections whose processor says who sees whom."""

from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from .base import DiTAttnProcessor, Grid
from .full import FullAttnProcessor
from .spec import PROCESSORS


class DiTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over a grid of tokens; what it computes is up to its processor.

    Args:
        dim (`int`): width of the tokens.
        heads (`int`), head_dim (`int`): heads and width of a head.
        bias (`bool`): of the projections to queries, keys and values; the output projection always has one.
        dropout (`float`): on the output.
        processor (*optional*): a [`FullAttnProcessor`] by default.
    """

    processor: DiTAttnProcessor
    _default_processor_cls = FullAttnProcessor
    _available_processors = PROCESSORS  # the list itself: registered ones are of use too

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        bias: bool = True,
        dropout: float = 0.0,
        processor: DiTAttnProcessor | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.inner_dim = heads * head_dim
        self.use_bias = bias
        self.to_q = nn.Linear(dim, self.inner_dim, bias=bias)
        self.to_k = nn.Linear(dim, self.inner_dim, bias=bias)
        self.to_v = nn.Linear(dim, self.inner_dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, dim), nn.Dropout(dropout)])
        super().set_processor(processor if processor is not None else self._default_processor_cls())

    def forward(self, hidden_states: Tensor, grid: Grid) -> Tensor:  # (B, N, dim) -> (B, N, dim)
        return self.processor(self, hidden_states, grid)
