"""`flex:full`, `flex:swa64`, `flex:na7`: a compiled `flex_attention` that skips the empty blocks of a pattern."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DiTAttnProcessor, Grid, KernelAttnProcessor, processor_of_spec
from .full import FullAttnProcessor
from .neighborhood import NeighborhoodAttnProcessor
from .sliding_window import SlidingWindowAttnProcessor
from .windows import Window

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# The order of the tokens, its inverse and the mask; None each for what a pattern does not need.
FlexPlan = tuple[Tensor | None, Tensor | None, "BlockMask | None"]

PATTERNS = (FullAttnProcessor, SlidingWindowAttnProcessor, NeighborhoodAttnProcessor)
FLEX_COMPILATIONS = 128  # of one process
BLOCK = 128  # tokens of a side of a block


class FlexAttnProcessor(KernelAttnProcessor):
    """A pattern (`full`, `swa64`, `na7` and its like) by a compiled `flex_attention` that skips empty blocks.

    Blocks are 128 x 128 tokens. On a wide grid nearly every block of rows holds a neighbour: there, the tokens of a
    2-D pattern are put in the order of tiles of 8 x 16 tokens, and back (as attention-gym's tiled NATTEN mask does).
    On a CPU PyTorch compiles the forward alone: sampling works there, training is refused. There, fewer tokens than a
    block are filled up to one: of some numbers (72 or 120, with PyTorch 2.13) its kernel gives wrong values.
    """

    forms = "flex: with any of the first four"
    kernel = "flex"
    paper = (
        "J. Dong, B. Feng, D. Guessous, Y. Liang, H. He",
        "Flex Attention: A Programming Model for Generating Optimized Attention Kernels",
        "2024",
        "2412.05496",
    )

    def __init__(self, pattern: str):
        inner = processor_of_spec(pattern.strip(), PATTERNS)
        if inner is None:
            raise ValueError(f"pattern must be full, swaW or naK; got {pattern!r}")
        super().__init__(inner)

    @classmethod
    def from_spec(cls, spec: str) -> "FlexAttnProcessor | None":
        kernel, _, pattern = spec.partition(":")
        known = kernel == cls.kernel and processor_of_spec(pattern, PATTERNS) is not None
        return cls(pattern) if known else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        # flex_attention takes (B, heads, N, head_dim).
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        order, inverse, block_mask = flex_plan(self.pattern.spec, grid, query.device)
        if order is not None:
            query, key, value = (x[:, :, order] for x in (query, key, value))
        tokens = query.shape[2]
        filling = 0 if block_mask is None else block_mask.seq_lengths[0] - tokens
        if filling:
            query, key, value = (F.pad(x, (0, 0, 0, filling)) for x in (query, key, value))
        out = compiled_flex_attention()(query, key, value, block_mask)[:, :, :tokens]
        if order is not None:
            out = out[:, :, inverse]
        return out.transpose(1, 2)

    def check(self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        if training and device.type == "cpu":
            raise RuntimeError(
                f"attention {self.spec!r}: PyTorch has no backward of a compiled flex_attention on a CPU; "
                f"{self.pattern.spec!r} computes the same there"
            )
        # Compiles: slow, but nothing else tells whether this PyTorch and this machine can.
        self._probe(device, dtype, grid, head_dim, training)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable:
    """`flex_attention`, compiled for each shape and mask, which the blocks of a mask need.

    Past its limit (8 by default) PyTorch would run it uncompiled, with dense scores: here the limit is
    `FLEX_COMPILATIONS`, and one more is a RuntimeError.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, block_mask: "BlockMask | None") -> Tensor:
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
def flex_plan(pattern: str, grid: Grid, device: torch.device) -> FlexPlan:
    """Token order, its inverse and the `BlockMask` of a pattern; None each for what the pattern does not need.

    On a CPU the mask is of `BLOCK` tokens where there are fewer.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    processor = processor_of_spec(pattern, PATTERNS)
    tokens = grid[0] * grid[1]
    if processor is not None and device.type == "cpu" and tokens < BLOCK:
        return None, None, _one_block(processor, grid, device)
    if isinstance(processor, FullAttnProcessor):
        return None, None, None
    if isinstance(processor, SlidingWindowAttnProcessor):
        window = processor.window

        def in_window(batch, head, query, key):
            return (query - key).abs() <= window

        return None, None, create_block_mask(in_window, None, None, tokens, tokens, device=device)
    if not isinstance(processor, NeighborhoodAttnProcessor):
        raise ValueError(f"pattern must be full, swaW or naK; got {pattern!r}")
    # Whichever order leaves fewer blocks: a block of 128 is 8 x 16 tokens, or rows of a narrow grid.
    plans = [_neighborhood_plan(processor, grid, device, order) for order in (None, tile_order(grid, (8, 16)))]
    return min(plans, key=lambda plan: int(plan[2].to_dense().sum()))


def _one_block(processor: DiTAttnProcessor, grid: Grid, device: torch.device) -> "BlockMask":
    """The pattern of fewer than `BLOCK` tokens; no token sees those that fill up the block."""
    from torch.nn.attention.flex_attention import create_block_mask

    tokens, mask = grid[0] * grid[1], processor.mask(grid)
    seen = torch.zeros(BLOCK, BLOCK, dtype=torch.bool, device=device)
    seen[:tokens, :tokens] = True if mask is None else mask
    seen[tokens:, 0] = True  # a row that sees nothing could be NaN

    def in_pattern(batch, head, query, key):
        return seen[query, key]

    return create_block_mask(in_pattern, None, None, BLOCK, BLOCK, device=device)


def _neighborhood_plan(
    processor: NeighborhoodAttnProcessor, grid: Grid, device: torch.device, order: Tensor | None
) -> tuple[Tensor | None, Tensor | None, "BlockMask"]:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens = grid[0] * grid[1]
    token = torch.arange(tokens) if order is None else order
    places = token // grid[1], token % grid[1]
    rows, columns = (
        _axis_rule(window, length, place, device)
        for window, length, place in zip(processor.windows, grid, places, strict=True)
    )

    def in_neighborhood(batch, head, query, key):
        return rows(query, key) & columns(query, key)

    mask = create_block_mask(in_neighborhood, None, None, tokens, tokens, device=device)
    if order is None:
        return None, None, mask
    return order.to(device), order.argsort().to(device), mask


def _axis_rule(window: Window, length: int, place: Tensor, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Which tokens, at places (N,) of an axis, see which along it."""
    window.check_length(length)
    first, last = (torch.from_numpy(bound)[place].to(device) for bound in window.bounds_of_tokens(length))
    group, position = (place % window.dilation).to(device), (place // window.dilation).to(device)

    def seen(query: Tensor, key: Tensor) -> Tensor:
        inside = (first[query] <= position[key]) & (position[key] <= last[query])
        return inside & (group[query] == group[key]) if window.dilation > 1 else inside

    return seen
