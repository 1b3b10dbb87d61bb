"""Normalised losses and the passive losses that they are combined with (Ma et al. 2020): NCE, NFL, NGCE, MAE, RCE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import FLAG, NON_NEGATIVE, UNIT_INTERVAL, LossInputs, expm1, loss_function, lowest, row_blocks
from .cross_entropy import ce, focal_term

# The reference code of RCE clamps the one-hot label to [1e-4, 1] before the logarithm: its "log 0" is ln 1e-4.
RCE_LOG_ZERO = math.log(1e-4)


class FocalSums(torch.autograd.Function):
    """What focal losses need of log-probabilities, in one pass: (B,) tensors of `logp` (B, K), `labels` (B,).

    - sum_k f(p_k), where f(p) = (1-p)^gamma log p;
    - sum_k f(max(p_k, low)) - f(low), where low = exp(floor); None without a floor;
    - sum_k p_k^2; None unless `squares`;
    - log p_y.

    The gradient is formed beside the values. Left to autograd the first sum would keep five tensors (B, K), and the
    gradient of log p_y would be one of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logp: Tensor,
        labels: Tensor,
        gamma: float,
        detach: bool,
        floor: float | None = None,
        squares: bool = False,
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.floor, ctx.squares = floor, squares
        needs_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(logp) if needs_grad else None
        probabilities = torch.empty_like(logp) if needs_grad and squares else None
        sums = [logp.new_empty(len(logp)) if wanted else None for wanted in (True, floor is not None, squares)]
        for block, weights, p, total, gaps, square_total in row_blocks(logp, grad, probabilities, *sums):
            p = torch.exp(block, out=p)
            # 1 - p with a rounding error of eps that keeps it above 0, so that log(p) / (1-p), which tends to -1 as
            # p -> 1, is finite. log_softmax rounds at the same place: expm1 would be slower and no better.
            rest = (1 + torch.finfo(p.dtype).eps) - p
            # `pow` takes ten times as long
            out = weights if detach else None
            weight = torch.sqrt(rest, out=out) if gamma == 0.5 else torch.pow(rest, gamma, out=out)
            terms = (weight * block).clamp_(min=lowest(block.dtype))  # times p, 0 for a masked class, it is to be 0
            torch.sum(terms, 1, out=total)
            if floor is not None:  # the terms grow with p
                torch.sum((terms - (-math.expm1(floor)) ** gamma * floor).relu_(), 1, out=gaps)
            if squares:
                torch.sum(p * p, 1, out=square_total)  # not `vecdot`, which autocast would take to half precision
            if weights is not None and not detach:
                # d/dlogp of (1-p)^gamma logp = (1-p)^gamma (1 - gamma p logp / (1-p)); the weight's is the second.
                torch.addcmul(weight, terms.div_(rest), p, value=-gamma, out=weights)
        at = labels.unsqueeze(1)
        ctx.save_for_backward(at, logp, grad, *([probabilities] if squares else []))
        return (*sums, logp.gather(1, at).squeeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, grad_gaps, grad_squares, grad_y):
        at, logp, grad, *probabilities = ctx.saved_tensors
        result = torch.empty_like(grad)
        columns = [None if g is None else g.unsqueeze(1) for g in (grad_total, grad_gaps, grad_squares)]
        p_or_none = probabilities[0] if probabilities else None
        for out, weights, log, p, by_total, by_gaps, by_squares in row_blocks(result, grad, logp, p_or_none, *columns):
            if by_total is None:
                out.zero_()
            else:
                torch.mul(weights, by_total, out=out)
            if by_gaps is not None:
                # 0 where the probability counts as exp(floor); the kernel of ReLU's gradient does it in one pass
                out.addcmul_(torch.ops.aten.threshold_backward(weights, log, ctx.floor), by_gaps)
            if by_squares is not None:  # d/dlogp of p^2 = 2 p^2
                out.addcmul_(p * p, by_squares, value=2)
        if grad_y is not None:
            result.scatter_add_(1, at, grad_y.unsqueeze(1))
        return result, None, None, None, None, None


class PowerSum(torch.autograd.Function):
    """sum_k p_k^q and log p_y, two (B,) tensors of `logp` (B, K) and `labels` (B,).

    Keeps p^q alone and multiplies it once in the gradient, where autograd would keep two tensors and multiply twice.
    """

    @staticmethod
    def forward(ctx: Any, logp: Tensor, labels: Tensor, q: float) -> tuple[Tensor, Tensor]:
        powers, total = torch.empty_like(logp), logp.new_empty(len(logp))
        for block, out, sums in row_blocks(logp, powers, total):
            torch.sum(torch.mul(block, q, out=out).exp_(), 1, out=sums)
        at = labels.unsqueeze(1)
        ctx.save_for_backward(powers, at)
        ctx.q = q
        return total, logp.gather(1, at).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        powers, at = ctx.saved_tensors
        grad = powers * (ctx.q * grad_total).unsqueeze(1)
        return grad.scatter_add_(1, at, grad_y.unsqueeze(1)), None, None


@loss_function()
def nce(x: LossInputs) -> Tensor:
    """Normalised cross-entropy, log p_y / sum_k log p_k; in [0, 1]. Symmetric: sums to 1 over the labels.

    Needs no epsilon: the denominator is at most -K log K. Its gradient is small, of the order
    of 1 / (K log K) times that of cross-entropy. With a masked class (a logit of -inf) it is 0, as is its gradient.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    total = x.logp_total
    return x.logp_y / total


@loss_function(gamma=NON_NEGATIVE, detach=FLAG)
def nfl(x: LossInputs, *, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Normalised focal loss, FL_y / sum_k FL_k with FL_k = -(1 - p_k)^gamma log p_k; in [0, 1].

    Symmetric: sums to 1 over the labels. gamma >= 0, and 0 is normalised cross-entropy. With `detach=True` all focal
    weights are constants of the gradient, as in the released code (see `fl`). Differentiable once.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    total, _, _, logp_y = FocalSums.apply(x.logp, x.labels, gamma, detach)
    return normalised_focal(logp_y, total, gamma, detach)


def normalised_focal(logp_y: Tensor, total: Tensor, gamma: float, detach: bool) -> Tensor:
    """NFL of log p_y and the first of [`FocalSums`].  # (B,), (B,) -> (B,)"""
    return focal_term(logp_y, gamma, detach) / total


@loss_function(q=UNIT_INTERVAL)
def ngce(x: LossInputs, *, q: float = 0.7) -> Tensor:
    """Normalised generalised cross-entropy, (1 - p_y^q) / (K - sum_k p_k^q); in [0, 1]. 0 < q <= 1.

    Symmetric: sums to 1 over the labels. The released configs take q = 0.1 on CIFAR-10 and 0.7 on CIFAR-100.
    Differentiable once.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    total, logp_y = PowerSum.apply(x.logp, x.labels, q)
    return expm1(q * logp_y) / (total - x.num_classes)


@loss_function()
def mae(x: LossInputs) -> Tensor:
    """Mean absolute error in its reduced form, 1 - p_y; in [0, 1]. Symmetric: sums to K - 1 over the labels.

    The L1 distance between p and the one-hot label is twice this.

    Ghosh et al. 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks", arXiv:1712.09482.
    """
    return -expm1(x.logp_y)


@loss_function(as_released=FLAG)
def nmae(x: LossInputs, *, as_released: bool = False) -> Tensor:
    """Normalised MAE, (1 - p_y) / (K - 1); in [0, 1/(K-1)]. Symmetric: sums to 1 over the labels.

    MAE over the sum of MAE for every label, as the paper defines it. `as_released=True` gives the paper's code, which
    halves it.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return mae.core(x) / ((2 if as_released else 1) * (x.num_classes - 1))


@loss_function()
def rce(x: LossInputs) -> Tensor:
    """Reverse cross-entropy, -sum_k p_k log q_k for the one-hot label q, with log 0 = ln 1e-4 = -9.2103.

    Since q_y = 1 and the p_k sum to 1, this is 9.2103 (1 - p_y), and so it is computed; in [0, 9.2103]. Symmetric:
    sums to 9.2103 (K - 1) over the labels. The paper writes log 0 = -4; its code clamps q at 1e-4 and takes the
    natural logarithm, which gives -9.2103, the value used here and in later papers.

    Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", arXiv:1908.06112.
    """
    return RCE_LOG_ZERO * expm1(x.logp_y)


@loss_function(as_released=FLAG)
def nrce(x: LossInputs, *, as_released: bool = False) -> Tensor:
    """Normalised RCE, which is (1 - p_y) / (K - 1) as `nmae` is. Symmetric: sums to 1 over the labels.

    `as_released=True` gives the paper's code, which multiplies RCE by (K - 1) / 4 where 1 / (9.2103 (K - 1)) is meant:
    a precedence slip in `1 / 4 * (K - 1)`.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return rce.core(x) * ((x.num_classes - 1) / 4) if as_released else nmae.core(x)


@loss_function(alpha=NON_NEGATIVE, beta=NON_NEGATIVE)
def sce(x: LossInputs, *, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """Symmetric cross-entropy, alpha CE + beta RCE; in [0, inf). alpha, beta >= 0.

    The name says that CE and RCE mirror each other; the sum of the loss over the labels is not constant.

    Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", arXiv:1908.06112.
    """
    return alpha * ce.core(x) + beta * rce.core(x)
