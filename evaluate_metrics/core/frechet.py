"""Frechet distance between Gaussians from moments, its limit for infinitely many images, and the kernel distance."""

import math
import warnings
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import Moments
from .statistics import Statistics


class FrechetLimit(NamedTuple):
    """The distance extrapolated to infinitely many images, its standard error, and the points of the line."""

    value: float
    standard_error: float
    counts: list[int]
    distances: list[float]


def frechet_distance(x: Moments | Statistics, y: Moments | Statistics, warn: bool = True) -> float:
    """`|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`, S with 1 / (n - 1), in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric `R' S_y R`, where `R R' = S_x`
    has as many columns as S_x has rank: no complex numbers, and exact to rounding for singular covariances too. The
    set with fewer images gives R. [`Statistics`], whose number of images is not known, count as of many.

    Raises:
        ValueError: another number of dimensions, or fewer than 2 images.

    Warns:
        UserWarning: a set has fewer images than dimensions + 1, so its covariance is singular and the distance is far
            above its limit for many images; unless `warn` is false.
    """
    if len(x.mean) != len(y.mean):
        raise ValueError(
            f"x and y must be moments of vectors of one length; got {len(x.mean)} and {len(y.mean)} dimensions"
        )
    for name, moments in (("x", x), ("y", y)):
        if moments.n is not None and moments.n < 2:
            raise ValueError(f"{name} must hold 2 images or more for a covariance; got {moments.n}")
    dim, counts = len(x.mean), [math.inf if moments.n is None else moments.n for moments in (x, y)]
    fewest = min(counts)
    if warn and fewest <= dim:
        warnings.warn(
            f"the Frechet distance of {dim} dimensions from {fewest} images is biased upwards: the covariance is "
            f"singular below {dim + 1} images",
            stacklevel=2,
        )
    few, many = (x, y) if counts[0] <= counts[1] else (y, x)
    few_covariance, many_covariance = few.covariance(), many.covariance()
    root = _root(few_covariance, few.mean)
    product = root.T @ many_covariance @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (x.mean - y.mean).square().sum() + few_covariance.trace() + many_covariance.trace() - 2 * trace
    return float(distance)


def _root(covariance: Tensor, mean: Tensor) -> Tensor:
    # (d, d) float64 -> (d, rank), R R' = covariance. What the difference of second moment and squared mean leaves in
    # the null space is rounding of the size cut off here; its square root would not be small.
    values, vectors = torch.linalg.eigh(covariance)
    scale = values[-1] + mean.square().sum()
    kept = values > len(mean) * torch.finfo(torch.float64).eps * scale
    return vectors[:, kept] * values[kept].sqrt()


def frechet_limit(counts: list[int], distances: list[float]) -> FrechetLimit:
    """The distance at 1 / n = 0 of the least-squares line through distances of n images (Chong & Forsyth 2020).

    Args:
        counts: 3 or more numbers of images, at least 2 of them different.
        distances: the Frechet distance of so many images from one reference set. What the finite size of that set
            adds is no part of the line, and stays.
    """
    if len(counts) != len(distances) or len(counts) < 3 or len(set(counts)) < 2 or min(counts) < 2:
        raise ValueError(
            f"counts and distances must be 3 pairs or more, of 2 images or more and not of one count; got {counts} "
            f"and {distances}"
        )
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    design = torch.stack((torch.ones_like(inverse), inverse), dim=1)
    target = torch.tensor(distances, dtype=torch.float64)
    solution = torch.linalg.lstsq(design, target).solution
    variance = (target - design @ solution).square().sum() / (len(counts) - 2)
    error = (variance * torch.linalg.inv(design.T @ design)[0, 0]).sqrt()
    return FrechetLimit(float(solution[0]), float(error), list(counts), list(distances))


def frechet_distance_at_infinity(x: Tensor, y: Moments | Statistics, points: int = 15, seed: int = 0) -> FrechetLimit:
    """FD-infinity: [`frechet_limit`] of `points` random subsets of x, with evenly spaced numbers of images up to n.

    The smallest has n / 10 images; but one more than dimensions, where half of x is enough for that.

    Args:
        x: (n, d) float embeddings, n >= 20.
        y: moments of the reference set, which is used whole.
        points: 3 or more.
        seed: of the subsets, drawn without replacement.

    Warns:
        UserWarning: subsets, or y, have singular covariances, for which the line is no model.
    """
    if x.ndim != 2 or len(x) < 20:
        raise ValueError(f"x must be (n, d) with n >= 20 to draw subsets from; got {tuple(x.shape)}")
    if points < 3:
        raise ValueError(f"points must be 3 or more; got {points}")
    n, dim = x.shape
    smallest = max(n // 10, dim + 1) if dim + 1 <= n // 2 else n // 10
    if min(smallest, math.inf if y.n is None else y.n) <= dim:
        known = "unknown" if y.n is None else y.n
        warnings.warn(
            f"the limit of the Frechet distance of {dim} dimensions, from {smallest} to {n} images and {known} "
            "references, is no estimate: covariances are singular",
            stacklevel=2,
        )
    generator = torch.Generator().manual_seed(seed)
    counts = torch.linspace(smallest, n, points).round().int().tolist()
    distances = []
    for count in counts:
        chosen = torch.randperm(n, generator=generator)[:count]
        distances.append(frechet_distance(Moments.zeros(dim).update(x[chosen.to(x.device)]), y, warn=False))
    return frechet_limit(counts, distances)


def kernel_distance(
    x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: the unbiased squared MMD of the kernel `(a.b / d + 1)^3` (Binkowski et al. 2018, §4), in float64.

    Args:
        x: (m, d) float embeddings.
        y: (n, d).
        subsets: how many pairs of random subsets are scored.
        subset_size: images in each, 2 to min(m, n), drawn without replacement.
        seed: of the subsets.

    Returns:
        Mean and (population) standard deviation over the subsets, as published; the mean may be below 0.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (m, d) and (n, d); got {tuple(x.shape)} and {tuple(y.shape)}")
    check_subsets(subsets, subset_size, min(len(x), len(y)))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        a, b = (
            embeddings[torch.randperm(len(embeddings), generator=generator)[:subset_size].to(embeddings.device)]
            for embeddings in (x, y)
        )
        values.append(cubic_mmd(a, b))
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std(correction=0))


def check_subsets(subsets: int, subset_size: int, fewest: int | None, prefix: str = "") -> None:
    """`ValueError` unless [`kernel_distance`] can draw these from sets of `fewest` images or more; None: of any.

    `TypeError` for numbers that are no integers. Errors call the arguments by their names behind `prefix`.
    """
    for name, value in ((f"{prefix}subsets", subsets), (f"{prefix}subset_size", subset_size)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer; got {value!r}")
    if subsets < 1:
        raise ValueError(f"{prefix}subsets must be 1 or more; got {subsets}")
    if subset_size < 2 or (fewest is not None and subset_size > fewest):
        smaller = "" if fewest is None else f", {fewest}"
        raise ValueError(
            f"{prefix}subset_size must be 2 to the number of images of the smaller set{smaller}; got {subset_size}"
        )


def cubic_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of `(a.b / d + 1)^3` over all pairs, x (m, d) and y (n, d), m and n >= 2 (Gretton 2012)."""
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:  # (m, d), (n, d) -> (m, n)
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = x.new_zeros(())
    for a in (x, y):
        k = kernel(a, a)
        within = within + (k.sum() - k.trace()) / (len(a) * (len(a) - 1))
    return float(within - 2 * kernel(x, y).mean())
