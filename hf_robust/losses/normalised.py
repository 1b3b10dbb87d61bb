"""Normalised losses and the passive losses that they are combined with (Ma et al. 2020): NCE, NFL, NGCE, MAE, RCE."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import FLAG, NON_NEGATIVE, UNIT_INTERVAL, LossInputs, expm1, loss_function, row_blocks
from .cross_entropy import ce, focal_weight

# The reference code of RCE clamps the one-hot label to [1e-4, 1] before the logarithm: its "log 0" is ln 1e-4.
RCE_LOG_ZERO = math.log(1e-4)


class FocalSum(torch.autograd.Function):
    """sum_k f(p_k) with f(p) = (1-p)^gamma log p, and sum_k f(max(p_k, low)) - f(low) with low = exp(floor).

    # (B, K) log-probabilities -> (B,), (B,); the second is undefined without a floor

    The gradient is formed beside the values and is the one tensor kept. Autograd would keep five for the first sum.
    """

    @staticmethod
    def forward(ctx, logp: Tensor, gamma: float, detach: bool, floor: float | None = None) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.floor = floor
        total, gaps = logp.new_empty(2, len(logp))
        grad = torch.empty_like(logp) if ctx.needs_input_grad[0] else None
        for rows in row_blocks(logp):
            block = logp[rows]
            p = block.exp()
            # 1 - p with a rounding error of eps that keeps it above 0, so that log(p) / (1-p), which tends to -1 as
            # p -> 1, is finite. log_softmax rounds at the same place: expm1 would be slower and no better.
            rest = (1 + torch.finfo(p.dtype).eps) - p
            weight = rest.sqrt() if gamma == 0.5 else rest.pow(gamma)  # `pow` takes ten times as long
            terms = weight * block
            total[rows] = terms.sum(1)
            if floor is not None:  # the terms grow with p
                gaps[rows] = (terms - (-math.expm1(floor)) ** gamma * floor).relu_().sum(1)
            if grad is not None and detach:
                grad[rows] = weight
            elif grad is not None:
                # d/dlogp of (1-p)^gamma logp = (1-p)^gamma (1 - gamma p logp / (1-p)); the weight's is the second.
                torch.addcmul(weight, terms.div_(rest), p, value=-gamma, out=grad[rows])
        ctx.save_for_backward(grad, *([] if floor is None else [logp]))
        return total, gaps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor | None, grad_gaps: Tensor | None):
        grad, *rest = ctx.saved_tensors
        if ctx.floor is None or grad_gaps is None:
            return None if grad_total is None else grad * grad_total.unsqueeze(1), None, None, None
        (logp,), result = rest, torch.empty_like(grad)
        for rows in row_blocks(grad):
            # 0 where the probability counts as exp(floor); the kernel of ReLU's gradient does it in one pass
            block = torch.ops.aten.threshold_backward(grad[rows], logp[rows], ctx.floor)
            torch.mul(block, grad_gaps[rows].unsqueeze(1), out=result[rows])
            if grad_total is not None:
                result[rows].addcmul_(grad[rows], grad_total[rows].unsqueeze(1))
        return result, None, None, None


class PowerSum(torch.autograd.Function):
    """sum_k p_k^q.  # (B, K) log-probabilities -> (B,)

    Keeps p^q alone and multiplies it once in the gradient, where autograd would keep two tensors and multiply twice.
    """

    @staticmethod
    def forward(ctx, logp: Tensor, q: float) -> Tensor:
        powers, total = torch.empty_like(logp), logp.new_empty(len(logp))
        for rows in row_blocks(logp):
            block = torch.mul(logp[rows], q, out=powers[rows]).exp_()
            total[rows] = block.sum(1)
        ctx.save_for_backward(powers)
        ctx.q = q
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor):
        (powers,) = ctx.saved_tensors
        return powers * (ctx.q * grad_total).unsqueeze(1), None


@loss_function()
def nce(x: LossInputs) -> Tensor:
    """Normalised cross-entropy, log p_y / sum_k log p_k; in [0, 1]. Symmetric: sums to 1 over the labels.

    Needs no epsilon: the denominator is at most -K log K. Its gradient is small, of the order
    of 1 / (K log K) times that of cross-entropy.

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
    return focal_weight(-expm1(x.logp_y), gamma, detach) * x.logp_y / FocalSum.apply(x.logp, gamma, detach)[0]


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
