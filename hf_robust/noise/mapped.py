"""Noise by a map of classes: each source gives the rate to its one target; the map may be one's own."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np

from .base import ClassNoise, matrix_to

MOST_ARROWS = 12  # that a sentence shows


class MappedNoise(ClassNoise):
    """Class i of `targets` gives the rate to `targets[i]`, the others keep their labels.

    Attributes:
        targets: source -> target, of the classes that the kind is defined on.
    """

    targets: Mapping[int, int]

    def matrix(self, rate: float, num_classes: int) -> np.ndarray:
        """Of the classes without a target the rows are the identity's."""
        return matrix_to(dict(self.targets), rate, num_classes)

    def with_targets(self, targets: Mapping[int, int], num_classes: int) -> "MappedNoise":
        """The same kind by another map, on any K classes.

        Raises:
            ValueError: no source, a class outside 0..K-1, or one that is its own target.
            TypeError: a class that is no integer.
        """
        mapped = copy.copy(self)
        mapped.targets = check_targets(targets, num_classes)
        return mapped

    def entry_of(self, names: Sequence[str]) -> str:
        """What it does to the labels, by the names of the classes; RR stands for the rate."""
        arrows = [f"of {names[source]} to {names[target]}" for source, target in self.targets.items()]
        shown = arrows[:MOST_ARROWS] + ([f"{len(arrows) - MOST_ARROWS} more"] if len(arrows) > MOST_ARROWS else [])
        words = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
        rest = len(names) - len(self.targets)
        kept = f" The other {rest} class{'es keep their' if rest > 1 else ' keeps its'} labels." if rest else ""
        return f"RR percent go {words}.{kept}"


def check_targets(targets: Mapping[int, int], num_classes: int) -> dict[int, int]:
    """A map of classes as plain numbers, or an error that names `targets`."""
    if not isinstance(targets, Mapping):
        raise TypeError(f"targets: expected a mapping of class to class, got {targets!r:.120}")
    for value in (*targets, *targets.values()):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"targets: expected classes as integers, got {value!r:.120}")
        if not 0 <= value < num_classes:
            raise ValueError(f"targets: expected classes in 0..{num_classes - 1}, got {value}")
    own = [source for source, target in targets.items() if source == target]
    if own or not targets:
        raise ValueError(f"targets: {f'class {own[0]} is its own target' if own else 'there is no source in the map'}")
    return {int(source): int(target) for source, target in targets.items()}
