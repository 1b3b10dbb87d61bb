"""Active negative losses (Ye et al. 2023): normalised negative losses, and their sums with normalised ones."""

from __future__ import annotations

import math

from torch import Tensor

from .base import FLAG, NON_NEGATIVE, LossInputs, loss_function
from .cross_entropy import focal_term
from .normalised import FocalSums, nce, normalised_focal

# The lowest probability that the losses tell from 0, as in the paper; it bounds cross-entropy at 16.1.
LOG_P_MIN = math.log(1e-7)


@loss_function()
def nnce(x: LossInputs) -> Tensor:
    """Normalised negative cross-entropy, 1 - (A + log p_y) / sum_k (A + log p_k) with A = -log 1e-7; in [0, 1].

    Probabilities below 1e-7 count as 1e-7. Symmetric: sums to K - 1 over the labels.

    Ye et al. 2023, "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023, arXiv:2412.02373.
    """
    # Each gap by itself: a sum of K terms of 16 less K times 16 would leave little of float32.
    return 1 - (x.logp_y - LOG_P_MIN).relu() / (x.logp - LOG_P_MIN).relu_().sum(1)


@loss_function(gamma=NON_NEGATIVE, detach=FLAG)
def nnfl(x: LossInputs, *, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Normalised negative focal loss, 1 - (A - FL_y) / sum_k (A - FL_k), A = FL at p = 1e-7; in [0, 1].

    FL_k = -(1 - p_k)^gamma log p_k. Probabilities below 1e-7 count as 1e-7. Symmetric: sums to K - 1 over the labels.
    With `detach=True` the focal weights are constants of the gradient, as in the released code (see `fl`).
    Differentiable once.

    Ye et al. 2023, "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023, arXiv:2412.02373.
    """
    _, gaps, _, logp_y = FocalSums.apply(x.logp, x.labels, gamma, detach, LOG_P_MIN)
    return _nnfl(logp_y, gaps, gamma, detach)


def _nnfl(logp_y: Tensor, gaps: Tensor, gamma: float, detach: bool) -> Tensor:
    # `gaps` is the sum over k of A - FL_k
    most = -((-math.expm1(LOG_P_MIN)) ** gamma) * LOG_P_MIN
    return 1 - (most + focal_term(logp_y.clamp(min=LOG_P_MIN), gamma, detach)) / gaps


@loss_function(alpha=NON_NEGATIVE, beta=NON_NEGATIVE, delta=NON_NEGATIVE)
def anl_ce(x: LossInputs, *, alpha: float = 5.0, beta: float = 5.0, delta: float = 5e-5) -> Tensor:
    """Active negative loss, alpha NCE + beta NNCE; the trainer adds delta sum |theta| over all parameters.

    The L1 norm is no function of logits: `RobustTrainer` adds it once an optimizer step, as `RobustLoss.penalty` gives
    it. Published with weight decay 0.

    Ye et al. 2023, "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023, arXiv:2412.02373.
    """
    return alpha * nce.core(x) + beta * nnce.core(x)


@loss_function(alpha=NON_NEGATIVE, beta=NON_NEGATIVE, gamma=NON_NEGATIVE, detach=FLAG, delta=NON_NEGATIVE)
def anl_fl(
    x: LossInputs,
    *,
    alpha: float = 5.0,
    beta: float = 5.0,
    gamma: float = 0.5,
    detach: bool = False,
    delta: float = 5e-5,
) -> Tensor:
    """Active negative loss, alpha NFL(gamma) + beta NNFL(gamma); else as `anl_ce`. `detach` is that of `nfl`.
    Differentiable once.

    Ye et al. 2023, "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS 2023, arXiv:2412.02373.
    """
    total, gaps, _, logp_y = FocalSums.apply(x.logp, x.labels, gamma, detach, LOG_P_MIN)
    active = normalised_focal(logp_y, total, gamma, detach)
    return alpha * active + beta * _nnfl(logp_y, gaps, gamma, detach)
