"""`symmetric_RR`: the rate goes to the other classes, in equal parts."""

import numpy as np

from hf_common.references import Paper

from .base import ClassNoise


class Symmetric(ClassNoise):
    """Each class gives rate / (K - 1) to each *other* class, so that the rate is the share of wrong labels."""

    name = "symmetric"
    colour = "#0072B2"
    words = "of each class {rate} % go to the other classes, in equal parts"
    entry = "RR percent of each class go to the nine *other* classes in equal parts (Ma et al. 2020)."
    caveat = (
        "Some papers draw symmetric noise from all ten classes, the true one among them: their rate times 0.9 is the "
        "rate here."
    )
    paper = Paper(
        "X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey",
        "Normalized Loss Functions for Deep Learning with Noisy Labels",
        "ICML 2020",
    )

    def matrix(self, rate, num_classes):
        """1 - rate on the diagonal, rate / (K - 1) beside it."""
        share = float(rate) / 100
        matrix = np.full((num_classes, num_classes), share / (num_classes - 1))
        np.fill_diagonal(matrix, 1 - share)
        return matrix
