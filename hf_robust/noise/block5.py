"""`block5_RR`: the rate goes to the next class in blocks of five labels, as several released codes run it."""

from hf_common.references import Paper

from .base import ClassNoise, matrix_to

BLOCK = 5


class Block5(ClassNoise):
    """Class i gives the rate to i + 1, the last of each block of five consecutive labels to the block's first."""

    name = "block5"
    colour = "#DDCC77"
    words = "of each class {rate} % go to the next one in its block of five labels, of the last to the first"
    entry = (
        "RR percent of each class go to the next one in its block of five consecutive labels, of the last to the "
        "first: the asymmetric noise on CIFAR-100 in the released code of Ma et al. 2020 and their successors."
    )
    caveat = (
        "Papers describe it as noise inside superclasses; CIFAR-100's labels are in the order of the alphabet, and of "
        "the 100 arrows 6 stay in a superclass. `superclass_RR` is what they describe."
    )
    paper = Paper(
        "X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey",
        "Normalized Loss Functions for Deep Learning with Noisy Labels",
        "ICML 2020",
    )

    def check_num_classes(self, spec, num_classes):
        """K has to be a multiple of 5."""
        if num_classes % BLOCK:
            raise ValueError(f"num_classes: {spec} needs a multiple of {BLOCK} classes, got {num_classes}")

    def matrix(self, rate, num_classes):
        """One target a class."""
        targets = {i: i - i % BLOCK + (i + 1) % BLOCK for i in range(num_classes)}
        return matrix_to(targets, rate, num_classes)
