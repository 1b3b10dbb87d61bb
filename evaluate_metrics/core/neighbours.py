"""Which vectors lie in which balls around others: exact in float64, computed from float32 products, block by block."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import ROWS, float_matrix
from .precision import full_precision

TILE = 1 << 22  # pairs that are held at a time
PAIR_NUMBERS = 1 << 21  # numbers of the differences that are held at a time
TIE = 1e-12  # relative: squared distances that are one number but for rounding
DENSE = 1 / 64  # share of undecided pairs of a tile from which on a product in float64 is cheaper


class Balls(NamedTuple):
    """Balls around each vector of a set.

    squared: (n,) float64, the squared radii. closed: whether the sphere itself belongs to the ball.
    """

    squared: Tensor
    closed: bool

    @property
    def limits(self) -> Tensor:
        """(n,) float64: squared distances up to this are inside; those that tie with the radius as `closed` says."""
        if self.closed:
            return self.squared * (1 + TIE)
        return torch.where(self.squared > 0, self.squared * (1 - TIE), -1.0)  # an open ball of radius 0 is empty


class Inside(NamedTuple):
    """How many vectors of the other set each ball holds, (n,) int64, and in how many balls each of them is, (m,)."""

    held: Tensor
    within: Tensor


class Vectors:
    """A set of vectors, ready for products with others.

    Distances come from `|a|^2 + |b|^2 - 2 a.b` of centred vectors with a bound of its rounding; what the bound leaves
    open is decided by `|a - b|^2` in float64, so that identical vectors have the distance 0 and no result depends on
    blocks, threads or devices.
    """

    def __init__(self, rows: Tensor, centre: Tensor) -> None:
        self.rows, self.centre = rows, centre
        self._prepared: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self._names: Tensor | None = None

    def prepared(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Centred vectors (n, d) and their squared norms (n,), in that precision."""
        if dtype not in self._prepared:
            moved = torch.empty(self.rows.shape, dtype=dtype, device=self.rows.device)
            norms = torch.empty(len(self.rows), dtype=dtype, device=self.rows.device)
            for start in range(0, len(moved), ROWS):
                part = self.rows[start : start + ROWS].double() - self.centre
                moved[start : start + ROWS], norms[start : start + ROWS] = part, part.square().sum(1)
            self._prepared[dtype] = moved, norms
        return self._prepared[dtype]

    def names(self) -> Tensor:
        """(n,) int64, the same for identical vectors; 62 bits of a digest."""
        if self._names is None:
            content = (self.rows + 0.0).cpu().numpy()  # -0.0 is 0.0
            digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in content]
            numbers = [int.from_bytes(digest, "little") >> 2 for digest in digests]
            self._names = torch.tensor(numbers, dtype=torch.int64, device=self.rows.device)
        return self._names


def vector_pair(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> tuple[Vectors, Vectors]:
    """Both sets about the mean of y, on its device; a `ValueError` for NaN, no vectors or two dimensions."""
    x, y = float_matrix(x, names[0]), float_matrix(y, names[1])
    for name, rows in zip(names, (x, y), strict=True):
        if not len(rows):
            raise ValueError(f"{name} must hold 1 vector or more, got none")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{names[0]} and {names[1]} must be of one length, got {x.shape[1]} and {y.shape[1]}")
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    x, y = x.to(y.device, dtype), y.to(dtype)
    largest = max(float(rows.abs().max()) for rows in (x, y))
    if largest and not 1e-12 < largest < 1e12:  # squares in float32 would be infinite or 0
        x, y = x / largest, y / largest
    centre = sum(rows.double().sum(0) for rows in y.split(ROWS)) / len(y)
    return Vectors(x, centre), Vectors(y, centre)


def check_neighbours(k: int, n: int, name: str) -> None:
    """`ValueError` unless a set of n images, called `name`, has a k-th nearest neighbour of each in a larger rest."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an integer of 1 or more, got {k!r}")
    if n < k + 2:
        raise ValueError(f"{name} must hold k + 2 = {k + 2} images or more for {k} nearest neighbours, got {n}")


def squared_radii(x: Vectors, ks: tuple[int, ...]) -> Tensor:  # -> (len(ks), n) float64
    """The squared distance of each vector to its k-th nearest *other* one, for each k; n > max(ks)."""
    most = max(ks) + 1  # with itself, or a copy of it, which is as near
    found = torch.empty(len(ks), len(x.rows), dtype=torch.float64, device=x.rows.device)
    for start, stop in _blocks(len(x.rows), len(x.rows)):
        i, j = _nearest_candidates(x, start, stop, most, torch.float32)
        if len(i) > DENSE * (stop - start) * len(x.rows) + most * (stop - start):
            i, j = _nearest_candidates(x, start, stop, most, torch.float64)
        exact = _squared_distances(x, x, i + start, j)
        order = exact.argsort(stable=True)
        order = order[i[order].argsort(stable=True)]  # by row, and in it by distance
        counts = torch.bincount(i, minlength=stop - start)
        first = counts.cumsum(0) - counts
        for row, k in enumerate(ks):
            found[row, start:stop] = exact[order[first + k]]
    return found


def inside(x: Vectors, y: Vectors, around_y: list[Balls], around_x: list[Balls]) -> tuple[list[Inside], list[Inside]]:
    """Counts for each kind of balls around y, of vectors of x, and around x, of vectors of y; in one pass."""
    device = x.rows.device
    sizes = [(len(y.rows), len(x.rows))] * len(around_y) + [(len(x.rows), len(y.rows))] * len(around_x)
    found = [Inside(*(torch.zeros(n, dtype=torch.int64, device=device) for n in pair)) for pair in sizes]
    for start, stop in _blocks(len(x.rows), len(y.rows)):
        tile: dict[torch.dtype, Tensor] = {}
        for number, balls in enumerate([*around_y, *around_x]):
            of_columns = number < len(around_y)
            limits = balls.limits[None, :] if of_columns else balls.limits[start:stop, None]
            i, j = _pairs_within(x, y, start, stop, limits, tile)
            rows, columns = torch.bincount(i, minlength=stop - start), torch.bincount(j, minlength=len(y.rows))
            counts = found[number]
            (counts.within if of_columns else counts.held)[start:stop] += rows
            (counts.held if of_columns else counts.within).add_(columns)
    return found[: len(around_y)], found[len(around_y) :]


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, TILE // columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _rounding(dim: int, dtype: torch.dtype) -> float:
    """Of a squared distance from norms and products, in shares of the sum of both squared norms.

    Sums of products of d numbers lose sqrt(d) roundings as a rule, of which this is four times as much; the rest is of
    centring and of the sum of three terms.
    """
    return 4 * torch.finfo(dtype).eps * (2 + dim**0.5)


def _lower_bounds(x: Vectors, y: Vectors, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    # (stop - start, n) of at most the squared distances. |a|^2 + |b|^2 - 2 a.b, less what rounding may have added.
    (rows, squares), (columns, others) = x.prepared(dtype), y.prepared(dtype)
    share = 1 - _rounding(rows.shape[1], dtype)
    with full_precision():
        tile = torch.addmm(others[None, :] * share, rows[start:stop], columns.T, alpha=-2)
    return tile.add_(squares[start:stop, None] * share)


def _slack(x: Vectors, y: Vectors, i: Tensor, j: Tensor, dtype: torch.dtype) -> Tensor:
    # By how much the squared distance of row i and column j may lie above its lower bound.
    squares, others = x.prepared(dtype)[1], y.prepared(dtype)[1]
    return 2 * _rounding(x.rows.shape[1], dtype) * (squares[i] + others[j])


def _nearest_candidates(x: Vectors, start: int, stop: int, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    # Row (from 0) and column of all that can be among the `most` nearest of a row.
    lower = _lower_bounds(x, x, start, stop, dtype)
    values, columns = lower.topk(most, dim=1, largest=False, sorted=False)
    rows = torch.arange(start, stop, device=lower.device)[:, None].expand_as(columns)
    upper = (values + _slack(x, x, rows, columns, dtype)).amax(1, keepdim=True)  # so many are not farther than this
    i, j = (lower <= upper).nonzero(as_tuple=True)
    return i, j


def _pairs_within(
    x: Vectors, y: Vectors, start: int, stop: int, limits: Tensor, tiles: dict[torch.dtype, Tensor]
) -> tuple[Tensor, Tensor]:
    # Row (from 0) and column of all pairs whose squared distance is within the limits, (1, n) or (rows, 1).
    size = (stop - start) * len(y.rows)
    for dtype in (torch.float32, torch.float64):
        if dtype not in tiles:
            tiles[dtype] = _lower_bounds(x, y, start, stop, dtype)
        lower = tiles[dtype]
        # Rounded up: a limit is not to fall below itself.
        rounded = (limits * (1 + torch.finfo(dtype).eps)).to(dtype)
        i, j = (lower <= rounded).nonzero(as_tuple=True)
        limit = limits.expand(lower.shape)[i, j]
        certain = lower[i, j].double() + 2 * _slack(x, y, i + start, j, dtype).double() < limit
        undecided = ~certain
        if undecided.sum() <= DENSE * size:
            break
    open_i, open_j = i[undecided], j[undecided]
    exact = _squared_distances(x, y, open_i + start, open_j)
    certain[undecided] = exact <= limit[undecided]
    return i[certain], j[certain]


def _squared_distances(x: Vectors, y: Vectors, i: Tensor, j: Tensor) -> Tensor:  # rows of x and of y -> (p,) float64
    exact = torch.zeros(len(i), dtype=torch.float64, device=i.device)
    other = (x.names()[i] != y.names()[j]).nonzero()[:, 0]
    for part in other.split(max(1, PAIR_NUMBERS // x.rows.shape[1])):
        exact[part] = (x.rows[i[part]].double() - y.rows[j[part]].double()).square_().sum(1)
    return exact
