"""Between what the share of wrong labels lies, as far as held-out predictions can tell.

No estimate from one classifier's predictions is free of that classifier's errors, and resampling the images does not
show them: on 2,000 photographs with 10 % wrong labels and a classifier that is right on 75 %, confident learning says
28 %, give or take 2. So what is given here is an interval with two different ends. Below: the share of labels that
differ from the prediction where the classifier is surest, and hardly ever wrong. Above: the share that differ
anywhere, to which its errors add. Labels that people find hard are wrong more often where the classifier is unsure
too, so that the truth lies between the two as well. Both ends are moved outwards by a bootstrap over the images (Efron
1979, doi:10.1214/aos/1176344552), whose refitting of the classifier is left out.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .estimate import TOLERANCE, check_predictions, class_thresholds

SUREST = (0.5, 0.2, 0.1)  # shares of the images that the lower end is looked for in
FEWEST = 25  # images that a share is given of: with fewer, its 95 % interval is wider than 0.4
# Of the agreement of predictions and given labels beyond chance, Cohen's kappa; up to there it is called fair at best
# (Landis and Koch 1977, doi:10.2307/2529310).
LEAST_KAPPA = 0.4
RESAMPLES = 200
MOST_CLASSES = 200  # of a matrix with bounds: its resamples take 8 bytes x 200 x K x K, three times
LEVEL = 0.95

OK, TOO_FEW, CANNOT_TELL, IN_SAMPLE = "ok", "too few", "cannot tell", "in sample"


def noise_bounds(
    probabilities: ArrayLike, given: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, Any]:
    """An interval for the share of wrong labels and one for each entry of the transition matrix, as JSON values.

    Args:
        probabilities, given: as for [`~hf_robust.noise.estimate.confident_joint`]; of images that the classifier was
            not trained on.
        resamples: of the bootstrap.
        level: of the interval, in (0, 1).
        seed: of the bootstrap.

    Returns:
        `dict`:
        - `verdict`: `"ok"`; `"too few"` of fewer than 100 images; `"cannot tell"` where predictions and given labels
          agree too little, which a bad classifier and many wrong labels both make;
        - `images`, `agreement` in [0, 1], `kappa` in [-1, 1] (Cohen 1960);
        - `rate_interval`: [low, high]; None unless the verdict is ok;
        - `given_per_class`, `confident_per_class`: K counts, of given labels and of images that are confidently of a
          class, see [`~hf_robust.noise.estimate.confident_joint`];
        - `low`, `high`: K rows of K shares, or None in place of a row that rests on fewer than 25 images (and of all
          unless the verdict is ok, or of more than 200 classes): P(given = j | clean = i).

    Raises:
        ValueError: an argument is wrong.
    """
    probabilities, given = check_predictions(probabilities, given)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be 1 or more and level in (0, 1); got {resamples} and {level}")
    num_classes = probabilities.shape[1]
    predicted, cells = probabilities.argmax(axis=1), _confident_class(probabilities, given)
    kappa, agreement = cohens_kappa(predicted, given, num_classes)
    confident = np.bincount(cells[cells >= 0], minlength=num_classes)
    few = len(given) < 4 * FEWEST
    verdict = TOO_FEW if few else OK if kappa >= LEAST_KAPPA else CANNOT_TELL
    bounds: dict[str, Any] = {
        "verdict": verdict,
        "images": len(given),
        "agreement": agreement,
        "kappa": kappa,
        "rate_interval": None,
        "given_per_class": np.bincount(given, minlength=num_classes).tolist(),
        "confident_per_class": confident.tolist(),
        "low": [None] * num_classes,
        "high": [None] * num_classes,
    }
    if verdict == OK:
        bounds |= _intervals(probabilities.max(axis=1), predicted, cells, given, num_classes, resamples, level, seed)
    return bounds


def _intervals(
    sure: np.ndarray,
    predicted: np.ndarray,
    cells: np.ndarray,
    given: np.ndarray,
    num_classes: int,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """`rate_interval`, and `low` and `high` of what has enough images."""
    surest_of_each = np.where(_surest_of_each(sure, predicted, num_classes), predicted, -1)
    groups = [predicted, cells, surest_of_each] if num_classes <= MOST_CLASSES else []
    rates, matrices = _resampled(given, predicted, _surest(sure), groups, num_classes, resamples, seed)
    tail = (1 - level) / 2
    found: dict[str, Any] = {
        "rate_interval": [float(np.quantile(rates[0], tail)), float(np.quantile(rates[1], 1 - tail))]
    }
    if not groups:
        return found
    low = np.min([np.quantile(matrix, tail, axis=0) for matrix in matrices], axis=0)
    high = np.max([np.quantile(matrix, 1 - tail, axis=0) for matrix in matrices], axis=0)
    enough = [min(np.count_nonzero(group == row) for group in groups) >= FEWEST for row in range(num_classes)]
    for name, rows in (("low", low), ("high", high)):
        found[name] = [row.tolist() if told else None for row, told in zip(rows, enough, strict=True)]
    return found


def cohens_kappa(predicted: np.ndarray, given: np.ndarray, num_classes: int) -> tuple[float, float]:
    """(kappa, agreement): the share of equal labels, and that beyond what their frequencies alone would make equal.

    Both int64 (N,) in 0..K-1. Kappa is 0 where chance alone makes all equal.
    """
    agreement = float(np.mean(predicted == given))
    shares = [np.bincount(labels, minlength=num_classes) / len(labels) for labels in (predicted, given)]
    chance = float(shares[0] @ shares[1])
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0, agreement


def _confident_class(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(N,) the class that each image is confidently of, -1 without one."""
    confident = probabilities >= class_thresholds(probabilities, given) - TOLERANCE
    return np.where(confident.any(axis=1), np.where(confident, probabilities, -1.0).argmax(axis=1), -1)


def _surest(sure: np.ndarray) -> list[np.ndarray]:
    """Masks (N,) of the surest of all images. Not of each class: of one that is hard to tell, the surest err too."""
    ranks = np.empty(len(sure), np.int64)
    ranks[np.argsort(-sure, kind="stable")] = np.arange(len(sure))
    return [ranks < max(FEWEST, int(share * len(sure))) for share in SUREST]


def _surest_of_each(sure: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Mask (N,) of the surer half of what is predicted as each class, of 25 images or all that there are."""
    chosen = np.zeros(len(sure), bool)
    for label in range(num_classes):
        places = np.flatnonzero(predicted == label)
        order = places[np.argsort(-sure[places], kind="stable")]
        chosen[order[: max(FEWEST, len(order) // 2)]] = True
    return chosen


def _resampled(
    given: np.ndarray,
    predicted: np.ndarray,
    surest: list[np.ndarray],
    groups: list[np.ndarray],
    num_classes: int,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rates (2, R), at the lower and the upper end; and of each group's matrix (R, K, K)."""
    random, size = np.random.default_rng(seed), len(given)
    differs = predicted != given
    rates = np.empty((2, resamples))
    matrices = [np.empty((resamples, num_classes, num_classes)) for _ in groups]
    kept = [group >= 0 for group in groups]
    cells = [(group * num_classes + given)[keep] for group, keep in zip(groups, kept, strict=True)]
    for draw in range(resamples):
        weights = np.bincount(random.integers(0, size, size), minlength=size).astype(np.float64)
        ends = [weights[mask & differs].sum() / max(weights[mask].sum(), 1) for mask in surest]
        rates[:, draw] = min(ends), weights[differs].sum() / size
        for matrix, keep, cell in zip(matrices, kept, cells, strict=True):
            counts = np.bincount(cell, weights[keep], num_classes**2).reshape(num_classes, num_classes)
            matrix[draw] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return rates, matrices
