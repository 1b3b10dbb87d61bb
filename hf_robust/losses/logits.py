"""Losses that are not functions of softmax(z): heavy-tailed, norm-clipped and rescaled logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import NON_NEGATIVE, POSITIVE, Domain, LossInputs, loss_function, lowest, row_blocks

# Newton's steps for the normaliser. From the left it converges monotonically and in the end quadratically: 8 steps
# reach float64's precision for up to 100,000 classes and logits within 1e4 (tests/hf_robust/losses/test_losses.py).
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
    the dtype, and its gradient is the exact implicit one.

    Amid et al. 2019, "Robust Bi-Tempered Logistic Loss Based on Bregman Divergences", arXiv:1906.03361, eq. 6.
    """
    logp = tempered_log_softmax(x.logits, t2)
    logp_y = x.at_labels(logp)
    log_t1 = logp_y if t1 == 1 else torch.expm1((1 - t1) * logp_y) / (1 - t1)
    return -log_t1 - (1 - torch.exp((2 - t1) * logp).sum(1)) / (2 - t1)


def tempered_log_softmax(logits: Tensor, t: float) -> Tensor:
    """log of p_k = exp_t(z_k - lambda), where lambda makes the p_k sum to 1, for t >= 1.  # (B, K) -> (B, K)"""
    if t == 1:
        return torch.log_softmax(logits, 1)

    def log_p(z: Tensor, normaliser: Tensor) -> Tensor:
        return torch.log1p((1 - t) * (z - normaliser)) / (1 - t)

    logits = logits.clamp(min=lowest(logits.dtype))  # of a masked class; finite, since it is taken from itself below
    with torch.no_grad():
        # Newton for (sum_k p_k)^(1-t) = 1, which is linear in lambda where all classes are equal, and concave.
        normaliser = logits.amax(1, keepdim=True)
        for _ in range(NEWTON_STEPS):
            logp = log_p(logits, normaliser)
            log_sum = logp.logsumexp(1, keepdim=True)
            log_slope = (t * logp).logsumexp(1, keepdim=True)
            normaliser = normaliser + torch.expm1((1 - t) * log_sum) / (1 - t) * torch.exp(t * log_sum - log_slope)
        escort = (t * log_p(logits, normaliser)).softmax(1)  # d lambda / d z
    # The same value, with the gradient that the solution has.
    normaliser = normaliser + (escort * (logits - logits.detach())).sum(1, keepdim=True)
    return log_p(logits, normaliser)


def bi_tempered_probabilities(logits: Tensor, *, t1: float = 0.8, t2: float = 1.2) -> Tensor:  # (B, K) -> (B, K)
    """What `bi_tempered` takes the logits for: the tempered softmax exp_t2(z - lambda(z)); `t1` plays no part."""
    return tempered_log_softmax(logits, t2).exp()


@loss_function(
    tau=POSITIVE,
    delta=Domain("a finite number > 0, or none for tau", lambda value: value is None or POSITIVE.contains(value)),
)
def logit_clip(x: LossInputs, *, tau: float = 1.0, delta: float | None = None) -> Tensor:
    """Cross-entropy of clipped logits: where ||z||_2 > tau, z becomes delta z / ||z||_2, with delta = tau by default.

    Bounded by 2 max(tau, delta) + log K. Code released later clips at tau = 1 / delta to the norm delta (2.5 on
    CIFAR-10), which `delta` allows; the two are one at 1, the default. A masked class (a logit of -inf) is not counted
    in the norm and keeps probability 0. Differentiable once.

    Wei et al. 2023, "Mitigating Memorization of Noisy Labels by Clipping the Model Prediction", arXiv:2212.04055.
    """
    return _Rowwise.apply(x.logits, x.labels, _clipped_cross_entropy, tau, tau if delta is None else delta)


def logit_clip_probabilities(logits: Tensor, *, tau: float = 1.0, delta: float | None = None) -> Tensor:
    """What `logit_clip` takes the logits for: the softmax of the clipped ones.  # (B, K) -> (B, K)"""
    return _clip(logits, tau, tau if delta is None else delta)[0].softmax(1)


def _clipped_cross_entropy(
    z: Tensor, at: Tensor, grad: Tensor, tau: float, delta: float
) -> Tensor:  # (b, K), (b, 1), (b, K) -> (b, 1)
    z, scale, clipped = _clip(z, tau, delta)
    z_y = z.gather(1, at)
    loss = _log_mean_exp(z, grad) + math.log(z.shape[1]) - z_y
    grad.scatter_add_(1, at, torch.full_like(loss, -1))
    # Along z itself the loss of a clipped row does not change: that part of the gradient is taken out.
    z = z.masked_fill_(z.isneginf(), 0)
    along = (grad * z).sum(1, keepdim=True) / delta**2
    grad.addcmul_(z, torch.where(clipped, -along, 0.0)).mul_(scale)
    return loss


def _clip(z: Tensor, tau: float, delta: float) -> tuple[Tensor, Tensor, Tensor]:
    # (b, K) -> the clipped logits (b, K), and (b, 1) each: their factors, and whether there was anything to clip
    norm = torch.linalg.vector_norm(z.masked_fill(z.isneginf(), 0), dim=1, keepdim=True)
    clipped = norm > tau
    scale = torch.where(clipped, delta / norm.clamp(min=tau), 1.0)
    return z * scale, scale, clipped


def _log_mean_exp(z: Tensor, softmax: Tensor) -> Tensor:  # (b, K) -> (b, 1), and the softmax written to its place
    most = z.amax(1, keepdim=True)
    torch.sub(z, most, out=softmax).exp_()
    total = softmax.sum(1, keepdim=True)
    softmax.mul_(1 / total)
    return most + (total / z.shape[1]).log()


@loss_function(c=NON_NEGATIVE, lam=POSITIVE)
def ldr_kl(x: LossInputs, *, c: float = 0.1, lam: float = 10.0) -> Tensor:
    """Label-distributionally robust loss, lam log mean_k exp((c 1[k != y] + s_k - s_y) / lam); may be negative.

    s = softplus(z) / mean_k softplus(z_k). c >= 0 is the margin; lam > 0, published 10 on CIFAR-10, 1 on CIFAR-100.
    Differentiable once.

    Zhu et al. 2023, "Label Distributionally Robust Losses for Multi-class Classification", arXiv:2112.14869.
    """
    return _Rowwise.apply(x.logits, x.labels, _ldr_kl, c, lam)


def _ldr_kl(z: Tensor, at: Tensor, grad: Tensor, c: float, lam: float) -> Tensor:  # (b, K), (b, 1), (b, K) -> (b, 1)
    # Where all logits are far below 0, softplus(z) is exp(z) and only their differences matter: a shift keeps it above
    # 0. Beyond this limit that is exact to the dtype's precision.
    limit = 40.0 if z.dtype == torch.float64 else 20.0
    z = z + (-limit - z.amax(1, keepdim=True)).clamp(min=0)
    s = F.softplus(z, threshold=limit)  # beyond it softplus(z) is z to the dtype's precision
    slope = torch.sigmoid(z)
    factor = 1 / s.mean(1, keepdim=True)
    s.mul_(factor)
    gap = torch.add(s, c - s.gather(1, at), out=grad).mul_(1 / lam).scatter_(1, at, 0.0)
    loss = lam * _log_mean_exp(gap, grad)
    grad.scatter_add_(1, at, torch.full_like(loss, -1))  # dL/ds
    along = (grad * s).sum(1, keepdim=True) / z.shape[1]
    grad.sub_(along).mul_(slope.mul_(factor))
    return loss


class _Rowwise(torch.autograd.Function):
    """`function(z (b, K), labels (b, 1), grad (b, K), *params) -> loss (b, 1)`, block of rows by block.

    The function writes the gradient dloss/dz to its place beside the value; that is the one tensor kept.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, function: Callable, *params: float) -> Tensor:
        ctx.num_params = len(params)
        loss, grad = z.new_empty(len(z)), torch.empty_like(z)
        at = labels.unsqueeze(1)
        for rows in row_blocks(z):
            loss[rows] = function(z[rows], at[rows], grad[rows], *params).squeeze(1)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.unsqueeze(1), None, None, *[None] * ctx.num_params
