"""Attention of tiles of queries to their rectangles of keys (`tiles.py`), computed in two ways.

`batched_attention`: one call of PyTorch's `scaled_dot_product_attention` over all tiles of all heads; any device and
dtype, differentiated by autograd, on a CPU any number of times.

`HeadwiseAttention`: one head after the other in the same few buffers, which stay in a CPU's cache. PyTorch's fused CPU
kernel is made for long sequences: on tiles of 16 queries, batched matrix products are faster, and the gradients of
overlapping rectangles are added up as a few slices and not token by token. Heads are divided among threads, or the
operations are, by what is faster at the time (`threads.py`). For float32 and float64 on a CPU;
differentiable any number of times (the first of several derivatives in more time and memory) and under `vmap`.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused import attention_gradients, fused_attention, raise_forward_mode
from .threads import share_pieces
from .tiles import Plan, places_of_plan

# Scores that are computed at a time: about 1 MB in float32.
CHUNK = 320_000


def batched_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: Plan, mask: Tensor, scale: float | None
) -> Tensor:
    """(B, N, H, D) each -> (B, N, H, D); `mask` is the plan's [`tile_mask`]."""
    rows, columns = plan.rows, plan.columns
    batch, _, heads, dim = query.shape

    def to_rectangles(x: Tensor) -> Tensor:  # (B, N, H, D) -> (B * H, tiles, keys of a rectangle, D), views of strips
        x = x.reshape(batch, rows.length, columns.length, heads, dim).permute(0, 3, 1, 2, 4)
        right = columns.padded - columns.length + columns.after
        x = F.pad(x, (0, 0, columns.before, right, 0, rows.padded - rows.length))
        strips = x.unfold(3, columns.keys, columns.tile)  # (B, H, rows, strips, D, keys of a row)
        strips = strips.permute(0, 1, 3, 2, 5, 4).reshape(
            batch * heads, columns.tiles * rows.padded, columns.keys, dim
        )
        strips = F.pad(strips, (0, 0, 0, 0, rows.before, rows.after))
        rectangles = strips.unfold(1, rows.keys, rows.tile)  # (B * H, tiles, keys of a row, D, rows of keys)
        return rectangles.permute(0, 1, 4, 2, 3).flatten(2, 3)

    tiles = query.reshape(batch, rows.length, columns.length, heads, dim)
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, columns.padded - columns.length, 0, rows.padded - rows.length))
    tiles = tiles.view(batch, rows.tiles, rows.tile, columns.tiles, columns.tile, heads, dim)
    tiles = tiles.permute(0, 5, 3, 1, 2, 4, 6).reshape(batch * heads, plan.tiles, plan.queries, dim)

    out = fused_attention(tiles, to_rectangles(key), to_rectangles(value), mask[None], scale)
    out = out.view(batch, heads, columns.tiles, rows.tiles, rows.tile, columns.tile, dim)
    out = out.permute(0, 3, 4, 2, 5, 1, 6).reshape(batch, rows.padded, columns.padded, heads, dim)
    return out[:, : rows.length, : columns.length].flatten(1, 2)


class _Buffers:
    """The layouts of one head of a plan, and how tokens (rows, columns, D) get into them and out again."""

    def __init__(self, plan: Plan, like: Tensor):
        self.plan = plan
        self.like = like
        self.dim = like.shape[-1]
        columns = plan.columns
        # Tokens and margins, which stay 0; and the same of gradients.
        self.wide = like.new_zeros(plan.rows.length, columns.before + columns.padded + columns.after, self.dim)
        self.sums: Tensor | None = None

    def tiles(self) -> Tensor:
        return self.like.new_empty(self.plan.tiles, self.plan.queries, self.dim)

    def strips(self) -> Tensor:
        """What is before, between and behind the strips is 0."""
        rows = self.plan.rows
        strips = self.like.new_empty(self.plan.strip_rows, self.plan.columns.keys, self.dim)
        if rows.padded != rows.length:
            return strips.zero_()
        strips[: rows.before].zero_()
        strips[len(strips) - rows.after :].zero_()
        return strips

    def _as_grid(self, tiles: Tensor) -> Tensor:
        """A view of tiles: (row tiles, rows of a tile, column tiles, columns of a tile, D)."""
        rows, columns = self.plan.rows, self.plan.columns
        return tiles.view(columns.tiles, rows.tiles, rows.tile, columns.tile, self.dim).permute(1, 2, 0, 3, 4)

    @property
    def _is_padded(self) -> bool:
        return any(axis.padded != axis.length for axis in (self.plan.rows, self.plan.columns))

    def fill_tiles(self, tiles: Tensor, tokens: Tensor) -> None:
        rows, columns = self.plan.rows, self.plan.columns
        if self._is_padded:
            tokens = F.pad(tokens, (0, 0, 0, columns.padded - columns.length, 0, rows.padded - rows.length))
        grid = tokens.unflatten(1, (columns.tiles, columns.tile)).unflatten(0, (rows.tiles, rows.tile))
        self._as_grid(tiles).copy_(grid)

    def read_tiles(self, tiles: Tensor, tokens: Tensor, scale: float = 1.0) -> None:
        """The transpose of `fill_tiles`, times `scale`."""
        rows, columns = self.plan.rows, self.plan.columns
        grid = self._as_grid(tiles)
        if self._is_padded:
            grid = grid.reshape(rows.padded, columns.padded, self.dim)
            grid = grid[: rows.length, : columns.length]
        else:
            tokens = tokens.unflatten(1, (columns.tiles, columns.tile)).unflatten(0, (rows.tiles, rows.tile))
        if scale == 1:
            tokens.copy_(grid)
        else:
            torch.mul(grid, scale, out=tokens)

    def _body(self, strips: Tensor) -> Tensor:
        """A view of the strips without what fills them up: (strips, rows, keys of a row, D)."""
        rows, columns = self.plan.rows, self.plan.columns
        body = strips[rows.before : rows.before + columns.tiles * rows.padded]
        return body.view(columns.tiles, rows.padded, columns.keys, self.dim)[:, : rows.length]

    def _columns_of_strips(self, wide: Tensor, first: int, count: int) -> Tensor:
        """A view of `wide`: columns `first` to `first + count - 1` of each strip; (strips, rows, count, D)."""
        columns = self.plan.columns
        shape = (columns.tiles, self.plan.rows.length, count, self.dim)
        stride = (columns.tile * self.dim, wide.stride(0), self.dim, 1)
        return wide.as_strided(shape, stride, first * self.dim)

    def fill_strips(self, strips: Tensor, tokens: Tensor) -> None:
        columns = self.plan.columns
        self.wide[:, columns.before : columns.before + columns.length] = tokens
        self._body(strips).copy_(self._columns_of_strips(self.wide, 0, columns.keys))

    def add_up_strips(self, strips: Tensor, tokens: Tensor, scale: float = 1.0) -> None:
        """The transpose of `fill_strips`, times `scale`: a token gets the sum over the strips that hold it."""
        columns = self.plan.columns
        body = self._body(strips)
        self.sums = torch.zeros_like(self.wide) if self.sums is None else self.sums.zero_()
        for first in range(0, columns.keys, columns.tile):  # slices of strips that do not overlap
            count = min(columns.tile, columns.keys - first)
            self._columns_of_strips(self.sums, first, count).add_(body[:, :, first : first + count])
        torch.mul(self.sums[:, columns.before : columns.before + columns.length], scale, out=tokens)

    def rectangles(self, strips: Tensor, begin: int, end: int) -> Tensor:
        """A view of strips, overlapping: (tiles begin to end - 1, keys of a rectangle, D)."""
        step = self.plan.rows.tile * strips.stride(0)
        return strips.as_strided((end - begin, self.plan.keys, self.dim), (step, self.dim, 1), begin * step)

    def add_rectangles(self, strips: Tensor, rectangles: Tensor, begin: int) -> None:
        """The transpose of `rectangles`: adds (tiles, keys of a rectangle, D) to the strips, from tile 0 on."""
        rows, width = self.plan.rows, strips.stride(0)
        rectangles = rectangles.view(-1, rows.keys, width)
        is_whole = len(rectangles) == self.plan.tiles
        if begin == 0:
            strips[self.plan.tiles * rows.tile if is_whole else 0 :].zero_()
        for first in range(0, rows.keys, rows.tile):  # rows of rectangles that do not overlap
            count = min(rows.tile, rows.keys - first)
            shape = (len(rectangles), count, width)
            target = strips.as_strided(shape, (rows.tile * width, width, 1), (begin * rows.tile + first) * width)
            part = rectangles[:, first : first + count]
            if is_whole and first == 0:  # side by side, these are all rows but the last ones
                target.copy_(part)
            else:
                target.add_(part)


def _chunks(plan: Plan) -> list[tuple[int, int]]:
    count = max(1, CHUNK // (plan.queries * plan.keys))
    return [(begin, min(plan.tiles, begin + count)) for begin in range(0, plan.tiles, count)]


def _heads(plan: Plan, *tensors: Tensor) -> list[list[Tensor]]:
    """For each head of each sample a list of its views (rows, columns, D) of the tensors (B, N, H, D)."""
    grids = [x.unflatten(1, (plan.rows.length, plan.columns.length)) for x in tensors]
    return [
        list(views)
        for sample in zip(*grids, strict=True)
        for views in zip(*(x.unbind(2) for x in sample), strict=True)
    ]


def _forward(query: Tensor, key: Tensor, value: Tensor, plan: Plan, mask: Tensor, scale: float) -> Tensor:
    out = query.new_empty(query.shape)
    chunks = _chunks(plan)

    def attend(heads: Iterator[list[Tensor]]) -> None:
        buffers = _Buffers(plan, query)
        q, o, k, v = buffers.tiles(), buffers.tiles(), buffers.strips(), buffers.strips()
        scores = query.new_empty(chunks[0][1], plan.queries, plan.keys)
        weights = torch.empty_like(scores)
        for tokens in heads:
            buffers.fill_tiles(q, tokens[0])
            buffers.fill_strips(k, tokens[1])
            buffers.fill_strips(v, tokens[2])
            for begin, end in chunks:
                s, p = scores[: end - begin], weights[: end - begin]
                keys = buffers.rectangles(k, begin, end)
                torch.baddbmm(mask[begin:end], q[begin:end], keys.transpose(1, 2), alpha=scale, out=s)
                torch.softmax(s, -1, out=p)
                torch.bmm(p, buffers.rectangles(v, begin, end), out=o[begin:end])
            buffers.read_tiles(o, tokens[3])

    share_pieces(_heads(plan, query, key, value, out), attend, ("forward", plan, query.shape[-1], query.dtype))
    return out


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, plan: Plan, mask: Tensor, scale: float
) -> list[Tensor]:
    """Of queries, keys and values, (B, N, H, D) each."""
    grads = [query.new_empty(query.shape) for _ in range(3)]
    chunks = _chunks(plan)

    def differentiate(heads: Iterator[list[Tensor]]) -> None:
        buffers = _Buffers(plan, query)
        q, o, g, dq = (buffers.tiles() for _ in range(4))
        k, v, dk, dv = (buffers.strips() for _ in range(4))
        scores = query.new_empty(chunks[0][1], plan.queries, plan.keys)
        weights = torch.empty_like(scores)
        spread = query.new_empty(chunks[0][1], plan.keys, query.shape[-1])
        for tokens in heads:
            for tiles, source in ((q, tokens[0]), (o, tokens[3]), (g, tokens[4])):
                buffers.fill_tiles(tiles, source)
            buffers.fill_strips(k, tokens[1])
            buffers.fill_strips(v, tokens[2])
            # Softmax: dS = P * (dP - sum(P * dP)), and the sum over the keys is that of grad * out over D.
            sums = o.mul_(g).sum(-1, keepdim=True)
            for begin, end in chunks:
                s, p, x = scores[: end - begin], weights[: end - begin], spread[: end - begin]
                keys, values = buffers.rectangles(k, begin, end), buffers.rectangles(v, begin, end)
                torch.baddbmm(mask[begin:end], q[begin:end], keys.transpose(1, 2), alpha=scale, out=s)
                torch.softmax(s, -1, out=p)
                torch.bmm(p.transpose(1, 2), g[begin:end], out=x)
                buffers.add_rectangles(dv, x, begin)
                torch.baddbmm(sums[begin:end], g[begin:end], values.transpose(1, 2), beta=-1, out=s)
                s.mul_(p)
                torch.bmm(s, keys, out=dq[begin:end])
                torch.bmm(s.transpose(1, 2), q[begin:end], out=x)
                buffers.add_rectangles(dk, x, begin)
            buffers.read_tiles(dq, tokens[5], scale)
            buffers.add_up_strips(dk, tokens[6], scale)
            buffers.add_up_strips(dv, tokens[7])

    heads = _heads(plan, query, key, value, out, grad, *grads)
    share_pieces(heads, differentiate, ("gradients", plan, query.shape[-1], query.dtype))
    return grads


def _differentiable_gradients(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, plan: Plan, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in operations that PyTorch differentiates as often as it is asked to, all heads and tiles at once."""
    queries, keys, is_real = places_of_plan(plan)

    def gathered(x: Tensor, places: Tensor) -> Tensor:  # (B, N, H, D) -> (B, tiles, H, places of a tile, D)
        return x.index_select(1, places).unflatten(1, (plan.tiles, -1)).transpose(2, 3)

    def added_up(x: Tensor, places: Tensor) -> Tensor:  # the transpose of `gathered`
        return torch.zeros_like(query).index_add(1, places, x.transpose(2, 3).flatten(1, 2))

    grad = gathered(grad, queries) * is_real[:, None, :, None]  # what fills up a tile has no output
    of_queries, of_keys, of_values = attention_gradients(
        gathered(query, queries), gathered(key, keys), gathered(value, keys), grad, mask[:, None], scale
    )
    return added_up(of_queries, queries), added_up(of_keys, keys), added_up(of_values, keys)


class HeadwiseAttention(torch.autograd.Function):
    """`apply(query, key, value, plan, mask, scale)`: (B, N, H, D) float32 or float64 on a CPU -> (B, N, H, D)."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, plan: Plan, mask: Tensor, scale: float) -> Tensor:
        return _forward(query, key, value, plan, mask, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        query, key, value, ctx.plan, mask, ctx.scale = inputs
        ctx.save_for_backward(query, key, value, output, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, mask = ctx.saved_tensors
        # The gradients will be differentiated, or are of many outputs at once (`vmap`), which no buffer holds.
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            grads = _differentiable_gradients(query, key, value, grad, ctx.plan, mask, ctx.scale)
            return *grads, None, None, None
        return *_gradients(query, key, value, out, grad, ctx.plan, mask, ctx.scale), None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
        """The mapped axis becomes samples."""
        tensors = []
        for x, dim in zip(arguments[:3], in_dims[:3], strict=True):
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            tensors.append(x.flatten(0, 1))
        out = HeadwiseAttention.apply(*tensors, *arguments[3:])
        return out.unflatten(0, (info.batch_size, -1)), 0
