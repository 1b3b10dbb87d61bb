"""The Inception Score: how sure a classifier is of each image, and how evenly its classes occur."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .moments import float_matrix

SHUFFLE_SEED = 2020  # of torch-fidelity


class InceptionScore(NamedTuple):
    """
    Attributes:
        mean (`float`): over the splits; 1 to the number of classes, and no more than the images of a split.
        spread (`float`): their population standard deviation, which is what papers print after the plus-minus sign.
        splits, n (`int`): parts, images.
    """

    mean: float
    spread: float
    splits: int
    n: int


def inception_score(logits: Tensor | np.ndarray, splits: int = 10, shuffle: bool = True) -> InceptionScore:
    """`exp(mean_x KL(p(y|x) || p(y)))`, p(y) the mean of the part (Salimans et al. 2016, §4), in float64.

    As torch-fidelity has it: image i of the shuffled order, `np.random.RandomState(2020).permutation(n)`, belongs to
    part s with `s n // splits <= i < (s + 1) n // splits`. In file order, samples that are sorted by class would have
    a far lower score. It rises with the number of images in a part: name both numbers beside it.

    Args:
        logits: (n, classes) float. Of the Inception network of 2015 the published score takes all 1008, without bias.
        splits: parts, 10 as published.
        shuffle: otherwise the parts are of images in a row.

    Raises:
        TypeError: no floating-point numbers.
        ValueError: fewer images than parts, NaN, fewer than 1 part.
    """
    logits = float_matrix(logits, "logits")
    check_parts(splits, len(logits))
    if shuffle:
        order = np.random.RandomState(SHUFFLE_SEED).permutation(len(logits))
        logits = logits[torch.from_numpy(order).to(logits.device)]
    values = []
    for part in range(splits):
        rows = logits[part * len(logits) // splits : (part + 1) * len(logits) // splits].double()
        log_p = rows.log_softmax(1)
        p = log_p.exp()
        # A class that no image can have adds p log p = 0 to both terms.
        own, marginal = (p * log_p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()
        values.append((own + marginal).exp())
    found = torch.stack(values)
    return InceptionScore(float(found.mean()), float(found.std(correction=0)), splits, len(logits))


def check_parts(splits: int, n: int) -> None:
    """`ValueError` unless n images fill so many parts."""
    if isinstance(splits, bool) or not isinstance(splits, int) or splits < 1:
        raise ValueError(f"splits must be an integer of 1 or more, got {splits!r}")
    if n < splits:
        raise ValueError(f"the Inception Score in {splits} splits needs {splits} images or more, got {n}")
