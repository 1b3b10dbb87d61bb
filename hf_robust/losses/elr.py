"""Early-learning regularisation: cross-entropy that is held to the running average of the model's own predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BELOW_ONE, NON_NEGATIVE, LossInputs, StatefulLoss


class Elr(StatefulLoss):
    """CE + lam log(1 - <t_i, p_i>), where t_i is sample i's running average of p_i (normalised, without gradient).

    t_i <- beta t_i + (1 - beta) p_i / sum p_i, from 0, each time that sample i is seen; the loss takes the new t_i.
    In it p is clamped to [1e-4, 1 - 1e-4]. The averages are a float32 buffer (N, K), saved with a checkpoint. Defaults
    are the paper's for symmetric noise on CIFAR-10; for asymmetric noise it takes lam = 1, beta = 0.9. In evaluation
    mode: cross-entropy.

    Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy Labels", arXiv:2007.00151, eq. 6, 9.
    """

    needs = ("index",)
    domains = {"lam": NON_NEGATIVE, "beta": BELOW_ONE}

    def __init__(self, *, lam: float = 3.0, beta: float = 0.7):
        super().__init__()
        self.lam, self.beta = lam, beta
        self.num_samples: int | None = None
        self.targets: Tensor | None
        self.register_buffer("targets", None)

    def prepare(self, num_samples: int) -> None:
        self.num_samples, self.targets = num_samples, None

    def forward(self, x: LossInputs) -> Tensor:
        if not self.training:
            return -x.logp_y
        if self.targets is None:
            if self.num_samples is None:
                raise ValueError("elr keeps a row a sample: call prepare(num_samples) before the first batch")
            self.targets = torch.zeros(self.num_samples, x.num_classes, device=x.logp.device)
        elif self.targets.shape[1] != x.num_classes:
            raise ValueError(f"logits must have the {self.targets.shape[1]} classes of before, got {x.num_classes}")
        self.targets = self.targets.to(x.logp.device)
        index = x.places()
        if index.device.type == "cpu":  # elsewhere indexing itself stops, and looking would wait for the device
            outside = (index < 0) | (index >= len(self.targets))
            if outside.any():
                raise ValueError(
                    f"index must be in 0..{len(self.targets) - 1}, the places in the training set, "
                    f"got {int(index[outside][0])}; a part of a data set is to be numbered anew"
                )
        p = x.logp.exp().clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            rows = self.beta * self.targets[index] + (1 - self.beta) * (p / p.sum(1, keepdim=True)).float()
            # The samples of other processes too, so that all have the same averages; of ignored ones none.
            everyone = torch.where(x.keep, index, -1)
            everyone, new = self.gather(everyone), self.gather(rows)
            self.targets[everyone[everyone >= 0]] = new[everyone >= 0]
        return -x.logp_y + self.lam * torch.log1p(-(rows.to(p.dtype) * p).sum(1))
