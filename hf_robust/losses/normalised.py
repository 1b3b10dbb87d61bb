"""Normalised losses and the passive losses that they are combined with (Ma et al. 2020): NCE, NFL, NGCE, MAE, RCE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import FLAG, NON_NEGATIVE, UNIT_INTERVAL, LossInputs, expm1, loss_function, lowest, row_blocks
from .cross_entropy import ce, focal_weight

# The reference code of RCE clamps the one-hot label to [1e-4, 1] before the logarithm: its "log 0" is ln 1e-4.
RCE_LOG_ZERO = math.log(1e-4)


class FocalSums(torch.autograd.Function):
    """What focal losses need of log-probabilities, in one pass: four (B,) tensors of `logp` (B, K), `labels` (B,).

    - sum_k f(p_k), where f(p) = (1-p)^gamma log p;
    - sum_k f(max(p_k, low)) - f(low), where low = exp(floor); undefined without a floor;
    - sum_k p_k^2; undefined unless `squares`;
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.floor, ctx.squares = floor, squares
        total, gaps, square_total = logp.new_empty(3, len(logp))
        needs_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(logp) if needs_grad else None
        probabilities = torch.empty_like(logp) if needs_grad and squares else None
        for rows in row_blocks(logp):
            block = logp[rows]
            p = block.exp() if probabilities is None else torch.exp(block, out=probabilities[rows])
            # 1 - p with a rounding error of eps that keeps it above 0, so that log(p) / (1-p), which tends to -1 as
            # p -> 1, is finite. log_softmax rounds at the same place: expm1 would be slower and no better.
            rest = (1 + torch.finfo(p.dtype).eps) - p
            weight = rest.sqrt() if gamma == 0.5 else rest.pow(gamma)  # `pow` takes ten times as long
            terms = (weight * block).clamp_(min=lowest(block.dtype))  # times p, 0 for a masked class, it is to be 0
            total[rows] = terms.sum(1)
            if floor is not None:  # the terms grow with p
                gaps[rows] = (terms - (-math.expm1(floor)) ** gamma * floor).relu_().sum(1)
            if squares:
                square_total[rows] = (p * p).sum(1)  # not `vecdot`, which autocast would take to half precision
            if grad is not None and detach:
                grad[rows] = weight
            elif grad is not None:
                # d/dlogp of (1-p)^gamma logp = (1-p)^gamma (1 - gamma p logp / (1-p)); the weight's is the second.
                torch.addcmul(weight, terms.div_(rest), p, value=-gamma, out=grad[rows])
        ctx.save_for_backward(labels, logp, grad, *([probabilities] if squares else []))
        return total, gaps, square_total, logp.gather(1, labels.unsqueeze(1)).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, grad_gaps, grad_squares, grad_y):
        labels, logp, grad, *probabilities = ctx.saved_tensors
        result = torch.empty_like(grad)
        for rows in row_blocks(grad):
            out = result[rows]
            if grad_total is None:
                out.zero_()
            else:
                torch.mul(grad[rows], grad_total[rows].unsqueeze(1), out=out)
            if ctx.floor is not None and grad_gaps is not None:
                # 0 where the probability counts as exp(floor); the kernel of ReLU's gradient does it in one pass
                above = torch.ops.aten.threshold_backward(grad[rows], logp[rows], ctx.floor)
                out.addcmul_(above, grad_gaps[rows].unsqueeze(1))
            if ctx.squares and grad_squares is not None:  # d/dlogp of p^2 = 2 p^2
                p = probabilities[0][rows]
                out.addcmul_(p * p, grad_squares[rows].unsqueeze(1), value=2)
        if grad_y is not None:
            result.scatter_add_(1, labels.unsqueeze(1), grad_y.unsqueeze(1))
        return result, None, None, None, None, None


class PowerSum(torch.autograd.Function):
    """sum_k p_k^q.  # (B, K) log-probabilities -> (B,)

    Keeps p^q alone and multiplies it once in the gradient, where autograd would keep two tensors and multiply twice.
    """

    @staticmethod
    def forward(ctx: Any, logp: Tensor, q: float) -> Tensor:
        powers, total = torch.empty_like(logp), logp.new_empty(len(logp))
        for rows in row_blocks(logp):
            block = torch.mul(logp[rows], q, out=powers[rows]).exp_()
            total[rows] = block.sum(1)
        ctx.save_for_backward(powers)
        ctx.q = q
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (powers,) = ctx.saved_tensors
        return powers * (ctx.q * grad_total).unsqueeze(1), None


@loss_function()
def nce(x: LossInputs) -> Tensor:
    """Normalised cross-entropy, log p_y / sum_k log p_k; in [0, 1]. Symmetric: sums to 1 over the labels.

    Needs no epsilon: the denominator is at most -K log K. Its gradient is small, of the order
    of 1 / (K log K) times that of cross-entropy. With a masked class (a logit of -inf) it is 0, as is its gradient.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return x.logp_y / x.logp.sum(1)


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
    return focal_weight(-expm1(logp_y), gamma, detach) * logp_y / total


@loss_function(q=UNIT_INTERVAL)
def ngce(x: LossInputs, *, q: float = 0.7) -> Tensor:
    """Normalised generalised cross-entropy, (1 - p_y^q) / (K - sum_k p_k^q); in [0, 1]. 0 < q <= 1.

    Symmetric: sums to 1 over the labels. The released configs take q = 0.1 on CIFAR-10 and 0.7 on CIFAR-100.
    Differentiable once.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return -expm1(q * x.logp_y) / (x.num_classes - PowerSum.apply(x.logp, q))


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
