"""Labels: their checks, and how wrong noisy ones are."""

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike


def check_num_classes(num_classes: int) -> None:
    """Raise unless K is an int (`TypeError`) and 2 or more (`ValueError`)."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):
        raise TypeError(f"num_classes: expected an int >= 2, got {num_classes!r:.120}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected an int >= 2, got {num_classes}")


def check_labels(name: str, labels: ArrayLike, num_classes: int) -> np.ndarray:
    """`labels` as (N,) int64, or an error that calls them `name`.

    Raises:
        ValueError: not one-dimensional, empty, or a value outside 0..K-1 (the first one and its position are named).
        TypeError: not integers.
    """
    labels = _as_labels(name, labels)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(
            f"{name}: expected values in 0..{num_classes - 1}, got {labels[outside[0]]} at position {outside[0]} "
            f"({len(outside)} of {len(labels)} are outside)"
        )
    return labels


def realised_rate(clean: ArrayLike, noisy: ArrayLike) -> float:
    """The share of labels that differ, in [0, 1]. `clean` and `noisy`: (N,) integers, N >= 1."""
    clean, noisy = _clean_and_noisy(clean, noisy)
    return float(np.mean(clean != noisy))


def realised_matrix(clean: ArrayLike, noisy: ArrayLike, num_classes: int) -> np.ndarray:
    """Counts of (clean, noisy) label pairs, each row divided by its sum.

    A class without images has a row of the identity: nothing of it was flipped, and every row still sums to 1.

    Args:
        clean, noisy: (N,) integers in 0..K-1, N >= 1.
        num_classes (`int`): K >= 2.

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1.

    Raises:
        ValueError: different lengths, or a label outside 0..K-1.
    """
    check_num_classes(num_classes)
    clean, noisy = _clean_and_noisy(clean, noisy)
    check_labels("clean", clean, num_classes)
    check_labels("noisy", noisy, num_classes)
    counts = np.bincount(clean * num_classes + noisy, minlength=num_classes**2).reshape(num_classes, num_classes)
    empty = counts.sum(axis=1) == 0
    counts[empty, empty] = 1
    return counts / counts.sum(axis=1, keepdims=True)


def _as_labels(name: str, labels: ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"{name}: expected shape (N,) with N >= 1, got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {labels.dtype}")
    return labels.astype(np.int64)


def _clean_and_noisy(clean: ArrayLike, noisy: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    clean, noisy = _as_labels("clean", clean), _as_labels("noisy", noisy)
    if len(clean) != len(noisy):
        raise ValueError(f"noisy: expected {len(clean)} labels, as many as clean, got {len(noisy)}")
    return clean, noisy
