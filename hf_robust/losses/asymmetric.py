"""Asymmetric losses (Zhou et al. 2021) and the joint asymmetric losses that build on them (Wang et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import FLAG, NON_NEGATIVE, POSITIVE, LossInputs, above, expm1, loss_function
from .normalised import FocalSums, nce, normalised_focal
from .rowwise import Rowwise


@loss_function(a=POSITIVE, q=POSITIVE)
def agce(x: LossInputs, *, a: float = 0.6, q: float = 0.6) -> Tensor:
    """Asymmetric generalised cross-entropy, ((a+1)^q - (a+p_y)^q) / q; zero at p_y = 1. a, q > 0.

    Computed as a difference from p_y = 1, which keeps its precision there.

    Zhou et al. 2021, "Asymmetric Loss Functions for Learning with Noisy Labels", arXiv:2106.03110, sec. 5.
    """
    u = expm1(x.logp_y) / (a + 1)
    return expm1(q * torch.log1p(u)) * (-((a + 1) ** q) / q)  # (1 + u)^q - 1


@loss_function(a=above(1), q=POSITIVE)
def aul(x: LossInputs, *, a: float = 5.5, q: float = 3.0) -> Tensor:
    """Asymmetric unhinged loss, ((a-p_y)^q - (a-1)^q) / q; zero at p_y = 1. a > 1, q > 0.

    Zhou et al. 2021, "Asymmetric Loss Functions for Learning with Noisy Labels", arXiv:2106.03110, sec. 5.
    """
    u = expm1(x.logp_y) / (1 - a)
    return torch.expm1(q * torch.log1p(u)) * ((a - 1) ** q / q)  # (1 + u)^q - 1


@loss_function(a=POSITIVE)
def ael(x: LossInputs, *, a: float = 2.5) -> Tensor:
    """Asymmetric exponential loss, exp(-p_y / a); in [exp(-1/a), 1]. a > 0.

    Zhou et al. 2021, "Asymmetric Loss Functions for Learning with Noisy Labels", arXiv:2106.03110, sec. 5.
    """
    return torch.exp(x.logp_y.exp() / -a)


@loss_function(a=above(1))
def amse(x: LossInputs, *, a: float = 30.0) -> Tensor:
    """Asymmetric mean square error, ||a e_y - p||^2 / K = (a^2 - 2 a p_y + sum_k p_k^2) / K. a > 1.

    Differentiable once.

    Wang et al. 2025, "Joint Asymmetric Loss for Learning with Noisy Labels", arXiv:2507.17692.
    """
    return Rowwise.apply(x.logp, x.labels, _amse_rows, a)


def _amse_rows(logp: Tensor, at: Tensor, grad: Tensor, a: float) -> Tensor:  # (b, K), (b, 1), (b, K) -> (b, 1)
    # d/dlogp of p is p: the gradient is 2 p_k (p_k - a [k = y]) / K, the sum of squares half that of its first part.
    p = logp.exp()
    torch.mul(p, p, out=grad).mul_(2 / logp.shape[1])
    part_y = p.gather(1, at).mul_(-2 * a / logp.shape[1])
    loss = torch.add(part_y, grad.sum(1, keepdim=True), alpha=0.5).add_(a**2 / logp.shape[1])
    grad.scatter_add_(1, at, part_y)
    return loss


def _amse(p_y: Tensor, squares: Tensor, num_classes: int, a: float) -> Tensor:
    return (torch.sub(squares, p_y, alpha=2 * a) + a**2) / num_classes


@loss_function(alpha=NON_NEGATIVE, beta=NON_NEGATIVE, a=above(1), delta=NON_NEGATIVE)
def jal_ce(x: LossInputs, *, alpha: float = 1.0, beta: float = 1.0, a: float = 30.0, delta: float = 5e-5) -> Tensor:
    """Joint asymmetric loss, alpha NCE + beta AMSE(a); the trainer adds delta sum |theta| over all parameters.

    The L1 norm is no function of logits: `RobustTrainer` adds it once an optimizer step, as `RobustLoss.penalty` gives
    it. Published with weight decay 0. Differentiable once.

    Wang et al. 2025, "Joint Asymmetric Loss for Learning with Noisy Labels", arXiv:2507.17692.
    """
    return alpha * nce.core(x) + beta * amse.core(x, a=a)


@loss_function(alpha=NON_NEGATIVE, beta=NON_NEGATIVE, a=above(1), gamma=NON_NEGATIVE, detach=FLAG, delta=NON_NEGATIVE)
def jal_fl(
    x: LossInputs,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    a: float = 30.0,
    gamma: float = 0.5,
    detach: bool = False,
    delta: float = 5e-5,
) -> Tensor:
    """Joint asymmetric loss, alpha NFL(gamma) + beta AMSE(a); else as `jal_ce`. `detach` is that of `nfl`.

    Wang et al. 2025, "Joint Asymmetric Loss for Learning with Noisy Labels", arXiv:2507.17692.
    """
    total, _, squares, logp_y = FocalSums.apply(x.logp, x.labels, gamma, detach, None, True)
    active = normalised_focal(logp_y, total, gamma, detach)
    return alpha * active + beta * _amse(logp_y.exp(), squares, x.num_classes, a)
