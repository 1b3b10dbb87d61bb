"""`asymmetric_RR`: the rate goes to the next class."""

from hf_common.references import Paper

from .base import ClassNoise, matrix_to


class Asymmetric(ClassNoise):
    """Class i gives the rate to class (i + 1) mod K, the pair flip of Han et al. 2018."""

    name = "asymmetric"
    colour = "#56B4E9"
    words = "of each class {rate} % go to the next class, of the last to the first"
    entry = "RR percent of each class c go to class (c + 1) mod 10 (Han et al. 2018, pair flip)."
    paper = Paper(
        "B. Han, Q. Yao, X. Yu, G. Niu, M. Xu, W. Hu, I. Tsang, M. Sugiyama",
        "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
        "NeurIPS 2018",
    )

    def matrix(self, rate, num_classes):
        """1 - rate on the diagonal, the rate right of it."""
        return matrix_to({i: (i + 1) % num_classes for i in range(num_classes)}, rate, num_classes)
