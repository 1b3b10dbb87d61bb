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


class _Tiles:
    """Tiles of one head, (tiles, queries of a tile, D), and how tokens (rows, columns, D) get into them and out again.

    Views are made once for all heads: Python takes as long for one as a CPU for a part of the products, and threads
    wait for each other's Python.
    """

    def __init__(self, plan: Plan, like: Tensor):
        self.plan, dim = plan, like.shape[-1]
        rows, columns = plan.rows, plan.columns
        self.flat = like.new_empty(plan.tiles, plan.queries, dim)
        self._grid = self.flat.view(columns.tiles, rows.tiles, rows.tile, columns.tile, dim).permute(1, 2, 0, 3, 4)
        self._is_padded = rows.padded != rows.length or columns.padded != columns.length

    def fill(self, tokens: Tensor) -> None:
        rows, columns = self.plan.rows, self.plan.columns
        if self._is_padded:
            tokens = F.pad(tokens, (0, 0, 0, columns.padded - columns.length, 0, rows.padded - rows.length))
        self._grid.copy_(self._cut(tokens))

    def read(self, tokens: Tensor, scale: float = 1.0) -> None:
        """The transpose of `fill`, times `scale`."""
        rows, columns = self.plan.rows, self.plan.columns
        grid = self._grid
        if self._is_padded:
            grid = grid.reshape(rows.padded, columns.padded, -1)[: rows.length, : columns.length]
        else:
            tokens = self._cut(tokens)
        if scale == 1:
            tokens.copy_(grid)
        else:
            torch.mul(grid, scale, out=tokens)

    def _cut(self, tokens: Tensor) -> Tensor:  # (rows, columns, D) -> as `_grid`
        rows, columns = self.plan.rows, self.plan.columns
        return tokens.unflatten(1, (columns.tiles, columns.tile)).unflatten(0, (rows.tiles, rows.tile))


class _Margins:
    """Tokens of one head with the margins of their columns, which stay 0, and views of them."""

    def __init__(self, plan: Plan, like: Tensor):
        rows, columns, dim = plan.rows, plan.columns, like.shape[-1]
        self.wide = like.new_zeros(rows.length, columns.before + columns.padded + columns.after, dim)
        self.tokens = self.wide[:, columns.before : columns.before + columns.length]
        self.last = self.wide[:, columns.padded :]
        # Columns of each strip, (strips, rows, columns, D): all of them; and slices of strips that do not overlap.
        self.columns = self._columns(plan, 0, columns.keys)
        self.slices = [
            (slice(first, min(first + columns.tile, columns.keys)), self._columns(plan, first, columns.tile))
            for first in range(0, columns.keys, columns.tile)
        ]

    def _columns(self, plan: Plan, first: int, count: int) -> Tensor:
        tile, keys, dim = plan.columns.tile, plan.columns.keys, self.wide.shape[-1]
        shape = (plan.columns.tiles, plan.rows.length, min(count, keys - first), dim)
        return self.wide.as_strided(shape, (tile * dim, self.wide.stride(0), dim, 1), first * dim)


class _Strips:
    """Strips of keys of one head, (rows of all strips, keys of a row, D); what is between them is 0."""

    def __init__(self, plan: Plan, margins: _Margins):
        self.plan, self._margins = plan, margins
        rows, columns, dim = plan.rows, plan.columns, margins.wide.shape[-1]
        self.flat = margins.wide.new_empty(plan.strip_rows, columns.keys, dim)
        if rows.padded != rows.length:
            self.flat.zero_()
        self.flat[: rows.before].zero_()
        self.flat[len(self.flat) - rows.after :].zero_()
        body = self.flat[rows.before : rows.before + columns.tiles * rows.padded]
        # Without what fills them up: (strips, rows, keys of a row, D).
        self._body = body.view(columns.tiles, rows.padded, columns.keys, dim)[:, : rows.length]

    def fill(self, tokens: Tensor) -> None:
        self._margins.tokens.copy_(tokens)
        self._body.copy_(self._margins.columns)

    def add_up(self, tokens: Tensor, scale: float = 1.0) -> None:
        """The transpose of `fill`, times `scale`: a token gets the sum over the strips that hold it."""
        (columns, target), *others = self._margins.slices
        target.copy_(self._body[:, :, columns])  # side by side, these are all columns but the last ones
        self._margins.last.zero_()
        for columns, target in others:
            target.add_(self._body[:, :, columns])
        torch.mul(self._margins.tokens, scale, out=tokens)

    def rectangles(self, begin: int, end: int) -> Tensor:
        """A view, overlapping: (tiles begin to end - 1, keys of a rectangle, D)."""
        dim = self.flat.shape[-1]
        step = self.plan.rows.tile * self.flat.stride(0)
        return self.flat.as_strided((end - begin, self.plan.keys, dim), (step, dim, 1), begin * step)

    def add_rectangles(self, rectangles: Tensor, begin: int) -> None:
        """The transpose of `rectangles`: adds (tiles, keys of a rectangle, D) to the strips, from tile 0 on."""
        rows, width = self.plan.rows, self.flat.stride(0)
        rectangles = rectangles.view(-1, rows.keys, width)
        is_whole = len(rectangles) == self.plan.tiles
        if begin == 0:
            self.flat[self.plan.tiles * rows.tile if is_whole else 0 :].zero_()
        for first in range(0, rows.keys, rows.tile):  # rows of rectangles that do not overlap
            count = min(rows.tile, rows.keys - first)
            shape = (len(rectangles), count, width)
            target = self.flat.as_strided(shape, (rows.tile * width, width, 1), (begin * rows.tile + first) * width)
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
        margins = _Margins(plan, query)
        q, o, k, v = _Tiles(plan, query), _Tiles(plan, query), _Strips(plan, margins), _Strips(plan, margins)
        scores = query.new_empty(chunks[0][1], plan.queries, plan.keys)
        weights = torch.empty_like(scores)
        products = [
            (
                *(mask[begin:end], q.flat[begin:end], k.rectangles(begin, end).transpose(1, 2)),
                *(scores[: end - begin], weights[: end - begin], v.rectangles(begin, end), o.flat[begin:end]),
            )
            for begin, end in chunks
        ]
        for tokens in heads:
            q.fill(tokens[0])
            k.fill(tokens[1])
            v.fill(tokens[2])
            for added, queries, keys, s, p, values, outputs in products:
                torch.baddbmm(added, queries, keys, alpha=scale, out=s)
                torch.softmax(s, -1, out=p)
                torch.bmm(p, values, out=outputs)
            o.read(tokens[3])

    share_pieces(_heads(plan, query, key, value, out), attend, ("forward", plan, query.shape[-1], query.dtype))
    return out


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad: Tensor, plan: Plan, mask: Tensor, scale: float
) -> list[Tensor]:
    """Of queries, keys and values, (B, N, H, D) each."""
    grads = [query.new_empty(query.shape) for _ in range(3)]
    chunks = _chunks(plan)

    def differentiate(heads: Iterator[list[Tensor]]) -> None:
        q, o, g, dq = (_Tiles(plan, query) for _ in range(4))
        margins, sums_of_strips = _Margins(plan, query), _Margins(plan, query)
        k, v = (_Strips(plan, margins) for _ in range(2))
        dk, dv = (_Strips(plan, sums_of_strips) for _ in range(2))
        scores = query.new_empty(chunks[0][1], plan.queries, plan.keys)
        weights = torch.empty_like(scores)
        spread = query.new_empty(chunks[0][1], plan.keys, query.shape[-1])
        for tokens in heads:
            for tiles, source in ((q, tokens[0]), (o, tokens[3]), (g, tokens[4])):
                tiles.fill(source)
            k.fill(tokens[1])
            v.fill(tokens[2])
            # Softmax: dS = P * (dP - sum(P * dP)), and the sum over the keys is that of grad * out over D.
            sums = o.flat.mul_(g.flat).sum(-1, keepdim=True)
            for begin, end in chunks:
                s, p, x = scores[: end - begin], weights[: end - begin], spread[: end - begin]
                keys, values = k.rectangles(begin, end), v.rectangles(begin, end)
                queries, gradients = q.flat[begin:end], g.flat[begin:end]
                torch.baddbmm(mask[begin:end], queries, keys.transpose(1, 2), alpha=scale, out=s)
                torch.softmax(s, -1, out=p)
                torch.bmm(p.transpose(1, 2), gradients, out=x)
                dv.add_rectangles(x, begin)
                torch.baddbmm(sums[begin:end], gradients, values.transpose(1, 2), beta=-1, out=s)
                s.mul_(p)
                torch.bmm(s, keys, out=dq.flat[begin:end])
                torch.bmm(s.transpose(1, 2), queries, out=x)
                dk.add_rectangles(x, begin)
            dq.read(tokens[5], scale)
            dk.add_up(tokens[6], scale)
            dv.add_up(tokens[7])

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
