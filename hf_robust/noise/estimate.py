"""How wrong labels are, estimated from a classifier's probabilities: the noise rate and the transition matrix.

`probabilities` (N, K) are a classifier's for N samples that it was not trained on (cross-validation): one that has
memorised its labels finds nothing wrong with them. Confident learning is Northcutt et al. 2021 (arXiv:1911.00068),
whose equations are named below; anchors are Patrini et al. 2017 (arXiv:1609.03683).
"""

import numpy as np
from numpy.typing import ArrayLike

from .labels import check_labels

# As in cleanlab: a mean of equal probabilities may exceed them by rounding, and a class whose mean is next to zero has
# no confident samples.
TOLERANCE = 1e-6
LOWEST_THRESHOLD = 2 * TOLERANCE


def confident_joint(probabilities: ArrayLike, given: ArrayLike) -> np.ndarray:
    """Counts of samples with given label i that are confidently of class j (eq. 1).

    A sample is confidently of class j if p_j is at least the mean of p_j over the samples with given label j (eq. 2),
    to 1e-6; of several such classes, of the most probable one (of equals the first). Samples without such a class are
    not counted, and neither is any sample for a class that no sample is labelled as.

    `cleanlab.count.compute_confident_joint(calibrate=False)` gives the same counts but for two things: it raises
    zeros on the diagonal to 1, and where a sample is confident in several classes it takes the most probable of *all*
    classes, although that may be none of these.

    Args:
        probabilities: (N, K) floats in [0, 1], rows sum to 1 (to 1e-3), N >= 1, K >= 2.
        given: (N,) integers in 0..K-1, the labels that may be wrong.

    Returns:
        `np.ndarray`: (K, K) int64, rows the given label, columns the class; sums to N or less.

    Raises:
        ValueError: shape, range or length of an argument is wrong.
        TypeError: `given` are no integers.
    """
    probabilities, given = check_predictions(probabilities, given)
    num_classes = probabilities.shape[1]
    confident = probabilities >= class_thresholds(probabilities, given) - TOLERANCE
    best = np.where(confident, probabilities, -1.0).argmax(axis=1)
    cells = (given * num_classes + best)[confident.any(axis=1)]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_thresholds(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(K,) the mean of p_j over the samples with given label j (eq. 2); infinite where no sample has it."""
    labelled = np.bincount(given, minlength=probabilities.shape[1])
    sums = np.bincount(given, weights=probabilities[np.arange(len(given)), given], minlength=probabilities.shape[1])
    return np.where(labelled > 0, np.maximum(sums / np.maximum(labelled, 1), LOWEST_THRESHOLD), np.inf)


def estimate_joint(probabilities: ArrayLike, given: ArrayLike) -> np.ndarray:
    """P(given = i, clean = j): the confident joint, calibrated to the frequencies of the given labels (eq. 3).

    Labels i of which no sample is confident in any class are taken to be right. Equals `cleanlab.count.estimate_joint`
    but for what [`confident_joint`] says, and that cleanlab rounds to whole samples.

    Args and errors: as for [`confident_joint`].

    Returns:
        `np.ndarray`: (K, K) float64, sums to 1; row i sums to the share of given labels i.
    """
    counts = confident_joint(probabilities, given).astype(np.float64)
    unknown = counts.sum(axis=1) == 0
    counts[unknown, unknown] = 1
    labelled = np.bincount(np.asarray(given), minlength=len(counts))
    return counts / counts.sum(axis=1, keepdims=True) * (labelled / labelled.sum())[:, None]


def estimate_noise_rate(probabilities: ArrayLike, given: ArrayLike) -> float:
    """The share of wrong labels, in [0, 1]: what is off the diagonal of [`estimate_joint`], which takes the same."""
    joint = estimate_joint(probabilities, given)
    return float(joint[~np.eye(len(joint), dtype=bool)].sum())  # 1 - trace, without its rounding


def estimate_transition_matrix(probabilities: ArrayLike, given: ArrayLike) -> np.ndarray:
    """T[i, j] = P(given = j | clean = i) by confident learning: the columns of [`estimate_joint`], each to sum 1.

    A class that no sample is confidently of, such as one that no sample is labelled as, has a row of the identity:
    nothing is known to be flipped, and every row still sums to 1.

    Args and errors: as for [`confident_joint`].

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1, as of [`~hf_robust.noise.draw.transition_matrix`].
    """
    joint = estimate_joint(probabilities, given)
    empty = joint.sum(axis=0) == 0
    joint[empty, empty] = 1
    return (joint / joint.sum(axis=0)).T


def anchor_transition_matrix(probabilities: ArrayLike, quantile: float = 0.97) -> np.ndarray:
    """T[i, j] = p_j of the anchor of class i, a sample that is as good as certain to be of it; needs no labels.

    For probabilities of the *given* label, which training with plain cross-entropy on noisy labels aims at. The
    anchor is the sample with the largest p_i that is not above that quantile of p_i (of equals the first): the few
    largest may be outliers. (The authors' code takes the largest strictly below a quantile that is rounded up to a
    sample, the same one unless quantile * (N - 1) is whole or values are equal.)

    Args:
        probabilities: as for [`confident_joint`].
        quantile (`float`, defaults to 0.97): in (0, 1]; 1 takes the sample with the largest p_i of all.

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1.

    Raises:
        ValueError: `probabilities` or `quantile` is not as above.
    """
    probabilities = _check_probabilities(probabilities)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: expected a number in (0, 1], got {quantile!r:.120}")
    largest = np.quantile(probabilities, quantile, axis=0, method="lower")  # (K,), each the p_i of a sample
    anchors = (probabilities == largest).argmax(axis=0)
    return probabilities[anchors] / probabilities[anchors].sum(axis=1, keepdims=True)


def _check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[0] < 1 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities: expected shape (N, K), N >= 1 and K >= 2, got {probabilities.shape}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN is in no range
        raise ValueError(
            f"probabilities: expected values in [0, 1], got {np.min(probabilities)} to {np.max(probabilities)}"
        )
    sums = probabilities.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > 1e-3)
    if len(wrong):
        raise ValueError(
            f"probabilities: expected rows that sum to 1, got a sum of {sums[wrong[0]]:.6g} in row {wrong[0]} "
            f"({len(wrong)} of {len(sums)} rows differ by more than 0.001)"
        )
    return probabilities


def check_predictions(probabilities: ArrayLike, given: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probabilities = _check_probabilities(probabilities)
    given = check_labels("given", given, probabilities.shape[1])
    if len(given) != len(probabilities):
        raise ValueError(f"given: expected one label for each of {len(probabilities)} rows, got {len(given)}")
    return probabilities, given
