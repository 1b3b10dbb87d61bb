"""Generalised Jensen-Shannon loss: the label and the predictions for two augmentations of an image agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import OPEN_UNIT_INTERVAL, LossInputs, StatefulLoss, expm1, lowest
from .cross_entropy import js


class Gjs(StatefulLoss):
    """[pi KL(e_y || m) + w KL(p1 || m) + w KL(p2 || m)] / Z of the label and the predictions p1, p2 for two views.

    w = (1 - pi) / 2, m = pi e_y + w (p1 + p2), Z = -(1 - pi) log(1 - pi). Where both views agree it is `js`, which is
    what it gives in evaluation mode, of the one view that there is. The paper tunes pi for each data set and noise.

    Englesson & Azizpour 2021, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels",
    arXiv:2105.04522, eq. 6.
    """

    needs = ("views",)
    domains = {"pi": OPEN_UNIT_INTERVAL}

    def __init__(self, *, pi: float = 0.5):
        super().__init__()
        self.pi = pi

    def forward(self, x: LossInputs) -> Tensor:
        if not self.training:
            return js.core(x, pi=self.pi)
        (other,) = x.other_views
        # Finite: masked classes are taken from each other below.
        logp1, logp2 = (
            logp.clamp(min=lowest(x.dtype)) for logp in (x.logp, torch.log_softmax(other, dim=1, dtype=x.dtype))
        )
        # KL of the two predictions from m, as if m were (1 - pi) (p1 + p2) / 2 everywhere, and what that is off at y.
        log_mean = torch.logaddexp(logp1, logp2) - math.log(2)
        p1, p2 = logp1.exp(), logp2.exp()
        log_rest = math.log1p(-self.pi)
        divergence = (p1 * (logp1 - log_mean) + p2 * (logp2 - log_mean)).sum(1) / 2 - log_rest
        mean_y = x.at_labels(log_mean)
        log_m_y = torch.log1p((self.pi - 1) * -expm1(mean_y.clamp(max=0)))
        divergence = divergence + mean_y.exp() * (mean_y + log_rest - log_m_y)
        return (-self.pi * log_m_y + (1 - self.pi) * divergence) / ((self.pi - 1) * log_rest)
