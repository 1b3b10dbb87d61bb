"""`superclass_RR`: the rate goes to the next class of the same superclass of CIFAR-100, as papers describe it."""

from collections.abc import Sequence

from hf_common.references import Paper

from .cifar100 import SUPERCLASSES, are_cifar100
from .mapped import MappedNoise


def ring_targets(superclasses: Sequence[int] = SUPERCLASSES) -> dict[int, int]:
    """Each class to the next of its superclass by id, the last to the first; one that is alone in it has no target.

    Args:
        superclasses: of each class, (K,).
    """
    members: dict[int, list[int]] = {}
    for fine, coarse in enumerate(superclasses):
        members.setdefault(coarse, []).append(fine)
    targets = {
        fine: group[(place + 1) % len(group)]
        for group in members.values()
        for place, fine in enumerate(group)
        if len(group) > 1
    }
    return dict(sorted(targets.items()))


class Superclass(MappedNoise):
    """Each of CIFAR-100's classes gives the rate to the next one of its superclass: no superclass becomes wrong."""

    name = "superclass"
    targets = ring_targets()
    colour = "#44AA99"
    words = "of each class {rate} % go to the next class of its superclass, of the last to the first"
    entry = (
        "RR percent of each class go to the next class of its superclass, of the last to the first (as Patrini et al. "
        "2017 and later papers describe their asymmetric noise on CIFAR-100)."
    )
    caveat = (
        "The released codes of several papers run another one under this description: see `block5_RR`, of whose 100 "
        "arrows 6 stay in a superclass."
    )
    paper = Paper(
        "G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu",
        "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
        "CVPR 2017",
    )

    def check_classes(self, spec, names):
        """They have to be CIFAR-100's, in its order."""
        if not are_cifar100(names):
            raise ValueError(
                f"noise={str(spec)!r} is defined on the superclasses of CIFAR-100, by its classes in their order; the "
                f"data set has {len(names)}: {list(names[:5])}, ..."
            )

    def check_num_classes(self, spec, num_classes):
        """K has to be 100."""
        if num_classes != len(SUPERCLASSES):
            raise ValueError(f"num_classes: {spec} is defined on the 100 classes of CIFAR-100, got {num_classes}")

    def entry_of(self, names):
        """Without the arrows, which are as many as there are classes."""
        kept = len(names) - len(self.targets)
        alone = f" {kept} of the {len(names)} classes are alone in theirs and keep their labels." if kept else ""
        return f"RR percent of each class go to the next class of its superclass, of the last to the first.{alone}"
