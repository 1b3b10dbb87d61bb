"""Improved precision and recall: how many generated images lie among real ones, and real among generated ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from .neighbours import TILE, Balls, check_neighbours, inside, squared_radii, vector_pair


class PrecisionRecall(NamedTuple):
    """
    Attributes:
        precision, recall (`float`): 0 to 1, higher is better.
        precision_error, recall_error (`float`): binomial standard errors over the predictions and over the references,
            the other set being as it is.
        k, n_x, n_y (`int`): neighbours, predictions, references.
    """

    precision: float
    recall: float
    precision_error: float
    recall_error: float
    k: int
    n_x: int
    n_y: int


def precision_recall(x: Tensor, y: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, https://arxiv.org/abs/1904.06991, §2), to float64.

    Each vector has a closed ball up to its k-th nearest other vector of its own set. Precision is the share of the
    predictions x in the ball of some reference y, recall the share of the references in the ball of some prediction.
    Of exact copies beyond k the ball is the vector itself; a copy of it in the other set is in it.

    Both fall with the dimension, also between samples of one distribution, and depend on the numbers of images. Time
    O((m^2 + n^2 + m n) d), memory O((m + n) d).

    Args:
        x: (m, d) float, predictions.
        y: (n, d) float, references.
        k: neighbours; 3 as published.

    Raises:
        TypeError: no floating-point numbers.
        ValueError: fewer than k + 2 vectors in a set, NaN, dimensions that differ, k below 1.
    """
    for name, rows in (("predictions", x), ("references", y)):
        check_neighbours(k, len(rows), name)
    first, second = vector_pair(x, y, ("predictions", "references"))
    balls = [Balls(squared_radii(vectors, (k,))[0], closed=True) for vectors in (second, first)]
    (of_real,), (of_generated,) = inside(first, second, balls[:1], balls[1:])
    precision, precision_error = share(of_real.within > 0)
    recall, recall_error = share(of_generated.within > 0)
    return PrecisionRecall(precision, recall, precision_error, recall_error, k, len(x), len(y))


def realism(x: Tensor, y: Tensor, k: int = 3) -> Tensor:  # (m, d), (n, d) -> (m,) float64
    """Of each prediction its realism (the same paper, eq. 3): the largest radius over distance of a reference ball.

    Balls of half the references count, those with a radius below the median. 1 or more: the image lies in one of
    them; infinite on a reference itself. Arguments and errors as for [`precision_recall`].
    """
    check_neighbours(k, len(y), "references")
    first, second = vector_pair(x, y, ("predictions", "references"))
    squared = squared_radii(second, (k,))[0]
    radii = squared.sqrt()
    kept = radii < torch.quantile(radii, 0.5)
    if not kept.any():
        raise ValueError("references must have balls of different radii, to leave half of them out; all are equal")
    centres, squared = second.rows[kept].double(), squared[kept]
    found = []
    for rows in first.rows.split(max(1, TILE // len(centres))):
        distances = torch.cdist(rows.double(), centres, compute_mode="donot_use_mm_for_euclid_dist").square_()
        found.append((squared / distances).nan_to_num(nan=0.0, posinf=torch.inf).amax(1).sqrt())
    return torch.cat(found)


def share(hits: Tensor) -> tuple[float, float]:
    """The share of a (n,) bool tensor that is true, and its binomial standard error."""
    value = float(hits.double().mean())
    return value, (value * (1 - value) / len(hits)) ** 0.5
