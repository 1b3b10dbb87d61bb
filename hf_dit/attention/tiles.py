"""How a grid of tokens is cut for local attention: tiles of queries, each before one rectangle of keys.

All queries of a tile share a rectangle that is as wide as the tile and a margin to each side, so that it holds the
windows of all of them. The columns of rectangles are *strips*: their keys are copied, each row of them with its
margins. Along a strip nothing is copied: the rectangles of the tiles one below the other are overlapping views. The
strips of an image stand one below the other, so that *all* its rectangles are one view with a regular step; one that
reaches over the end of its strip shows rows of the next strip there, which the mask takes out.

Windows have no dilation here: the tokens of a dilation group are a grid of their own (`groups.py`).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .kept import kept_tensors
from .windows import Window, Windows

TILES = (*range(1, 17), 24, 32, 48, 64, 96, 128, 256)


class Axis(NamedTuple):
    """One axis of `length` tokens in tiles of `tile` queries, each before `before + tile + after` keys."""

    length: int
    tile: int
    before: int
    after: int

    @property
    def tiles(self) -> int:
        return -(-self.length // self.tile)

    @property
    def padded(self) -> int:
        return self.tiles * self.tile

    @property
    def keys(self) -> int:
        return self.before + self.tile + self.after

    def query_places(self) -> np.ndarray:
        """(tiles, tile) int64, the query at each place; those that fill up the last tile are the last real one."""
        return np.arange(self.padded).clip(max=self.length - 1).reshape(self.tiles, self.tile)

    def key_places(self) -> np.ndarray:
        """(tiles, keys) int64, the key at each place; less than 0, `length` and more where there is none."""
        return np.arange(self.tiles)[:, None] * self.tile - self.before + np.arange(self.keys)


class Plan(NamedTuple):
    """How a grid is cut; tiles are counted strip after strip."""

    rows: Axis
    columns: Axis
    windows: Windows

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
        """Rows of all strips, one below the other, and the margins before the first and after the last."""
        return self.rows.before + self.columns.tiles * self.rows.padded + self.rows.after


def axis_cuts(length: int, window: Window) -> list[Axis]:
    """Every way to cut an axis that is considered; the last one is a single tile that sees all keys."""
    first, last = window.bounds(length)
    cuts = []
    for tile in TILES:
        # Neither bound ever falls: the first query of a tile has the first key of them all, the last one the last.
        begin = np.arange(0, length, tile)
        end = begin + tile - 1
        before = int((begin - first[begin]).max())
        after = max(0, int((last[end.clip(max=length - 1)] - end).max()))
        if before + tile + after < length:
            cuts.append(Axis(length, tile, before, after))
    return [*cuts, Axis(length, length, 0, 0)]


# A compiler takes what this and `tile_mask` return as constants of the graph; it cannot trace a cached function.
@torch.compiler.assume_constant_result
def make_plan(grid: tuple[int, int], windows: Windows, least_queries: int) -> Plan:
    """The cut with the lowest estimated time.

    Measured on a CPU with heads of 64: time goes with the scores, a copied key takes as long as 7 scores, and tiles of
    fewer than `least_queries` take as long as if they had as many.
    """
    return _make_plan(grid, windows, least_queries)


@lru_cache(maxsize=256)
def _make_plan(grid: tuple[int, int], windows: Windows, least_queries: int) -> Plan:
    sides = [axis_cuts(length, window) for length, window in zip(grid, windows, strict=True)]
    plans = (Plan(rows, columns, windows) for rows in sides[0] for columns in sides[1])
    return min(plans, key=lambda plan: plan.cost(least_queries))


@torch.compiler.assume_constant_result
def tile_mask(
    grid: tuple[int, int], windows: Windows, least_queries: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the plan of these arguments adds to scores: 0 or -inf, (tiles, queries of a tile, keys of a rectangle)."""
    return mask_of_plan(_make_plan(grid, windows, least_queries), dtype, device)


@kept_tensors(maxsize=8)
def mask_of_plan(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[`tile_mask`] of a plan."""
    sides = []
    for axis, window in zip((plan.rows, plan.columns), plan.windows, strict=True):
        # Queries that fill up the last tile see what the last real one sees: their rows are dropped, but are no NaN.
        first, last = (bound[axis.query_places()][:, :, None] for bound in window.bounds(axis.length))
        key = axis.key_places()[:, None]
        sides.append((first <= key) & (key <= last))  # (tiles, tile, keys)
    rows, columns = sides
    inside = rows[None, :, :, None, :, None] & columns[:, None, None, :, None, :]
    return added_to_scores(inside.reshape(plan.tiles, plan.queries, plan.keys), dtype, device)


def added_to_scores(seen: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a key is seen, else -inf."""
    return torch.from_numpy(np.where(seen, np.float32(0), np.float32(-np.inf))).to(device, dtype)


@kept_tensors(maxsize=8)
def places_of_plan(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The token at each place of the tiles and of the rectangles, and which places of the tiles are no filling.

    (tiles * queries of a tile,) int64, (tiles * keys of a rectangle,) int64, (tiles, queries of a tile) bool; places
    where there is no key, which the mask takes out, have some token.
    """

    def tokens(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:  # of places along the axes, to row-major tokens
        columns = columns.clip(0, plan.columns.length - 1)[:, None, None, :]
        return rows.clip(0, plan.rows.length - 1)[None, :, :, None] * plan.columns.length + columns

    queries = tokens(plan.rows.query_places(), plan.columns.query_places())
    keys = tokens(plan.rows.key_places(), plan.columns.key_places())
    row, column = (
        np.arange(axis.padded).reshape(axis.tiles, axis.tile) < axis.length for axis in (plan.rows, plan.columns)
    )
    is_real = (row[None, :, :, None] & column[:, None, None, :]).reshape(plan.tiles, plan.queries)
    return torch.from_numpy(queries.flatten()), torch.from_numpy(keys.flatten()), torch.from_numpy(is_real)
