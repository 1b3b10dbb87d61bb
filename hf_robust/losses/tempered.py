"""Bi-tempered logistic loss (Amid et al. 2019): a heavy-tailed softmax under a bounded logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import NON_NEGATIVE, Domain, LossInputs, loss_function, lowest
from .rowwise import Rowwise

# Of powers that are formed as products.
MOST_FACTORS = 16
# Newton's steps for the normaliser where nobody looks whether it has converged. From the left it converges
# monotonically and in the end quadratically: 8 steps reach float64's precision for up to 100,000 classes and logits
# within 1e4 (tests/hf_robust/losses/test_losses.py).
NEWTON_STEPS = 12


@loss_function(
    t1=Domain("a number in [0, 1]", lambda value: NON_NEGATIVE.contains(value) and value <= 1),
    # Beyond 5 a uniform distribution over many classes overflows float32.
    t2=Domain("a number in [1, 5]", lambda value: NON_NEGATIVE.contains(value) and 1 <= value <= 5),
)
def bi_tempered(x: LossInputs, *, t1: float = 0.8, t2: float = 1.2) -> Tensor:
    """Bi-tempered logistic loss; bounded by 1 / (1 - t1), and cross-entropy at t1 = t2 = 1. 0 <= t1 <= 1 <= t2 <= 5.

    With log_t(u) = (u^(1-t) - 1) / (1-t), exp_t its inverse and p_k = exp_t2(z_k - lambda(z)), lambda such that the
    p_k sum to 1, it is -log_t1(p_y) - (1 - sum_k p_k^(2-t1)) / (2-t1). The normaliser is solved to the precision of
    the dtype, and its gradient is the exact implicit one. Differentiable once.

    Amid et al. 2019, "Robust Bi-Tempered Logistic Loss Based on Bregman Divergences", arXiv:1906.03361, eq. 6.
    """
    return Rowwise.apply(x.logits, x.labels, _bi_tempered, t1, t2)


def _bi_tempered(z: Tensor, at: Tensor, grad: Tensor, t1: float, t2: float) -> Tensor:
    # (b, K), (b, 1), (b, K) -> (b, 1)
    # With g_k = p_k^(1-t1) - [k = y] p_y^(-t1), the derivative of the loss by p_k, and d p_k / d z_j =
    # p_k^t2 ([k = j] - escort_j), where escort = p^t2 / sum_k p_k^t2, it is
    # dL/dz_j = g_j p_j^t2 - escort_j sum_k g_k p_k^t2.
    p, escort, weight, logp_y = _tempered_powers(z, at, t1, t2)
    total = (p * weight).sum(1, keepdim=True)  # of p^(2-t1)
    torch.mul(weight, escort, out=grad)
    grad.scatter_(1, at, torch.exp((t2 - t1) * logp_y) * torch.expm1(logp_y))  # of two terms, without cancellation
    grad.addcmul_(escort, -grad.sum(1, keepdim=True) / escort.sum(1, keepdim=True))
    log_t1 = logp_y if t1 == 1 else torch.expm1((1 - t1) * logp_y) / (1 - t1)
    return -log_t1 - (1 - total) / (2 - t1)


def _tempered_powers(z: Tensor, at: Tensor, t1: float, t2: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # (b, K), (b, 1) -> (b, K) each: p, p^t2, p^(1-t1); and (b, 1): log p_y
    z = z.clamp(min=lowest(z.dtype))  # of a masked class; finite, since it is taken from the largest below
    if t2 == 1:
        logp = torch.log_softmax(z, 1)
        p = logp.exp()
        return p, p, ((1 - t1) * logp).exp_(), logp.gather(1, at)
    slope = t2 - 1
    gaps = (z.amax(1, keepdim=True) - z).mul_(slope)
    shift = _normaliser(gaps, slope)
    logp_y = torch.log1p(gaps.gather(1, at) + shift) / -slope
    excess = gaps.add_(shift)
    p, weight = (_inverse_power(excess, exponent) for exponent in (1 / slope, (1 - t1) / slope))
    return p, p / excess.add_(1), weight, logp_y


def _normaliser(gaps: Tensor, slope: float) -> Tensor:
    """shift >= 0 with sum_k (1 + shift + gap_k)^(-1 / slope) = 1.  # (b, K), least gap of a row 0 -> (b, 1)

    With gap_k = (t-1) (max z - z_k) and slope = t-1 > 0, shift is (t-1) (lambda - max z).
    """
    # Newton for (sum_k p_k)^(1-t) = 1, which is linear in lambda where all classes are equal, and concave. The
    # derivative of p by lambda is -p^t = -p / (1 + shift + gap).
    shift = torch.zeros_like(gaps[:, :1])
    looked_at = gaps.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere it would wait
    enough = torch.finfo(gaps.dtype).eps ** 0.5 / 4  # an error of the order of its square is left
    for _ in range(NEWTON_STEPS):
        excess = gaps + shift
        p = _inverse_power(excess, 1 / slope)
        total = p.sum(1, keepdim=True)
        step = total * torch.expm1(slope * total.log()) / p.div_(excess.add_(1)).sum(1, keepdim=True)
        shift = shift + step
        if looked_at and not (step > enough * (1 + shift)).any():
            break
    return shift


def _inverse_power(excess: Tensor, exponent: float) -> Tensor:
    """(1 + excess)^(-exponent), excess >= 0, exponent >= 0."""
    # Of small whole exponents (5 at t2 = 1.2) the product takes a quarter of the time. 1 / (t - 1) is rounded.
    whole = round(exponent)
    if whole > MOST_FACTORS or abs(exponent - whole) > 1e-14 * whole:
        return excess.log1p().mul_(-exponent).exp_()
    factor = (excess + 1).reciprocal_()
    result: Tensor | None = None
    while whole:  # by the binary digits
        if whole & 1:
            result = factor if result is None else result * factor
        whole >>= 1
        if whole:
            factor = factor * factor
    return torch.ones_like(excess) if result is None else result


def tempered_log_softmax(logits: Tensor, t: float) -> Tensor:
    """log of p_k = exp_t(z_k - lambda), where lambda makes the p_k sum to 1, for t >= 1.  # (B, K) -> (B, K)"""
    if t == 1:
        return torch.log_softmax(logits, 1)

    def log_p(z: Tensor, normaliser: Tensor) -> Tensor:
        return torch.log1p((1 - t) * (z - normaliser)) / (1 - t)

    logits = logits.clamp(min=lowest(logits.dtype))  # of a masked class, as above
    with torch.no_grad():
        most = logits.amax(1, keepdim=True)
        normaliser = most + _normaliser((most - logits).mul_(t - 1), t - 1) / (t - 1)
        escort = (t * log_p(logits, normaliser)).softmax(1)  # d lambda / d z
    # The same value, with the gradient that the solution has.
    normaliser = normaliser + (escort * (logits - logits.detach())).sum(1, keepdim=True)
    return log_p(logits, normaliser)


def bi_tempered_probabilities(logits: Tensor, *, t1: float = 0.8, t2: float = 1.2) -> Tensor:  # (B, K) -> (B, K)
    """What `bi_tempered` takes the logits for: the tempered softmax exp_t2(z - lambda(z)); `t1` plays no part."""
    return tempered_log_softmax(logits, t2).exp()
