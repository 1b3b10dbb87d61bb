"""`semantic_RR`: the rate goes to the class it is mistaken for; exact, or as the code of several papers draws it."""

import numpy as np

from hf_common.references import Paper

from .cifar10 import CIFAR10_CLASSES
from .mapped import MappedNoise

# CIFAR-10's confusable pairs (Patrini et al. 2017), in its class order: bird -> airplane, cat <-> dog,
# deer -> horse, truck -> automobile. The other five classes keep their labels.
SEMANTIC_TARGETS = {2: 0, 3: 5, 4: 7, 5: 3, 9: 1}
# MNIST's digits (Patrini et al. 2017): 7 -> 1, 2 -> 7, 5 <-> 6, 3 -> 8.
MNIST_TARGETS = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
# The order in which the code of Ma et al. (2020) flips them: cat before dog, which contaminated noise depends on.
CONTAMINATED_ORDER = (9, 2, 3, 5, 4)
CONTAMINATED = "contaminated_"  # before the name of a noise that was drawn so
CONTAMINATED_WORDS = ", and later classes flip earlier flips back, as several papers' code does"


class Semantic(MappedNoise):
    """Each class of `SEMANTIC_TARGETS` gives the rate to its target: half of the rate is wrong on balanced classes."""

    name = "semantic"
    classes = CIFAR10_CLASSES
    targets = SEMANTIC_TARGETS
    colour = "#009E73"
    words = (
        "{rate} % of the trucks are called automobiles, of the birds airplanes, of the deer horses, of the "
        "cats dogs and of the dogs cats; the other classes stay right"
    )
    entry = (
        "RR percent of truck go to automobile, of bird to airplane, of deer to horse, of cat to dog and of dog to cat "
        "(Patrini et al. 2017). The images are told apart by their clean labels, so that no cat turned dog is turned "
        "back. The other five classes stay clean, so RR / 2 percent of all labels are wrong."
    )
    paper = Paper(
        "G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu",
        "Making Deep Neural Networks Robust to Label Noise: a Loss Correction Approach",
        "CVPR 2017",
    )

    def check_num_classes(self, spec, num_classes):
        """K has to be 10."""
        if num_classes != len(self.classes):
            raise ValueError(f"num_classes: {spec} is defined on the 10 classes of CIFAR-10, got {num_classes}")


def contaminated_matrix(rate: float) -> np.ndarray:
    """(10, 10): of all that is called a class by then, whatever it was, the rate goes on, class after class."""
    share = float(rate) / 100
    matrix = np.eye(len(CIFAR10_CLASSES))
    for source in CONTAMINATED_ORDER:
        matrix[:, SEMANTIC_TARGETS[source]] += share * matrix[:, source]
        matrix[:, source] *= 1 - share
    return matrix


def contaminated_labels(
    labels: np.ndarray, rate: float, generator: np.random.Generator
) -> np.ndarray:  # (N,) int64 -> (N,) int64
    """As the code of Ma et al. (2020, active passive losses) and of their successors draws them, to compare with it.

    It takes the classes in the order `CONTAMINATED_ORDER` and in each turn relabels `int(rate / 100 * n)` of the n
    images that carry the label *now*. So dogs are drawn from the dogs and the cats just turned dog, some of which turn
    back: at a nominal 40 %, 24 % of the cats, 40 % of the dogs and 18.4 % of all labels of balanced classes end up
    wrong, where the exact noise has 40 %, 40 % and 20 %.
    """
    noisy = labels.copy()
    for source in CONTAMINATED_ORDER:
        members = np.flatnonzero(noisy == source)
        flips = int(float(rate) / 100 * len(members))
        noisy[generator.permutation(members)[:flips]] = SEMANTIC_TARGETS[source]
    return noisy
