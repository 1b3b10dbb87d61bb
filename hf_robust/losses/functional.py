"""Losses for noisy labels as pure per-sample functions on logits.

Every function has the signature `loss(logits, labels, *, params) -> losses`:

- `logits`: (B, K) float16, bfloat16, float32 or float64, any finite values, K >= 2;
- `labels`: (B,) int64 in 0..K-1, or -100 where a sample is to be ignored;
- the result: (B,) float32 (float64 for float64 logits), zero where the label is -100.

`loss.core(logp, logp_y, *, params)` is the same loss on log-probabilities: `logp` (B, K) and `logp_y` (B,), its
entry at the label, both from `log_probs`. A sum of losses calls the cores and so computes one log-softmax.
`loss.domains` maps each parameter to the values that it takes; others raise `ValueError`.

Notation: p = softmax(logits), p_y the probability of the given label.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100

# The reference code of RCE clamps the one-hot label to [1e-4, 1] before the logarithm: its "log 0" is ln 1e-4.
RCE_LOG_ZERO = math.log(1e-4)


class Domain(NamedTuple):
    """The values that a parameter takes: in words, and as a test."""

    text: str
    contains: Callable[[object], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FLAG = Domain("true or false", lambda value: isinstance(value, bool))
NON_NEGATIVE = Domain("a finite number >= 0", lambda value: _is_number(value) and 0 <= value < math.inf)
POSITIVE = Domain("a finite number > 0", lambda value: _is_number(value) and 0 < value < math.inf)
UNIT_INTERVAL = Domain("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)


def check_params(loss: str, domains: dict[str, Domain], params: dict[str, object]) -> None:
    """Raise `ValueError` if the loss has no such parameter or the parameter does not take such a value."""
    for name, value in params.items():
        if name not in domains:
            valid = f"its parameters are {', '.join(domains)}" if domains else "it has none"
            raise ValueError(f"{loss} has no parameter {name!r}; {valid}")
        if not domains[name].contains(value):
            raise ValueError(f"{name} of {loss} must be {domains[name].text}, got {value!r}")


def _check_inputs(logits: Tensor, labels: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits must have K >= 2 columns, got shape {tuple(logits.shape)}; give a binary problem two columns"
        )
    if labels.is_floating_point() or labels.ndim != 1:
        error = TypeError if labels.is_floating_point() else ValueError
        raise error(
            f"labels must be int64 class indices of shape (B,), got {labels.dtype} of shape {tuple(labels.shape)}; "
            "multi-label and soft targets are not supported"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}; convert them with labels.long()")
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels must have one entry per row of logits: got {len(labels)} for {len(logits)} rows")
    # On an accelerator this would wait for the device at every step, and compiled code cannot branch on values; there
    # `gather` itself stops at an index outside 0..K-1.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        outside = ((labels < 0) | (labels >= logits.shape[1])) & (labels != IGNORE_INDEX)
        if outside.any():
            index = int(outside.nonzero()[0])
            raise ValueError(
                f"labels must be in 0..{logits.shape[1] - 1} or {IGNORE_INDEX} (ignored), "
                f"got {int(labels[index])} at index {index}"
            )


def log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of all classes, of the labels, and which samples count.

    # (B, K) float, (B,) int64 -> (B, K), (B,) float32 or float64, (B,) bool

    A sample with label -100 has class 0's entry in the second and False in the third result. Half precision is
    converted to float32 inside the log-softmax: in bfloat16 1 - p would have 8 bits.

    Raises `TypeError` for a wrong dtype and `ValueError` for a wrong shape, K < 2 and, for labels on the CPU outside
    compiled code, a label that is neither in 0..K-1 nor -100.
    """
    _check_inputs(logits, labels)
    keep = labels != IGNORE_INDEX
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logp = torch.log_softmax(logits, dim=1, dtype=dtype)
    logp_y = logp.gather(1, labels.masked_fill(~keep, 0).unsqueeze(1)).squeeze(1)
    return logp, logp_y, keep


def _on_logits(**domains: Domain) -> Callable:
    """Decorator: make the public loss on logits of a core on log-probabilities; the core stays as `.core`."""

    def build(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(core)
        def loss(logits: Tensor, labels: Tensor, **params) -> Tensor:
            check_params(core.__name__, domains, params)
            logp, logp_y, keep = log_probs(logits, labels)
            return core(logp, logp_y, **params).masked_fill(~keep, 0.0)

        signature = inspect.signature(core)
        logp, logp_y, *keywords = signature.parameters.values()
        arguments = [logp.replace(name="logits"), logp_y.replace(name="labels"), *keywords]
        loss.__signature__ = signature.replace(parameters=arguments)
        loss.core = core
        loss.domains = domains
        return loss

    return build


def _expm1(x: Tensor) -> Tensor:
    # torch takes expm1's result + 1 as its derivative, which in float32 rounds exp(x) to a multiple of 6e-8: the
    # gradient of 1 - p_y, which is p_y, would be up to 3 % off at p_y = 1e-6 and 0 below 3e-8. So expm1 serves near 0,
    # where its value is needed, and exp elsewhere.
    return torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)


def _focal_weight(logp_y: Tensor, gamma: float, detach: bool) -> Tensor:
    # For gamma < 1 the derivative of (1-p)^gamma is infinite at p = 1, and infinity times log p = 0 is NaN. The
    # smallest normal number as lower bound removes that and changes no other value.
    weight = (-_expm1(logp_y)).clamp(min=torch.finfo(logp_y.dtype).tiny).pow(gamma)
    return weight.detach() if detach else weight


class _FocalSum(torch.autograd.Function):
    """sum_k (1-p_k)^gamma log p_k.  # (B, K) log-probabilities -> (B,)

    Its gradient is formed beside the value and is the one tensor kept. Left to autograd the sum would keep five, and a
    step of `nfl` would take 3.5 instead of 2.3 times one of cross-entropy (B = 8192, K = 1000, float32, one CPU core).
    """

    @staticmethod
    def forward(ctx, logp: Tensor, gamma: float, detach: bool) -> Tensor:
        p = logp.exp()
        # 1 - p with a rounding error of eps that keeps it above 0, so that log(p) / (1-p), which tends to -1 as
        # p -> 1, is finite. log_softmax rounds at the same place: expm1 would be three times slower and no better.
        rest = (1 + torch.finfo(p.dtype).eps) - p
        weight = rest.pow(gamma)
        terms = weight * logp
        total = terms.sum(1)
        if ctx.needs_input_grad[0]:
            # d/dlogp of (1-p)^gamma logp = (1-p)^gamma (1 - gamma p logp / (1-p)); the second term is the weight's.
            grad = weight if detach else weight.addcmul_(terms.div_(rest), p, value=-gamma)
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: Tensor):
        (grad,) = ctx.saved_tensors
        return grad * grad_total.unsqueeze(1), None, None


@_on_logits()
def ce(logp: Tensor, logp_y: Tensor) -> Tensor:
    """Cross-entropy, -log p_y; in [0, inf). The baseline: not robust."""
    return -logp_y


@_on_logits(gamma=NON_NEGATIVE, detach=FLAG)
def fl(logp: Tensor, logp_y: Tensor, *, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Focal loss, -(1 - p_y)^gamma log p_y; in [0, inf). gamma >= 0, and 0 is cross-entropy.

    The gradient flows through the weight (1 - p_y)^gamma. With `detach=True` the weight is a constant of the gradient,
    as in the code released with the normalised losses and those built on them: same value, other gradient.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv:1708.02002, eq. 4.
    """
    return -_focal_weight(logp_y, gamma, detach) * logp_y


@_on_logits()
def nce(logp: Tensor, logp_y: Tensor) -> Tensor:
    """Normalised cross-entropy, log p_y / sum_k log p_k; in [0, 1]. Symmetric: sums to 1 over the labels.

    Needs no epsilon: the denominator is at most -K log K. Its gradient is small, of the order
    of 1 / (K log K) times that of cross-entropy.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return logp_y / logp.sum(1)


@_on_logits(gamma=NON_NEGATIVE, detach=FLAG)
def nfl(logp: Tensor, logp_y: Tensor, *, gamma: float = 0.5, detach: bool = False) -> Tensor:
    """Normalised focal loss, FL_y / sum_k FL_k with FL_k = -(1 - p_k)^gamma log p_k; in [0, 1].

    Symmetric: sums to 1 over the labels. gamma >= 0, and 0 is normalised cross-entropy. With `detach=True` all focal
    weights are constants of the gradient, as in the released code (see `fl`). Differentiable once.

    Ma et al. 2020, "Normalized Loss Functions for Deep Learning with Noisy Labels", arXiv:2006.13554.
    """
    return _focal_weight(logp_y, gamma, detach) * logp_y / _FocalSum.apply(logp, gamma, detach)


@_on_logits()
def mae(logp: Tensor, logp_y: Tensor) -> Tensor:
    """Mean absolute error in its reduced form, 1 - p_y; in [0, 1]. Symmetric: sums to K - 1 over the labels.

    The L1 distance between p and the one-hot label is twice this.

    Ghosh et al. 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks", arXiv:1712.09482.
    """
    return -_expm1(logp_y)


@_on_logits()
def rce(logp: Tensor, logp_y: Tensor) -> Tensor:
    """Reverse cross-entropy, -sum_k p_k log q_k for the one-hot label q, with log 0 = ln 1e-4 = -9.2103.

    Since q_y = 1 and the p_k sum to 1, this is 9.2103 (1 - p_y), and so it is computed; in [0, 9.2103]. Symmetric:
    sums to 9.2103 (K - 1) over the labels. The paper writes log 0 = -4; its code clamps q at 1e-4 and takes the
    natural logarithm, which gives -9.2103, the value used here and in later papers.

    Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", arXiv:1908.06112.
    """
    return RCE_LOG_ZERO * _expm1(logp_y)


@_on_logits(alpha=NON_NEGATIVE, beta=NON_NEGATIVE)
def sce(logp: Tensor, logp_y: Tensor, *, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """Symmetric cross-entropy, alpha CE + beta RCE; in [0, inf). alpha, beta >= 0.

    The name says that CE and RCE mirror each other; the sum of the loss over the labels is not constant.

    Wang et al. 2019, "Symmetric Cross Entropy for Robust Learning with Noisy Labels", arXiv:1908.06112.
    """
    return alpha * ce.core(logp, logp_y) + beta * rce.core(logp, logp_y)


@_on_logits(q=UNIT_INTERVAL)
def gce(logp: Tensor, logp_y: Tensor, *, q: float = 0.7) -> Tensor:
    """Generalised cross-entropy, (1 - p_y^q) / q; in [0, 1/q]. 0 < q <= 1: q -> 0 is CE, q = 1 is MAE.

    Computed as -expm1(q log p_y) / q, exact for every p_y. The released code clamps p_y at 1e-7, which also cuts the
    gradient to zero below it; here the gradient fades as p_y^q.

    Zhang & Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    arXiv:1805.07836, sec. 3.2.
    """
    return _expm1(q * logp_y) / -q
