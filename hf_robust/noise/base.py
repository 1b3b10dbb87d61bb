"""What every kind of label noise has: names and words; and how noise that depends on the class alone is drawn."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from hf_common.references import Paper

SAMPLINGS = ("quota", "bernoulli")
# Of the rules by which labels are drawn: another one means that other labels may be wrong under the same name and
# seed. 1 (which is not written anywhere) rounded the quota of each class by itself, 2 carries it over the classes.
NOISE_VERSION = 2
SUM_TOLERANCE = 1e-4  # of a row, as the losses take it
ROUNDING = 1e-9  # of an entry of a matrix


class NoiseKind:
    """All that belongs to one kind of noise. A rate is in percent, RR stands for it, K is the number of classes.

    Attributes:
        name: the first word of its specs, configs and results.
        rated: whether a rate is part of its names. A noise that has none makes no label wrong, or was recorded.
        recorded: whether the labels were given by people, and not drawn.
        needs_images: whether it looks at the pixels.
        classes: the names of the classes that it is defined on, in this order; None: any.
        colour: in figures of data sets.
        words: what it does to the labels, for the card of a model; `{rate}` stands for the rate.
        entry: the same for the card of CIFAR-10 with noisy labels.
        caveat: what to mind when rates are compared; empty: nothing.
        paper: where it was proposed; None: nowhere.
    """

    name: str
    rated: bool = True
    recorded: bool = False
    needs_images: bool = False
    classes: tuple[str, ...] | None = None
    colour: str
    words: str
    entry: str
    caveat: str = ""
    paper: Paper | None = None

    @property
    def pattern(self) -> str:
        """The form of its names, such as `symmetric_RR`."""
        return f"{self.name}_RR" if self.rated else self.name

    def check_classes(self, spec: object, names: Sequence[str]) -> None:
        """Raise a `ValueError` that names `spec` where the noise is not defined on classes of these names."""
        if self.classes is not None and tuple(names) != self.classes:
            raise ValueError(
                f"noise={str(spec)!r} is defined on the classes {list(self.classes)}, in this order; the data set has "
                f"{list(names)}"
            )

    def check_num_classes(self, spec: object, num_classes: int) -> None:
        """Raise a `ValueError` that names `spec` where the noise is not defined on K classes."""


class ClassNoise(NoiseKind, ABC):
    """Noise that depends on the class alone: it has a transition matrix, and is drawn by it.

    By quota, where each class that loses labels loses the rate, and to all its targets alike, their number is rounded
    once over all classes; any other matrix is drawn row by row, see [`labels_by_row`].
    """

    @abstractmethod
    def matrix(self, rate: float, num_classes: int) -> np.ndarray:
        """`T[i, j] = P(noisy = j | clean = i)`, (K, K) float64, rows sum to 1."""

    def checked_matrix(self, rate: float, num_classes: int) -> np.ndarray:
        """[`matrix`], or a `ValueError` that says what is wrong with it."""
        matrix = self.matrix(rate, num_classes)
        try:
            array = np.asarray(matrix, np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (num_classes, num_classes):
            got = f"shape {array.shape}" if array.size else f"{matrix!r:.80}"
            raise ValueError(
                f"matrix of noise {self.name!r} must be ({num_classes}, {num_classes}) numbers, got {got}"
            )
        if fault := matrix_fault(array):
            raise ValueError(f"matrix of noise {self.name!r}: {fault}")
        return array

    def draw(self, labels, rate, num_classes, generator, *, sampling, images):  # (N,) int64 -> (N,) int64
        """Noisy labels; `images` are not looked at."""
        matrix = self.checked_matrix(rate, num_classes)
        if sampling == "bernoulli":
            return _bernoulli_labels(labels, matrix, generator)
        if _in_equal_shares(matrix, rate):
            return _quota_labels(labels, matrix, rate, generator)
        return labels_by_row(labels, matrix, generator)


def matrix_fault(matrix: np.ndarray) -> str | None:
    """What keeps a square matrix from being one of transitions, in words; None: nothing."""
    # NaN is in no range; 1 - 0.1 - 0.2 - 0.7 is a bit below 0.
    if not ((matrix >= -ROUNDING) & (matrix <= 1 + ROUNDING)).all():
        return f"entries must be in [0, 1], are {np.min(matrix)} to {np.max(matrix)}"
    off = np.abs(matrix.sum(axis=1) - 1)
    if off.max() > SUM_TOLERANCE:
        row = int(off.argmax())
        return f"rows must sum to 1, row {row} sums to {matrix[row].sum():.6g}"
    return None


def matrix_to(targets: dict[int, int], rate: float, num_classes: int) -> np.ndarray:
    """The matrix (K, K) of a noise that takes the rate from each class in `targets` to its one target."""
    share = float(rate) / 100
    matrix = np.eye(num_classes)
    for clean_class, target in targets.items():
        matrix[clean_class, clean_class] = 1 - share
        matrix[clean_class, target] = share
    return matrix


def quotas(rate: float, counts: Sequence[int] | np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many images of each class get a wrong label; together `rate` percent of all, rounded once.

    Each class gives its share rounded down; what the total lacks then comes from the classes that lost most by that
    (largest remainder), those that lost the same in an order that is drawn. Nothing is drawn where all shares are
    whole, as on CIFAR-10 at rates of whole percent.

    Args:
        counts: (K,), the images of each class; 0 for one that keeps its labels.
    """
    percent = Fraction(repr(float(rate)))  # 33.3 is 333 / 10, which no binary fraction is
    shares = [percent * int(count) / 100 for count in counts]
    flips = np.array([int(share) for share in shares])
    missing = round(sum(shares)) - int(flips.sum())
    if missing > 0:
        drawn = generator.permutation(len(shares))
        order = sorted(range(len(shares)), key=lambda k: (flips[k] - shares[k], drawn[k]))
        flips[order[:missing]] += 1
    return flips


def whole_shares(rate: float, counts: Sequence[int] | np.ndarray) -> bool:
    """Whether that rate is a whole number of images in each class, so that nothing is rounded."""
    percent = Fraction(repr(float(rate)))
    return all((percent * int(count) / 100).denominator == 1 for count in counts)


def labels_by_row(labels, matrix, generator):  # (N,) int64 -> (N,) int64
    """Labels by quota of any rows.

    Of class i with n_i samples n_i T[i, i] keep their label, rounded down or up so that of all classes together the
    sum is rounded once: up where most was cut off, and of equals in an order that is drawn. The others are shared out
    alike over the rest of its row.
    """
    noisy = labels.copy()
    num_classes = len(matrix)
    counts = np.bincount(labels, minlength=num_classes)
    matrix = matrix / matrix.sum(axis=1, keepdims=True)
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


def _whole(shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(K,) whole numbers, the shares rounded down or up so that the sum is rounded once (largest remainder)."""
    counts = np.floor(shares + 1e-9).astype(np.int64)  # 0.1 * 30 is a bit less than 3
    order = np.lexsort((generator.random(len(shares)), counts - shares))
    counts[order[: max(0, round(shares.sum()) - counts.sum())]] += 1
    return counts


def _in_equal_shares(matrix: np.ndarray, rate: float) -> bool:
    """Whether each class that loses labels loses the rate, and to all its targets alike."""
    off = matrix * (1 - np.eye(len(matrix)))
    targets = np.count_nonzero(off, axis=1, keepdims=True)
    return bool((np.abs(off - rate / 100 / np.maximum(targets, 1))[off != 0] < ROUNDING).all())


def _quota_labels(labels, matrix, rate, generator):
    noisy = labels.copy()
    all_targets = [np.setdiff1d(np.flatnonzero(row), clean_class) for clean_class, row in enumerate(matrix)]
    counts = np.bincount(labels, minlength=len(matrix)) * [len(targets) > 0 for targets in all_targets]
    flips_of = quotas(rate, counts, generator)
    for clean_class, targets in enumerate(all_targets):
        members = np.flatnonzero(labels == clean_class)
        if len(targets) == 0 or len(members) == 0:
            continue
        flips = flips_of[clean_class]
        share, rest = divmod(flips, len(targets))
        wrong = np.concatenate([np.repeat(targets, share), generator.permutation(targets)[:rest]])
        noisy[generator.permutation(members)[:flips]] = wrong
    return noisy


def _bernoulli_labels(labels, matrix, generator):
    # Inverse transform: the first class whose cumulative probability exceeds u in [0, 1). Divided by the row's sum,
    # which rounding leaves a bit beside 1, so that no u slips past the last class of probability > 0.
    cumulative = matrix.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    uniform = generator.random(len(labels))
    return (uniform[:, None] >= cumulative[labels]).sum(axis=1)
