"""Self-attention of the DiT and its processors: a *pattern* (who sees whom) and the call that computes it.

| spec | processor | sees |
| --- | --- | --- |
| `full` | [`FullAttnProcessor`] | every token; the kernel is diffusers' attention backend (`set_attention_backend`) |
| `swa64` | [`SlidingWindowAttnProcessor`] | tokens at most 64 away in row-major order |
| `na7`, `na7/truncate` | [`NeighborhoodAttnProcessor`] | 7 x 7 tokens around it on the grid |
| `xformers:full`, `xformers:swa64` | [`XFormersAttnProcessor`] | the same, by xformers' kernels (CUDA) |
| `flex:full`, `flex:swa64`, `flex:na7` | [`FlexAttnProcessor`] | the same, by a compiled `flex_attention` |
| `natten:na7` | [`NattenAttnProcessor`] | the same, by NATTEN's kernels |

A spec names one item for all layers, or items with counts, first layer first: `na7*11,full`.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from .local import (
    check_kernel,
    check_whole_number,
    neighborhood_attention_2d,
    neighborhood_mask_2d,
    window_attention_1d,
    window_mask_1d,
)
from .tiles import window_bounds

Grid = tuple[int, int]  # rows and columns of tokens

FLEX_COMPILATIONS = 128  # of one process


class DiTAttnProcessor:
    """Base of the processors: projections around [`attend`], which a subclass defines.

    Foreign processors need none of this but `__call__`; a model saves the attention of this module's processors alone.
    """

    spec: str

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        """(B, N, heads, head_dim) each -> (B, N, heads, head_dim); N = rows * columns of `grid`, row-major."""
        raise NotImplementedError

    def mask(self, grid: Grid) -> Tensor | None:
        """(N, N) bool, True where a query (row) sees a key (column); None where each sees all."""
        raise NotImplementedError

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        """Raises an ImportError or RuntimeError if the kernel cannot run, backward included if `training`."""

    def __call__(self, attn: "DiTAttention", hidden_states: Tensor, grid: Grid) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        if attn.fused_projections:
            projected = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projected = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        query, key, value = (x.unflatten(-1, (attn.heads, attn.head_dim)) for x in projected)
        out = self.attend(query, key, value, grid).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))

    def _probe(self, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        """Runs the kernel once on one head, backward included if `training`; its refusal becomes a RuntimeError."""
        shape = (1, grid[0] * grid[1], 1, head_dim)
        tensors = [torch.zeros(shape, device=device, dtype=dtype, requires_grad=training) for _ in range(3)]
        try:
            with torch.set_grad_enabled(training):
                out = self.attend(*tensors, grid)
                if training:
                    out.sum().backward()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            use = "training" if training else "sampling"
            raise RuntimeError(
                f"attention {self.spec!r} cannot run for {use} on {device} in {dtype} with head_dim={head_dim}, "
                f"grid={grid}: {error}"
            ) from error


class FullAttnProcessor(DiTAttnProcessor):
    """Every token sees every token, by the attention backend that is set (`DiTModel.set_attention_backend`)."""

    # diffusers' `set_attention_backend` and its context parallelism write here.
    _attention_backend = None
    _parallel_config = None
    spec = "full"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )

    def mask(self, grid: Grid) -> None:
        return None

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        # 16 tokens tell whether a backend takes device, dtype and head size; all of them would cost N x N.
        self._probe(device, dtype, (min(grid[0], 4), min(grid[1], 4)), head_dim, training)


class SlidingWindowAttnProcessor(DiTAttnProcessor):
    """Each token sees those at most `window` before or after it in row-major order ([`window_attention_1d`])."""

    def __init__(self, window: int):
        check_whole_number("window", window, 0)
        self.window = window
        self.spec = f"swa{window}"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return window_attention_1d(query, key, value, self.window)

    def mask(self, grid: Grid) -> Tensor:
        return window_mask_1d(grid[0] * grid[1], self.window)


class NeighborhoodAttnProcessor(DiTAttnProcessor):
    """Each token sees the `kernel_size` x `kernel_size` tokens around it ([`neighborhood_attention_2d`])."""

    def __init__(self, kernel_size: int, boundary: str = "shift"):
        check_kernel(kernel_size, boundary)
        self.kernel_size = kernel_size
        self.boundary = boundary
        self.spec = f"na{kernel_size}" + ("" if boundary == "shift" else f"/{boundary}")

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        return neighborhood_attention_2d(query, key, value, grid, self.kernel_size, self.boundary)

    def mask(self, grid: Grid) -> Tensor:
        return neighborhood_mask_2d(grid, self.kernel_size, self.boundary)


class XFormersAttnProcessor(DiTAttnProcessor):
    """Full attention, or a window of `window` tokens to each side, by xformers' `memory_efficient_attention`.

    xformers has kernels for CUDA alone, and for windows in float16 and bfloat16 alone (Ampere or newer).
    """

    def __init__(self, window: int | None = None):
        if window is not None:
            check_whole_number("window", window, 0)
        self.window = window
        self.spec = "xformers:full" if window is None else f"xformers:swa{window}"

    def bias(self):
        """xformers' attention bias: None or a `LocalAttentionFromBottomRightMask`."""
        if self.window is None:
            return None
        from xformers.ops.fmha.attn_bias import LocalAttentionFromBottomRightMask

        return LocalAttentionFromBottomRightMask(self.window, self.window)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        from xformers.ops import memory_efficient_attention

        return memory_efficient_attention(query, key, value, attn_bias=self.bias())

    def mask(self, grid: Grid) -> Tensor | None:
        return None if self.window is None else window_mask_1d(grid[0] * grid[1], self.window)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        _require("xformers", self.spec)
        if device.type != "cuda":
            raise RuntimeError(f"attention {self.spec!r}: xformers runs on CUDA alone; got device {device}")
        self._probe(device, dtype, grid, head_dim, training)


class FlexAttnProcessor(DiTAttnProcessor):
    """A pattern (`full`, `swa64`, `na7`, `na7/truncate`) by a compiled `flex_attention` that skips empty blocks.

    Blocks are 128 x 128 tokens. On a wide grid nearly every block of rows holds a neighbour: there, the tokens of a
    2-D pattern are put in the order of tiles of 8 x 16 tokens, and back (as attention-gym's tiled NATTEN mask does).
    On a CPU PyTorch compiles the forward alone: sampling works there, training is refused.
    """

    def __init__(self, pattern: str):
        inner = parse_attn_item(pattern)
        if not isinstance(inner, FullAttnProcessor | SlidingWindowAttnProcessor | NeighborhoodAttnProcessor):
            raise ValueError(f"pattern must be full, swaW, naK or naK/truncate; got {pattern!r}")
        self.pattern = inner
        self.spec = f"flex:{inner.spec}"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        # flex_attention takes (B, heads, N, head_dim).
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        order, inverse, block_mask = flex_plan(self.pattern.spec, grid, query.device)
        if order is not None:
            query, key, value = (x[:, :, order] for x in (query, key, value))
        out = compiled_flex_attention()(query, key, value, block_mask)
        if order is not None:
            out = out[:, :, inverse]
        return out.transpose(1, 2)

    def mask(self, grid: Grid) -> Tensor | None:
        return self.pattern.mask(grid)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        if training and device.type == "cpu":
            raise RuntimeError(
                f"attention {self.spec!r}: PyTorch has no backward of a compiled flex_attention on a CPU; "
                f"{self.pattern.spec!r} computes the same there"
            )
        # Compiles: slow, but nothing else tells whether this PyTorch and this machine can.
        self._probe(device, dtype, grid, head_dim, training)


class NattenAttnProcessor(DiTAttnProcessor):
    """`kernel_size` x `kernel_size` neighbourhood, windows moved inwards at the border, by NATTEN's `na2d`."""

    def __init__(self, kernel_size: int):
        check_kernel(kernel_size, "shift")
        self.kernel_size = kernel_size
        self.spec = f"natten:na{kernel_size}"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        from natten import na2d

        query, key, value = (x.unflatten(1, grid) for x in (query, key, value))
        return na2d(query, key, value, kernel_size=(self.kernel_size, self.kernel_size)).flatten(1, 2)

    def mask(self, grid: Grid) -> Tensor:
        return neighborhood_mask_2d(grid, self.kernel_size, "shift")

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        _require("natten", self.spec)
        if self.kernel_size > min(grid):
            raise RuntimeError(f"attention {self.spec!r}: NATTEN takes no kernel larger than the grid; got {grid}")
        self._probe(device, dtype, grid, head_dim, training)


def _require(package: str, spec: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise ImportError(f"attention {spec!r} needs {package}: pip install {package}") from error


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable:
    """`flex_attention`, compiled for each shape and mask, which the blocks of a mask need.

    Past its limit (8 by default) PyTorch would run it uncompiled, with dense scores: here the limit is
    `FLEX_COMPILATIONS`, and one more is a RuntimeError.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, block_mask) -> Tensor:
        if torch.compiler.is_compiling():  # becomes a part of the graph around it
            return flex_attention(query, key, value, block_mask=block_mask)
        try:
            with torch._dynamo.config.patch(recompile_limit=FLEX_COMPILATIONS):
                return compiled(query, key, value, block_mask=block_mask)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"flex_attention has been compiled {FLEX_COMPILATIONS} times in this process"
            ) from error

    return attend


def tile_order(grid: Grid, tile: Grid) -> Tensor:
    """The tokens of a row-major grid, tile after tile and row-major in each; (N,) int64."""
    rows, columns = torch.arange(grid[0]), torch.arange(grid[1])
    place = torch.stack(  # sorted by the first key first
        torch.broadcast_tensors(
            (rows // tile[0])[:, None], (columns // tile[1])[None, :], (rows % tile[0])[:, None], columns[None, :]
        ),
        dim=-1,
    ).flatten(0, 1)
    weights = torch.tensor([grid[0] * grid[1] * grid[1] * tile[0], grid[1] * tile[0], grid[1], 1])
    return (place * weights).sum(-1).argsort()


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept is for training too
def flex_plan(pattern: str, grid: Grid, device: torch.device):
    """Token order, its inverse and the `BlockMask` of a pattern; None each for what the pattern does not need."""
    from torch.nn.attention.flex_attention import create_block_mask

    processor = parse_attn_item(pattern)
    tokens = grid[0] * grid[1]
    if isinstance(processor, FullAttnProcessor):
        return None, None, None
    if isinstance(processor, SlidingWindowAttnProcessor):
        window = processor.window

        def in_window(batch, head, query, key):
            return (query - key).abs() <= window

        return None, None, create_block_mask(in_window, None, None, tokens, tokens, device=device)
    # Whichever order leaves fewer blocks: a block of 128 is 8 x 16 tokens, or rows of a narrow grid.
    plans = [_neighborhood_plan(processor, grid, device, order) for order in (None, tile_order(grid, (8, 16)))]
    return min(plans, key=lambda plan: int(plan[2].to_dense().sum()))


def _neighborhood_plan(processor: NeighborhoodAttnProcessor, grid: Grid, device: torch.device, order: Tensor | None):
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = grid[0] * grid[1]
    token = torch.arange(tokens) if order is None else order
    row, column = token // grid[1], token % grid[1]
    bounds = (window_bounds(n, processor.kernel_size, processor.boundary) for n in grid)
    (first_row, last_row), (first_column, last_column) = bounds
    row_key, column_key = row.to(device), column.to(device)
    top, bottom = first_row[row].to(device), last_row[row].to(device)
    left, right = first_column[column].to(device), last_column[column].to(device)

    def in_neighborhood(batch, head, query, key):
        inside_rows = (top[query] <= row_key[key]) & (row_key[key] <= bottom[query])
        return inside_rows & (left[query] <= column_key[key]) & (column_key[key] <= right[query])

    mask = create_block_mask(in_neighborhood, None, None, tokens, tokens, device=device)
    if order is None:
        return None, None, mask
    return order.to(device), order.argsort().to(device), mask


class DiTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over a grid of tokens; what it computes is up to its processor.

    Args:
        dim (`int`): width of the tokens.
        heads (`int`), head_dim (`int`): heads and width of a head.
        bias (`bool`): of the projections to queries, keys and values; the output projection always has one.
        dropout (`float`): on the output.
        processor (*optional*): a [`FullAttnProcessor`] by default.
    """

    _default_processor_cls = FullAttnProcessor
    _available_processors = [
        FullAttnProcessor,
        SlidingWindowAttnProcessor,
        NeighborhoodAttnProcessor,
        XFormersAttnProcessor,
        FlexAttnProcessor,
        NattenAttnProcessor,
    ]

    def __init__(
        self, dim: int, heads: int, head_dim: int, bias: bool = True, dropout: float = 0.0, processor=None
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
        self.set_processor(processor if processor is not None else self._default_processor_cls())

    def forward(self, hidden_states: Tensor, grid: Grid) -> Tensor:  # (B, N, dim) -> (B, N, dim)
        return self.processor(self, hidden_states, grid)


_ITEM = re.compile(r"(?:(xformers|flex|natten):)?(?:(full)|swa(\d+)|na(\d+)(?:/(shift|truncate))?)")


def parse_attn_item(item: str) -> DiTAttnProcessor:
    """The processor that one item of a spec names (`"na7/truncate"`); a `ValueError` says what is allowed."""
    match = _ITEM.fullmatch(item.strip())
    if match:
        kernel, full, window, size, boundary = match.groups()
        if kernel is None:
            if full:
                return FullAttnProcessor()
            if window:
                return SlidingWindowAttnProcessor(int(window))
            return NeighborhoodAttnProcessor(int(size), boundary or "shift")
        if kernel == "xformers" and not size:
            return XFormersAttnProcessor(int(window) if window else None)
        if kernel == "flex":
            return FlexAttnProcessor(item.strip().removeprefix("flex:"))
        if kernel == "natten" and size and boundary != "truncate":
            return NattenAttnProcessor(int(size))
    raise ValueError(
        f"attention item {item!r} is not known; allowed are full, swaW, naK, naK/truncate (W, K whole numbers), "
        "xformers:full, xformers:swaW, flex: with any of the first four, natten:naK"
    )


def make_attn_processors(spec: str, num_layers: int) -> list[DiTAttnProcessor]:
    """A processor for each layer.

    Args:
        spec (`str`): `"na7"` (every layer), or items with counts that add up to the layers: `"na7*11,full"`.
        num_layers (`int`): of the model.

    Raises:
        ValueError: an item or a count is malformed, or the counts do not add up to `num_layers`.
    """
    items = spec.split(",")
    if len(items) == 1 and "*" not in spec:
        return [parse_attn_item(spec) for _ in range(num_layers)]
    processors = []
    for item in items:
        name, star, count = item.partition("*")
        if star and not count.strip().isdecimal():
            raise ValueError(f"attention {spec!r}: the count of {item!r} must be a whole number")
        processors += [parse_attn_item(name) for _ in range(int(count) if star else 1)]
    if len(processors) != num_layers:
        raise ValueError(f"attention {spec!r} names {len(processors)} layers; the model has {num_layers}")
    return processors


def format_attn_spec(processors: Sequence) -> str | None:
    """The spec that [`make_attn_processors`] takes; None if one of them is no processor of this module.

    A subclass is foreign too: it may compute something else than the spec that it inherits says.
    """
    if not all(type(processor) in DiTAttention._available_processors for processor in processors):
        return None
    runs: list[list] = []
    for processor in processors:
        if runs and runs[-1][0] == processor.spec:
            runs[-1][1] += 1
        else:
            runs.append([processor.spec, 1])
    if len(runs) == 1:
        return runs[0][0]
    return ",".join(spec if count == 1 else f"{spec}*{count}" for spec, count in runs)
