"""Epsilon-softmax (Wang et al. 2024): probabilities within a small distance of one-hot, then the usual losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import FLAG, NON_NEGATIVE, LossInputs, expm1, loss_function
from .cross_entropy import focal_weight

# The released code's bound on the probability before the logarithm. Beyond a weak regulariser it matters: where the
# label is not the predicted class, the gradient is cut to zero for p_y < 1e-8 (m + 1).
LOG_P_MIN = math.log(1e-8)


def _epsilon_log_probability(x: LossInputs, m: float) -> tuple[Tensor, Tensor]:
    # log p~_y, clamped, and 1 - p~_y; p~ = (p + m e_argmax) / (m + 1). Where the label is predicted p~_y is near 1 and
    # both follow from 1 - p_y without cancellation.
    predicted = x.logp.argmax(1) == x.labels
    rest = -expm1(x.logp_y) / (m + 1)
    log_other = x.logp_y - math.log1p(m)
    near_one = torch.log1p(-rest.masked_fill(~predicted, 0))  # elsewhere rest may be 1, of infinite gradient
    logp = torch.where(predicted, near_one, log_other.clamp(min=LOG_P_MIN))
    return logp, torch.where(predicted, rest, -expm1(log_other))


@loss_function(m=NON_NEGATIVE)
def ce_eps(x: LossInputs, *, m: float = 1e5) -> Tensor:
    """Cross-entropy of epsilon-softmax, -log p~_y with p~ = (p + m e_argmax(p)) / (m + 1), p~_y >= 1e-8. m >= 0.

    m = 0 is cross-entropy (bounded at 18.4). The paper adds it to MAE: `0.01*ce_eps + 10*mae` on CIFAR-10.

    Wang et al. 2024, "Epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise", NeurIPS 2024.
    """
    return -_epsilon_log_probability(x, m)[0]


@loss_function(gamma=NON_NEGATIVE, m=NON_NEGATIVE, detach=FLAG)
def fl_eps(x: LossInputs, *, gamma: float = 0.1, m: float = 1e5, detach: bool = False) -> Tensor:
    """Focal loss of epsilon-softmax, -(1 - p~_y)^gamma log p~_y; p~ as in `ce_eps`, gamma and `detach` as in `fl`.

    Wang et al. 2024, "Epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise", NeurIPS 2024.
    """
    logp, rest = _epsilon_log_probability(x, m)
    return focal_weight(rest.detach() if detach else rest, gamma) * -logp
