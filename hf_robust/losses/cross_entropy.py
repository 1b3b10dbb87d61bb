"""Cross-entropy and its relatives that are functions of p_y: focal, generalised, Taylor, Huberised, smoothed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import (
    BELOW_ONE,
    FLAG,
    NON_NEGATIVE,
    OPEN_UNIT_INTERVAL,
    UNIT_INTERVAL,
    LossInputs,
    above,
    expm1,
    loss_function,
    whole_number,
)


def focal_weight(rest: Tensor, gamma: float) -> Tensor:
    """rest^gamma, where rest = 1 - p_y."""
    # For gamma < 1 the derivative of (1-p)^gamma is infinite at p = 1, and infinity times log p = 0 is NaN. The
    # smallest normal number as lower bound removes that and changes no other value.
    rest = rest.clamp(min=torch.finfo(rest.dtype).tiny)
    return rest.sqrt() if gamma == 0.5 else rest.pow(gamma)


def focal_term(logp_y: Tensor, gamma: float, detach: bool) -> Tensor:
    """(1 - p_y)^gamma log p_y, the weight a constant of the gradient if `detach`."""
    return focal_weight(-expm1(logp_y.detach() if detach else logp_y), gamma) * logp_y


@loss_function()
def ce(x: LossInputs) -> Tensor:
    """Cross-entropy, -log p_y; in [0, inf). The baseline: not robust."""
    return x.minus_logp_y


@loss_function(gamma=NON_NEGATIVE, detach=FLAG)
def fl(x: LossInputs, *, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Focal loss, -(1 - p_y)^gamma log p_y; in [0, inf). gamma >= 0, and 0 is cross-entropy.

    The gradient flows through the weight (1 - p_y)^gamma. With `detach=True` the weight is a constant of the gradient,
    as in the code released with the normalised losses and those built on them: same value, other gradient.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, eq. 4.
    """
    return -focal_term(x.logp_y, gamma, detach)


@loss_function(q=UNIT_INTERVAL)
def gce(x: LossInputs, *, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy, (1 - p_y^q) / q; in [0, 1/q]. 0 < q <= 1: q -> 0 is CE, q = 1 is MAE.

    Computed as -expm1(q log p_y) / q, exact for every p_y. The released code clamps p_y at 1e-7, which also cuts the
    gradient to zero below it; here the gradient fades as p_y^q.

    Zhang & Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    arXiv:1805.07836, sec. 3.2.
    """
    return expm1(q * x.logp_y) / -q


@loss_function(t=whole_number(1))
def taylor_ce(x: LossInputs, *, t: int = 2) -> Tensor:
    """Taylor cross-entropy, sum_{i=1..t} (1 - p_y)^i / i; in [0, H_t]. t = 1 is MAE, t -> inf is CE.

    Feng et al. 2020, "Can Cross Entropy Loss Be Robust to Label Noise?", IJCAI 2020, eq. 5.
    """
    rest = -expm1(x.logp_y)
    total = torch.full_like(rest, 1 / t)
    for i in range(int(t) - 1, 0, -1):  # Horner
        total = total * rest + 1 / i
    return total * rest


@loss_function(tau=above(1))
def phuber_ce(x: LossInputs, *, tau: float = 10.0) -> Tensor:
    """Partially Huberised cross-entropy: -log p_y, and -tau p_y + log tau + 1 where p_y <= 1/tau; in [0, log tau + 1].

    Menon et al. 2020, "Can Gradient Clipping Mitigate Label Noise?", ICLR 2020.
    """
    return huberised(x.logp_y, tau)


def huberised(logp_y: Tensor, tau: float | Tensor) -> Tensor:
    """-log p_y, continued by its tangent where p_y < 1/tau: the gradient in p_y is at most tau."""
    log_tau = math.log(tau)
    return torch.where(logp_y <= -log_tau, 1 + log_tau - tau * logp_y.exp(), -logp_y)


@loss_function(epsilon=BELOW_ONE)
def ls(x: LossInputs, *, epsilon: float = 0.1) -> Tensor:
    """Label smoothing, -(1 - epsilon) log p_y - epsilon mean_k log p_k; in [0, inf).

    Infinite where any p_k is 0: a masked class (a logit of -inf) is a `ValueError`, unless epsilon is 0.

    Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567, sec. 7.
    """
    if epsilon == 0:
        return -x.logp_y
    total = x.logp_total
    return x.refuse_masked("ls", (epsilon - 1) * x.logp_y - epsilon / x.num_classes * total)


@loss_function(pi=OPEN_UNIT_INTERVAL)
def js(x: LossInputs, *, pi: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence of the label and p, scaled: pi -> 0 is CE, pi -> 1 is MAE.

    With m = pi e_y + (1 - pi) p it is [pi KL(e_y || m) + (1 - pi) KL(p || m)] / -((1 - pi) log(1 - pi)). Outside the
    label's entry m is (1 - pi) p, so that only p_y is needed. The paper tunes pi for each data set and noise; 0.5 is
    the divergence of that name.

    Englesson & Azizpour 2021, "Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels",
    arXiv:2105.04522, eq. 5.
    """
    rest = -expm1(x.logp_y)
    log_m = torch.log1p((pi - 1) * rest)
    log_other = math.log1p(-pi)
    divergence = -pi * log_m + (1 - pi) * (x.logp_y.exp() * (x.logp_y - log_m) - rest * log_other)
    return divergence / ((pi - 1) * log_other)
