"""Losses that are not functions of softmax(z): norm-clipped and rescaled logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import NON_NEGATIVE, POSITIVE, Domain, LossInputs, loss_function
from .rowwise import Rowwise


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
    return Rowwise.apply(x.logits, x.labels, _clipped_cross_entropy, tau, tau if delta is None else delta)


def logit_clip_probabilities(logits: Tensor, *, tau: float = 1.0, delta: float | None = None) -> Tensor:
    """What `logit_clip` takes the logits for: the softmax of the clipped ones.  # (B, K) -> (B, K)"""
    return _clip(logits, tau, tau if delta is None else delta)[0].softmax(1)


def _clipped_cross_entropy(
    z: Tensor, at: Tensor, grad: Tensor, tau: float, delta: float
) -> Tensor:  # (b, K), (b, 1), (b, K) -> (b, 1)
    z, scale, clipped, finite = _clip(z, tau, delta)
    z_y = z.gather(1, at)
    loss = _log_mean_exp(z, grad) + math.log(z.shape[1]) - z_y
    grad.scatter_add_(1, at, torch.full_like(loss, -1))
    # Along z itself the loss of a clipped row does not change: that part of the gradient is taken out.
    finite.mul_(scale)
    along = (grad * finite).sum(1, keepdim=True) / delta**2
    grad.addcmul_(finite, torch.where(clipped, -along, 0.0)).mul_(scale)
    return loss


def _clip(z: Tensor, tau: float, delta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # (b, K) -> the clipped logits (b, K); (b, 1) each: their factors, and whether there was anything to clip; and z
    # with 0 for -inf
    finite = z.masked_fill(z.isneginf(), 0)
    norm = torch.linalg.vector_norm(finite, dim=1, keepdim=True)
    clipped = norm > tau
    scale = torch.where(clipped, delta / norm.clamp(min=tau), 1.0)
    return z * scale, scale, clipped, finite


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
    return Rowwise.apply(x.logits, x.labels, _ldr_kl, c, lam)


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
