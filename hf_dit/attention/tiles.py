"""How a grid of tokens is cut for local attention: tiles of queries, each before one rectangle of keys.

All queries of a tile share a rectangle that is as wide as the tile and a margin of half a kernel to each side. The
columns of rectangles are *strips*: their keys are copied, each row of them with its margins. Along a strip nothing is
copied: the rectangles of the tiles one below the other are overlapping views. The strips of an image stand one below
the other, so that *all* its rectangles are one view with a regular step; one that reaches over the end of its strip
shows rows of the next strip there, which the mask takes out.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

TILES = (*range(1, 17), 24, 32, 48, 64, 96, 128, 256)


def window_bounds(length: int, kernel_size: int, boundary: str) -> tuple[Tensor, Tensor]:
    """First and last key of each query along an axis, both inclusive; (length,) int64 each.

    `"truncate"` cuts the window at the border, `"shift"` moves it inwards so that it keeps its size (the rule of
    NATTEN: the centre is clamped). A kernel larger than the axis sees all of it.
    """
    radius = kernel_size // 2
    position = torch.arange(length)
    if boundary == "truncate":
        return (position - radius).clamp(min=0), (position + radius).clamp(max=length - 1)
    kernel_size = min(kernel_size, length)
    first = (position - radius).clamp(0, length - kernel_size)
    return first, first + kernel_size - 1


class Axis(NamedTuple):
    """One axis of `length` tokens in tiles of `tile` queries, each before `tile + 2 * margin` keys."""

    length: int
    tile: int
    margin: int

    @property
    def tiles(self) -> int:
        return -(-self.length // self.tile)

    @property
    def padded(self) -> int:
        return self.tiles * self.tile

    @property
    def keys(self) -> int:
        return self.tile + 2 * self.margin


class Plan(NamedTuple):
    """How a grid is cut; tiles are counted strip after strip."""

    rows: Axis
    columns: Axis
    kernel: tuple[int, int]
    boundary: str

    @property
    def tiles(self) -> int:
        return self.rows.tiles * self.columns.tiles

    @property
    def queries(self) -> int:
        """Of a tile."""
        return self.rows.tile * self.columns.tile

    @property
    def keys(self) -> int:
        """Of a rectangle."""
        return self.rows.keys * self.columns.keys

    def cost(self, least_queries: int) -> int:
        """Estimated time of a CPU in scores, see [`make_plan`]."""
        scores = self.tiles * max(self.queries, least_queries) * self.keys
        return scores + 7 * self.strip_rows * self.columns.keys

    @property
    def strip_rows(self) -> int:
        """Rows of all strips, one below the other, and a margin before the first and after the last."""
        return self.columns.tiles * self.rows.padded + 2 * self.rows.margin


def axis_cuts(length: int, kernel_size: int, boundary: str) -> list[Axis]:
    """Every way to cut an axis that is considered; the last one is a single tile that sees all keys."""
    radius = kernel_size // 2
    cuts = []
    for tile in TILES:
        # A window that was moved inwards reaches 2 * radius from the border; the first and the last tile's rectangles
        # reach as far as their queries and a radius more.
        smallest = min(tile, length % tile or tile)
        if tile + 2 * radius < length and (boundary == "truncate" or smallest > radius):
            cuts.append(Axis(length, tile, radius))
    return [*cuts, Axis(length, length, 0)]


# A compiler takes what this and `tile_mask` return as constants of the graph; it cannot trace a cached function.
@torch.compiler.assume_constant_result
def make_plan(grid: tuple[int, int], kernel: tuple[int, int], boundary: str, least_queries: int) -> Plan:
    """The cut with the lowest estimated time.

    Measured on a CPU with heads of 64: time goes with the scores, a copied key takes as long as 7 scores, and tiles of
    fewer than `least_queries` take as long as if they had as many.
    """
    return _make_plan(grid, kernel, boundary, least_queries)


@lru_cache(maxsize=256)
def _make_plan(grid: tuple[int, int], kernel: tuple[int, int], boundary: str, least_queries: int) -> Plan:
    sides = [axis_cuts(n, size, boundary) for n, size in zip(grid, kernel, strict=True)]
    plans = (Plan(rows, columns, kernel, boundary) for rows in sides[0] for columns in sides[1])
    return min(plans, key=lambda plan: plan.cost(least_queries))


@torch.compiler.assume_constant_result
def tile_mask(
    grid: tuple[int, int],
    kernel: tuple[int, int],
    boundary: str,
    least_queries: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What the plan of these arguments adds to scores: 0 or -inf, (tiles, queries of a tile, keys of a rectangle)."""
    return _tile_mask(_make_plan(grid, kernel, boundary, least_queries), dtype, device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept is for training too
def _tile_mask(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    sides = []
    for axis, kernel_size in zip((plan.rows, plan.columns), plan.kernel, strict=True):
        first, last = window_bounds(axis.length, kernel_size, plan.boundary)
        # Queries that fill up the last tile see what the last real one sees: their rows are dropped, but are no NaN.
        query = torch.arange(axis.padded).clamp(max=axis.length - 1).view(axis.tiles, axis.tile, 1)
        key = (torch.arange(axis.tiles) * axis.tile - axis.margin).view(-1, 1, 1) + torch.arange(axis.keys)
        sides.append((first[query] <= key) & (key <= last[query]))  # (tiles, tile, keys)
    rows, columns = sides
    inside = rows[None, :, :, None, :, None] & columns[:, None, None, :, None, :]
    inside = inside.reshape(plan.tiles, plan.queries, plan.keys)
    return torch.zeros(inside.shape, dtype=dtype).masked_fill_(~inside, -math.inf).to(device)
