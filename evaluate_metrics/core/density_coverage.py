"""Density and coverage: how densely real images surround generated ones, and how many have one beside them."""

from typing import NamedTuple

from torch import Tensor

from .neighbours import Balls, check_neighbours, inside, squared_radii, vector_pair
from .precision_recall import share


class DensityCoverage(NamedTuple):
    """
    Attributes:
        density (`float`): not negative, 1 on average between samples of one distribution, and without upper limit.
        coverage (`float`): 0 to 1, higher is better; [`expected_coverage`] between samples of one distribution.
        density_error (`float` or `None`): standard error over the choice of both sets, to first order, the radii being
            as they are. `None` for one prediction.
        coverage_error (`float`): binomial standard error over the references, the predictions being as they are.
        k, n_x, n_y (`int`): neighbours, predictions, references.
    """

    density: float
    coverage: float
    density_error: float | None
    coverage_error: float
    k: int
    n_x: int
    n_y: int


def density_coverage(x: Tensor, y: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, https://arxiv.org/abs/2002.09797, §3), to float64.

    Each reference has an open ball up to its k-th nearest other reference. Density is the number of balls that a
    prediction lies in, on average, over k; coverage the share of the balls that hold a prediction. The ball of a
    reference with k copies or more is empty, so that a set of one image repeated has neither.

    Time O((n^2 + m n) d), memory O((m + n) d).

    Args:
        x: (m, d) float, predictions, m >= 1.
        y: (n, d) float, references.
        k: neighbours; 5 as published.

    Raises:
        TypeError: no floating-point numbers.
        ValueError: fewer than k + 2 references, no prediction, NaN, dimensions that differ, k below 1.
    """
    check_neighbours(k, len(y), "references")
    first, second = vector_pair(x, y, ("predictions", "references"))
    balls = Balls(squared_radii(second, (k,))[0], closed=False)
    (counts,), _ = inside(first, second, [balls], [])
    m, n = len(x), len(y)
    density = float(counts.within.sum()) / (k * m)
    error = None
    if m > 1:
        over_x, over_y = counts.within.double().var() / m, counts.held.double().var() * n / m**2
        error = float(over_x + over_y) ** 0.5 / k
    coverage, coverage_error = share(counts.held > 0)
    return DensityCoverage(density, coverage, error, coverage_error, k, m, n)


def expected_coverage(m: int, n: int, k: int = 5) -> float:
    """The coverage of n references by m predictions of one continuous distribution, whichever it is, on average.

    A ball holds none of them if its k nearest are all references: `1 - prod_{i=1..k} (n - i) / (n + m - i)`, and
    1 - 2^-k for many images, m = n. Coverages of other numbers of images compare by this alone.
    """
    if min(m, k) < 1 or n <= k:
        raise ValueError(f"m and k must be 1 or more and n above k; got m={m}, n={n}, k={k}")
    empty = 1.0
    for i in range(1, k + 1):
        empty *= (n - i) / (n + m - i)
    return 1 - empty
