"""`matrix:FILE`: noise by any transition matrix, of a file or of another run's estimate."""

import hashlib
import re

import numpy as np

from .base import ClassNoise, NoiseKind
from .labels import check_num_classes

PREFIX = "matrix:"
DIGEST_LETTERS = "abcdefghijklmnop"  # one a hexadecimal digit: eight digits could be taken for a rate


class MatrixByName(NoiseKind):
    """The noise of a matrix whose file has not been read here: what its name alone says."""

    name = "matrix"
    rated = False
    pattern = "matrix_*"
    colour = "#882255"
    words = "each label by the row of its clean class in a transition matrix"
    # Of all of them, and without their numbers: a card is made where the file may not be.
    entry = (
        "each label is drawn by the row of its clean class in a transition matrix that was given as a file; the "
        "name ends with eight letters of the matrix's digest."
    )


class MatrixNoise(MatrixByName, ClassNoise):
    """Noise with the transition matrix T[i, j] = P(noisy = j | clean = i), of any rows.

    By quota, of class i with n_i samples n_i T[i, i] keep their label, rounded down or up so that of all classes
    together the sum is rounded once: up where most was cut off, and of equals in an order that is drawn. The others
    are shared out alike over the rest of its row.

    Args:
        matrix: (K, K) float64, entries in [0, 1], rows sum to 1.
    """

    def __init__(self, matrix: np.ndarray):
        self._matrix = matrix
        self.name = matrix_name(matrix)
        kept = 100 * np.diag(matrix)
        span = f"{kept.min():.1f} to {kept.max():.1f} %"
        self.words = f"{MatrixByName.words}, which keeps {span} of a class"

    def check_num_classes(self, spec, num_classes):
        """K has to be that of the matrix."""
        if num_classes != len(self._matrix):
            raise ValueError(
                f"num_classes: {spec} has a matrix of {len(self._matrix)} classes, the data set has {num_classes}"
            )

    def check_classes(self, spec, names):
        """As many as the matrix has rows."""
        self.check_num_classes(spec, len(names))

    def matrix(self, rate, num_classes):
        """The one that was given."""
        return self._matrix.copy()

    def draw(self, labels, rate, num_classes, generator, *, sampling, images):
        """Noisy labels; `images` are not looked at."""
        if sampling == "bernoulli":
            return super().draw(labels, rate, num_classes, generator, sampling=sampling, images=images)
        noisy = labels.copy()
        counts = np.bincount(labels, minlength=num_classes)
        matrix = self._matrix / self._matrix.sum(axis=1, keepdims=True)
        # Over the classes first: of many small ones each would keep or lose the same part of an image.
        kept = _whole(counts * np.diag(matrix), generator)
        for clean_class in np.flatnonzero(counts):
            row = matrix[clean_class].copy()
            row[clean_class] = 0
            flips = counts[clean_class] - kept[clean_class]
            given = _whole(flips * row / row.sum(), generator) if flips else np.zeros(num_classes, np.int64)
            given[clean_class] = kept[clean_class]
            members = np.flatnonzero(labels == clean_class)
            noisy[generator.permutation(members)] = np.repeat(np.arange(num_classes), given)
        return noisy


def matrix_name(matrix: np.ndarray) -> str:
    """`matrix_` and eight letters of the SHA-256 of its numbers."""
    check_num_classes(len(matrix))
    digest = hashlib.sha256(np.ascontiguousarray(matrix, "<f8").tobytes()).hexdigest()[:8]
    return "matrix_" + "".join(DIGEST_LETTERS[int(digit, 16)] for digit in digest)


def is_matrix_name(name: str) -> bool:
    """Whether a config or a result is named after such a noise."""
    return re.fullmatch(f"matrix_[{DIGEST_LETTERS}]{{8}}", name) is not None


def _whole(shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K,) whole numbers, the shares rounded down or up so that the sum is rounded once (largest remainder)."""
    counts = np.floor(shares + 1e-9).astype(np.int64)  # 0.1 * 30 is a bit less than 3
    order = np.lexsort((generator.random(len(shares)), counts - shares))
    counts[order[: max(0, round(shares.sum()) - counts.sum())]] += 1
    return counts
