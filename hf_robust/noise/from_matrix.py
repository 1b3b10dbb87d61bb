"""`matrix:FILE`: noise by any transition matrix, of a file or of another run's estimate."""

import hashlib
import re

import numpy as np

from .base import ClassNoise, NoiseKind, labels_by_row
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

    By quota it is drawn row by row, see [`labels_by_row`].

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
        return labels_by_row(labels, self._matrix, generator)


def matrix_name(matrix: np.ndarray) -> str:
    """`matrix_` and eight letters of the SHA-256 of its numbers."""
    check_num_classes(len(matrix))
    digest = hashlib.sha256(np.ascontiguousarray(matrix, "<f8").tobytes()).hexdigest()[:8]
    return "matrix_" + "".join(DIGEST_LETTERS[int(digit, 16)] for digit in digest)


def is_matrix_name(name: str) -> bool:
    """Whether a config or a result is named after such a noise."""
    return re.fullmatch(f"matrix_[{DIGEST_LETTERS}]{{8}}", name) is not None
