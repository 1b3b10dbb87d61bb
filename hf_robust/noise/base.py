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

    The probabilities of a row off the diagonal are 0 or all equal, so that equal shares of a quota are exact.
    """

    @abstractmethod
    def matrix(self, rate: float, num_classes: int) -> np.ndarray:
        """`T[i, j] = P(noisy = j | clean = i)`, (K, K) float64, rows sum to 1."""

    def draw(self, labels, rate, num_classes, generator, *, sampling, images):  # (N,) int64 -> (N,) int64
        """Noisy labels; `images` are not looked at."""
        matrix = self.matrix(rate, num_classes)
        if sampling == "bernoulli":
            return _bernoulli_labels(labels, matrix, generator)
        return _quota_labels(labels, matrix, rate, generator)


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
