"""Negative learning: a label that the sample certainly or probably does not have, and the model is told so."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hashing import as_int64, mix
from .base import LossInputs, StatefulLoss, expm1, whole_number


class Nlnl(StatefulLoss):
    """Negative learning, mean over `num_negative` labels c != y of -log(1 - p_c), 1 - p_c >= 1e-5.

    The labels c are drawn uniformly from the K - 1 others, with replacement and anew in every epoch, by a hash of
    (seed, epoch, index): the same on one process or many. This is the first of the paper's three stages (negative,
    selective negative, selective positive learning), without its weights by class frequency. The paper takes one
    negative label on CIFAR-10 and the sum over 110 on CIFAR-100, `110*nlnl(num_negative=110)`. In evaluation mode: the
    mean over all c != y.

    Kim et al. 2019, "NLNL: Negative Learning for Noisy Labels", arXiv:1908.07387, eq. 2.
    """

    needs = ("index",)
    domains = {"num_negative": whole_number(1), "seed": whole_number(0)}

    def __init__(self, *, num_negative: int = 1, seed: int = 0):
        super().__init__()
        self.num_negative, self.seed = int(num_negative), int(seed)

    def forward(self, x: LossInputs) -> Tensor:
        if not self.training:
            losses = _minus_log_rest(x.logp)
            return (losses.sum(1) - x.at_labels(losses)) / (x.num_classes - 1)
        index = x.places()
        key = mix(mix(as_int64(self.seed)) + x.epoch).to(index.device)
        draws = torch.arange(self.num_negative, device=index.device)
        bits = mix(mix(key + index).unsqueeze(1) + draws)  # (B, num_negative)
        negative = (x.labels.unsqueeze(1) + 1 + bits % (x.num_classes - 1)) % x.num_classes
        return _minus_log_rest(x.logp.gather(1, negative)).mean(1)


def _minus_log_rest(logp: Tensor) -> Tensor:
    return -torch.log((-expm1(logp)).clamp(min=1e-5))
