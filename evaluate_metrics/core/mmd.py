"""CMMD and other squared maximum mean discrepancies between two sets of embeddings, with their uncertainty."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from .kernels import CubicKernel, GaussianKernel, row_norms
from .moments import Moments, float_matrix
from .statistics import Statistics

UNIT_TOLERANCE = 1e-3  # of a norm; half precision rounds unit vectors by less
NULL_TOLERANCE = 1e-9  # relative: permutations that give the observed value give it but for rounding


class MMD(NamedTuple):
    """
    A squared maximum mean discrepancy between m and n embeddings, times a scale.

    Attributes:
        value (`float`): `biased`, or `unbiased` if that was asked for.
        biased (`float`): the V-statistic, Gretton et al. 2012 eq. (5); not negative, 0 for identical sets.
        unbiased (`float` or `None`): the U-statistic, eq. (3); may be negative. `None` for a set of one image.
        error_bound (`float`): what the computation may have lost: the pairwise value of `biased` is at least `biased`
            and at most `error_bound` above it; that of `unbiased` is at most `error_bound` away on either side.
        standard_error (`float` or `None`): of both, over the choice of the images. `None` for less than 4 images.
        n_x, n_y (`int` or `None`): embeddings in each set, where that is known.
    """

    value: float
    biased: float
    unbiased: float | None
    error_bound: float
    standard_error: float | None
    n_x: int | None
    n_y: int | None


class PermutationTest(NamedTuple):
    """The biased estimate, and the share of regroupings of all images for which it is at least as large."""

    value: float
    p_value: float
    permutations: int


def cmmd(
    x: torch.Tensor | np.ndarray | Moments | Statistics,  # (m, d) float
    y: torch.Tensor | np.ndarray | Moments | Statistics,  # (n, d) float
    sigma: float = 10.0,
    scale: float = 1000.0,
    method: str = "moments",
    unbiased: bool = False,
    block: int = 1024,
    distributed: bool = False,
) -> MMD:
    """
    CMMD (Jayasumana et al. 2024, https://arxiv.org/abs/2401.09603): the squared MMD of the kernel
    `k(a, b) = exp(-|a - b|^2 / (2 sigma^2))`, times `scale`. m and n may differ.

    Args:
        x, y: embeddings, or their moments; of [`Statistics`], without a number of images, `biased` alone is had, and
            that number is None.
        sigma: > 0. The 10 of the paper was chosen for unit vectors of CLIP.
        scale: > 0.
        method:
            `"moments"`, for unit vectors: with g = 1 / sigma^2, k = e^-g exp(g a.b), expanded to the square, so that
            `biased / scale = e^-g (g |mx - my|^2 + g^2 / 2 |Sx - Sy|_F^2)` with m the mean of x and S the mean
            of x x^T. Time O(n d^2), memory O(d^2), no embedding is kept. Each term left out is itself a squared MMD,
            of the kernel (a.b)^p, times g^p / p!; as |a.b| <= 1, it is at most `|Sx + Sy|_F^2` (4 or less) times that,
            which gives `error_bound`: 6.6e-4 or less at sigma 10 and scale 1000. Norms that are 1 + e, not 1, change
            the value by 2 g e of itself or less.
            `"pairwise"`: every pair, on the device of x, embeddings of any norm; exact to 1e-12 of the scale for norms
            up to 1000 sigma, and beyond to 1e-18 (norm / sigma)^2. Time O((m + n)^2 d), memory O((m + n) d + block^2).
        unbiased: which estimate is `value`. The paper's code gives the biased one.
        block: rows and columns of the kernel matrix that are held at a time.
        distributed: `pairwise` in every process of the default group of `torch.distributed`, each with all of x and y:
            the blocks are shared out, and every process returns the same.

    The standard error is the root of the variance of the U-statistic, first and second order (Hoeffding 1948), each
    term estimated without bias; `moments` takes the part of the kernel that is linear in a.b, which is right to
    about g (1 % at sigma 10).

    Raises:
        TypeError: embeddings are no floating-point numbers.
        ValueError: no embeddings, NaN, dimensions that differ, `sigma`, `scale` or `block` not positive, an unknown
            method, `unbiased` with one embedding, `moments` for vectors that are not of norm 1 (to 1e-3), `pairwise`
            or `distributed` with moments.
    """
    _check_positive(sigma=sigma, scale=scale, block=block)
    if method == "pairwise":
        return _pairwise(x, y, GaussianKernel(sigma), scale, unbiased, block, distributed)
    if method != "moments":
        raise ValueError(f"method must be 'moments' or 'pairwise', got {method!r}")
    if distributed:
        raise ValueError("distributed is for method='pairwise'; merge the moments of the processes instead")
    uncounted = [isinstance(values, Statistics) for values in (x, y)]
    if unbiased and any(uncounted):
        raise ValueError("unbiased=True needs the numbers of images; Statistics.counted(n) adds that")
    result = _from_moments(_unit_moments(x, "x"), _unit_moments(y, "y"), 1 / sigma**2, scale, unbiased)
    if any(uncounted):
        counts = (None if unknown else n for unknown, n in zip(uncounted, (result.n_x, result.n_y), strict=True))
        result = MMD(result.value, result.biased, None, result.error_bound, None, *counts)
    return result


def kid(
    x: torch.Tensor | np.ndarray,  # (m, d) float
    y: torch.Tensor | np.ndarray,  # (n, d) float
    unbiased: bool = True,
    block: int = 1024,
    distributed: bool = False,
) -> MMD:
    """
    The kernel distance of Binkowski et al. 2018 (https://arxiv.org/abs/1801.01401): the squared MMD of the kernel
    `(a.b / d + 1)^3`, over all pairs. The published protocol draws 100 pairs of subsets of 1000 images and gives the
    mean, which estimates the same number less precisely. Arguments and errors as for `cmmd(method="pairwise")`.
    """
    return _pairwise(x, y, CubicKernel(), 1.0, unbiased, block, distributed)


def permutation_test(
    x: torch.Tensor | np.ndarray,  # (m, d) float
    y: torch.Tensor | np.ndarray,  # (n, d) float
    sigma: float = 10.0,
    scale: float = 1000.0,
    permutations: int = 999,
    seed: int = 0,
    block: int = 1024,
) -> PermutationTest:
    """
    Tests that x and y come from the same distribution: the pooled embeddings are divided anew into m and n at random
    `permutations` times, and `p_value = (1 + regroupings with a value >= the observed one) / (1 + permutations)`,
    which is valid for any m and n (Gretton et al. 2012, §5; Phipson & Smyth 2010). Time O((m + n)^2 (d +
    permutations)), memory O((m + n) permutations) bytes. Errors as for `cmmd(method="pairwise")`.
    """
    _check_positive(sigma=sigma, scale=scale, permutations=permutations, block=block)
    x, y = _embedding_pair(x, y)
    m, n = len(x), len(y)
    generator = torch.Generator().manual_seed(seed)
    in_x = torch.zeros(permutations + 1, m + n, dtype=torch.bool)  # column of each image: is it in the first group?
    in_x[0, :m] = True
    for row in in_x[1:]:
        row[torch.randperm(m + n, generator=generator)[:m]] = True
    in_x = in_x.T.contiguous().to(x.device)
    kernel = GaussianKernel(sigma)
    pooled = kernel.prepare(torch.cat((x, y)), torch.float64)
    values = torch.zeros(permutations + 1, dtype=torch.float64, device=x.device)
    # With weights w of 1/m and -1/n, which add up to 0, the V-statistic is w^T K w = w^T (K - 1) w.
    for i in range(0, m + n, block):
        weights = in_x[i : i + block].double() * (1 / m + 1 / n) - 1 / n
        for j in range(i, m + n, block):
            tile = kernel.tile(pooled, pooled, i, j, block)
            if i == j:
                tile.fill_diagonal_(0)
            others = in_x[j : j + block].double() * (1 / m + 1 / n) - 1 / n
            values += (1 if i == j else 2) * ((tile @ others) * weights).sum(0)
    as_large = int((values[1:] >= values[0] - NULL_TOLERANCE * values[0].abs()).sum())
    return PermutationTest(scale * float(values[0]), (1 + as_large) / (1 + permutations), permutations)


# --- Input -----------------------------------------------------------------------------------------------------------


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"{name} must be positive, got {number}")


def _check_sizes(m: int, n: int, dim_x: int, dim_y: int, unbiased: bool) -> None:
    for name, number in (("x", m), ("y", n)):
        if number < 1 + unbiased:
            least = "unbiased=True needs at least 2 in each set" if number else "at least 1 is needed"
            raise ValueError(f"{name} has {number} embeddings, {least}")
    if dim_x != dim_y:
        raise ValueError(f"x and y must have embeddings of one length, got {dim_x} and {dim_y}")


def _embedding_pair(x: Any, y: Any, unbiased: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    for name, values in (("x", x), ("y", y)):
        if isinstance(values, (Moments, Statistics)):
            raise ValueError(f"{name} are moments, pairs need the embeddings; take method='moments'")
    x, y = float_matrix(x, "x"), float_matrix(y, "y")
    _check_sizes(len(x), len(y), x.shape[1], y.shape[1], unbiased)
    return x, y.to(x.device)


def _unit_moments(values: torch.Tensor | np.ndarray | Moments | Statistics, name: str) -> Moments:
    if isinstance(values, Statistics):
        return values.unit_moments(name)
    if isinstance(values, Moments):
        square = float(values.outer.trace()) / max(values.n, 1)
        if values.n and abs(square - 1) > 2 * UNIT_TOLERANCE:
            raise ValueError(
                f"method='moments' needs unit vectors, those of {name} have a mean squared norm of {square}"
            )
        return values
    values = float_matrix(values, name)
    norms = row_norms(values)
    bad = ((norms - 1).abs() > UNIT_TOLERANCE).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"method='moments' needs unit vectors, but {len(bad)} of {len(values)} rows of {name} are not: row {row} "
            f"has norm {float(norms[row]):.6g}; normalise them, or take method='pairwise'"
        )
    return Moments.zeros(values.shape[1]).update(values)


# --- From moments ----------------------------------------------------------------------------------------------------


def _from_moments(x: Moments, y: Moments, g: float, scale: float, unbiased: bool) -> MMD:
    _check_sizes(x.n, y.n, x.dim, y.dim, unbiased)
    (mx, sx), (my, sy) = ((moments.mean, moments.outer / moments.n) for moments in (x, y))
    factor, delta = scale * math.exp(-g), mx - my
    v_statistic = factor * float(g * delta.square().sum() + g**2 / 2 * (sx - sy).square().sum())
    u_statistic = None
    if min(x.n, y.n) > 1:
        # The mean of k over pairs of different images, from the mean over all pairs: k(a, a) is known for each image.
        u_statistic = v_statistic
        for n, mean, second in ((x.n, mx, sx), (y.n, my, sy)):
            spread = g * (1 - mean.square().sum()) + g**2 / 2 * (1 - second.square().sum())
            u_statistic -= factor * float(spread) / (n - 1)
    if g < 1:  # exp(g) without its first three terms
        tail = math.exp(-g) * sum(g**p / math.factorial(p) for p in range(3, 30))
    else:
        tail = 1 - math.exp(-g) * (1 + g + g**2 / 2)
    bound = scale * tail * float((sx + sy).square().sum())
    variance = None
    if min(x.n, y.n) >= 4:
        cx, cy = x.covariance(), y.covariance()
        xx, yy, xy = _squared_trace(x.n, cx, mx), _squared_trace(y.n, cy, my), float((cx * cy).sum())
        to_x, to_y = mx * (x.n / (x.n - 2)) - my, my * (y.n / (y.n - 2)) - mx
        first_x = float(to_x @ cx @ to_x) - xx / (x.n - 2) - xy / y.n
        first_y = float(to_y @ cy @ to_y) - yy / (y.n - 2) - xy / x.n
        variance = (factor * g) ** 2 * _variance(first_x, first_y, xx, yy, xy, x.n, y.n)
    return _result(v_statistic, u_statistic, unbiased, bound, variance, x.n, y.n)


def _squared_trace(n: int, covariance: torch.Tensor, mean: torch.Tensor) -> float:
    """
    tr(C^2) of the distribution of n unit vectors from their sample covariance, without bias for any distribution
    (Himeno & Yamada 2014, Journal of Multivariate Analysis). The fourth moment that it needs follows from the first
    two for unit vectors: `|x - m|^2 = 1 + |m|^2 - 2 m.x`.
    """
    fourth = n / (n - 1) * (1 - float(mean @ mean)) ** 2 + 4 * float(mean @ covariance @ mean)
    squares = (n - 1) * (n - 2) * float(covariance.square().sum()) + float(covariance.trace()) ** 2 - n * fourth
    return (n - 1) / (n * (n - 2) * (n - 3)) * squares


# --- From pairs ------------------------------------------------------------------------------------------------------


def _pairwise(
    x: Any, y: Any, kernel: GaussianKernel | CubicKernel, scale: float, unbiased: bool, block: int, distributed: bool
) -> MMD:
    _check_positive(block=block)
    x, y = _embedding_pair(x, y, unbiased)
    if distributed and not dist.is_initialized():
        raise ValueError("distributed=True needs torch.distributed.init_process_group, or a launcher that calls it")
    rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    m, n = len(x), len(y)
    sums = torch.zeros(2 * m + 2 * n + 5, dtype=torch.float64, device=x.device)
    dtype = kernel.dtype(x, y)
    x, y = kernel.prepare(x, dtype), kernel.prepare(y, dtype)
    rows_x, rows_y, cross_x, cross_y, scalars = sums.split((m, n, m, n, 5))
    square_x, square_y, square_xy, diagonal_x, diagonal_y = scalars
    tiles = [(x, x, rows_x, rows_x, square_x, i, j) for i in range(0, m, block) for j in range(i, m, block)]
    tiles += [(y, y, rows_y, rows_y, square_y, i, j) for i in range(0, n, block) for j in range(i, n, block)]
    tiles += [(x, y, cross_x, cross_y, square_xy, i, j) for i in range(0, m, block) for j in range(0, n, block)]
    for a, b, rows, columns, square, i, j in tiles[rank::processes]:
        tile = kernel.tile(a, b, i, j, block)
        own = square is not square_xy  # then the tile below the diagonal, its mirror image, is not computed
        if own and i == j:
            (diagonal_x if square is square_x else diagonal_y).add_(tile.diagonal().sum())
            tile.fill_diagonal_(0)
        else:
            columns[j : j + block] += tile.sum(0, dtype=torch.float64)
        rows[i : i + block] += tile.sum(1, dtype=torch.float64)
        square += (2 if own and i != j else 1) * tile.square_().sum(dtype=torch.float64)
    if distributed:
        dist.all_reduce(sums)
    xx, yy, xy = rows_x.sum(), rows_y.sum(), cross_x.sum()
    v_statistic = max(float((xx + diagonal_x) / m**2 + (yy + diagonal_y) / n**2 - 2 * xy / (m * n)), 0.0)
    u_statistic, variance = None, None
    if min(m, n) > 1:
        u_statistic = scale * float(xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n))
    if min(m, n) >= 4:
        second_xx, second_yy = _second_order(rows_x, square_x), _second_order(rows_y, square_y)
        second_xy = square_xy - cross_x.square().sum() / n - cross_y.square().sum() / m + xy**2 / (m * n)
        second_xy = second_xy / ((m - 1) * (n - 1))
        # A row of m - 1 kernels has m - 2 times what belongs to its own image, once what belongs to all, and the rest.
        first_x = (rows_x / (m - 2) - cross_x / n).var() - second_xx / (m - 2) - second_xy / n
        first_y = (rows_y / (n - 2) - cross_y / m).var() - second_yy / (n - 2) - second_xy / m
        orders = float(first_x), float(first_y), float(second_xx), float(second_yy), float(second_xy)
        variance = scale**2 * _variance(*orders, m, n)
    return _result(scale * v_statistic, u_statistic, unbiased, 0.0, variance, m, n)


def _second_order(rows: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """
    The variance of the part of k(x, x') that no sum of functions of x and of x' explains, without bias, from sums of
    rows and of squares without the diagonal (Szekely & Rizzo 2014, https://doi.org/10.1214/14-AOS1255).
    """
    n = len(rows)
    return (square + rows.sum() ** 2 / ((n - 1) * (n - 2)) - 2 * rows.square().sum() / (n - 2)) / (n * (n - 3))


# --- Both ------------------------------------------------------------------------------------------------------------


def _variance(first_x: float, first_y: float, xx: float, yy: float, xy: float, m: int, n: int) -> float:
    """
    Of the U-statistic. `first_x` is the variance of `E k(x, X') - E k(x, Y)` over x, `xx`, `yy`, `xy` those of the
    parts of k that depend on both arguments (Hoeffding 1948). An estimate of either order below 0 is taken as 0.
    """
    first = 4 * (first_x / m + first_y / n)
    second = 2 * (xx / (m * (m - 1)) + yy / (n * (n - 1)) + 2 * xy / (m * n))
    return max(first, 0.0) + max(second, 0.0)


def _result(
    biased: float, u_statistic: float | None, unbiased: bool, bound: float, variance: float | None, m: int, n: int
) -> MMD:
    error = None if variance is None else math.sqrt(variance)
    value = u_statistic if unbiased and u_statistic is not None else biased
    return MMD(value, biased, u_statistic, bound, error, m, n)
