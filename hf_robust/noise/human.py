"""`human_*`: the labels that people gave, recorded and not drawn."""

import re

from hf_common.references import Paper

from .base import NoiseKind

# Each data set config, and the key of its labels in the published CIFAR-10_human.pt.
HUMAN_CONFIGS = {
    "human_aggregate": "aggre_label",
    "human_random1": "random_label1",
    "human_random2": "random_label2",
    "human_random3": "random_label3",
    "human_worst": "worse_label",
}
# CIFAR-100N's; its coarse labels are of 12 groups, not of the 20 superclasses, and left out.
HUMAN_100_CONFIGS = {"human_fine": "noisy_label"}
HUMAN = "human_"  # before the names of all of them


def is_human_name(name: str) -> bool:
    """Whether a config can be named so: such names become folders."""
    return re.fullmatch(f"{HUMAN}[A-Za-z0-9_]{{1,40}}", name) is not None


class Human(NoiseKind):
    """CIFAR-10N (Wei et al. 2022)."""

    name = "human"
    rated = False
    recorded = True
    pattern = "human_*"
    colour = "#D55E00"
    words = "the labels that people gave (CIFAR-10N, Wei et al. 2022)"
    entry = (
        "the labels that people gave (CIFAR-10N, Wei et al. 2022): by the first, second and third annotator of each "
        "image (`random1`, `random2`, `random3`), by their majority (`aggregate`), and a wrong one of the three "
        "wherever there is one (`worst`). Recorded, not drawn."
    )
    paper = Paper(
        "J. Wei, Z. Zhu, H. Cheng, T. Liu, G. Niu, Y. Liu",
        "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations",
        "ICLR 2022",
    )
