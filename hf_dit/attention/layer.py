"""The attention of a DiT block: projections whose processor says who sees whom."""

from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from .base import DiTAttnProcessor, Grid
from .full import FullAttnProcessor
from .rotary import AxialRotary
from .spec import PROCESSORS

QK_NORM_EPS = 1e-6  # as in SD3.5, Flux and LightningDiT; that of PyTorch's default depends on the dtype


def head_norms(kind: str | None, head_dim: int) -> tuple[nn.RMSNorm | None, nn.RMSNorm | None]:
    """The norms of queries and keys over the channels of a head, each with weights of its own: `"rms_norm"`, or none.

    Zhang and Sennrich 2019 (arXiv:1910.07467, equation 4), before the dot product as in Dehghani et al. 2023
    (arXiv:2302.05442, section 2).
    """
    if kind is None:
        return None, None
    return nn.RMSNorm(head_dim, eps=QK_NORM_EPS), nn.RMSNorm(head_dim, eps=QK_NORM_EPS)


def normalised(norm: nn.RMSNorm | None, x: Tensor) -> Tensor:
    """(B, N, heads, head_dim) -> the same in the same dtype, which keeps queries and keys in that of the values.

    Autocast gives tensors of another dtype than the weights; what the norm gives then is of the wider one.
    """
    return x if norm is None else norm(x.to(norm.weight.dtype)).to(x.dtype)


class DiTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over a grid of tokens; what it computes is up to its processor.

    Args:
        dim (`int`): width of the tokens.
        heads (`int`), head_dim (`int`): heads and width of a head.
        bias (`bool`): of the projections to queries, keys and values; the output projection always has one.
        dropout (`float`): on the output.
        processor (*optional*): a [`FullAttnProcessor`] by default.
        qk_norm (`str`, *optional*): `"rms_norm"`: queries and keys are normalised over the channels of a head.
        rotary (*optional*): turns queries and keys, after their norm, by the place of their token.
    """

    processor: DiTAttnProcessor
    to_qkv: nn.Linear  # made by `fuse_projections`
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
        qk_norm: str | None = None,
        rotary: AxialRotary | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.inner_dim = heads * head_dim
        self.use_bias = bias
        self.to_q = nn.Linear(dim, self.inner_dim, bias=bias)
        self.to_k = nn.Linear(dim, self.inner_dim, bias=bias)
        self.to_v = nn.Linear(dim, self.inner_dim, bias=bias)
        self.norm_q, self.norm_k = head_norms(qk_norm, head_dim)
        self.rotary = rotary
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, dim), nn.Dropout(dropout)])
        super().set_processor(processor if processor is not None else self._default_processor_cls())

    def forward(self, hidden_states: Tensor, grid: Grid) -> Tensor:
        # (B, N, dim) -> (B, N, dim); more than N = rows * columns: the rest has no place on the grid and sees all
        return self.processor(self, hidden_states, grid)

    def project(self, hidden_states: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as they meet: (B, N, dim) -> (B, N, heads, head_dim) each, normalised and turned.

        A processor of one's own that leaves this out leaves out `qk_norm` and `position="rope"`.
        """
        if self.fused_projections:
            projected = self.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projected = (self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states))
        query, key, value = (x.unflatten(-1, (self.heads, self.head_dim)) for x in projected)
        query, key = normalised(self.norm_q, query), normalised(self.norm_k, key)
        if self.rotary is not None:
            query, key = self.rotary(query, grid), self.rotary(key, grid)
        return query, key, value
