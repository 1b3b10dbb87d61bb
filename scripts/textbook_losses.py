"""Losses as their formulas read: softmax, one-hot labels, sums over the classes, and autograd for the rest.

That is how losses are usually written and released, probabilities clamped where a logarithm follows; what
`benchmark_losses.py` compares with. Each is `form(logits (B, K), labels (B,), **params) -> ()`, the mean over the
batch, of the name and parameters that the loss has in `hf_robust.losses`, without ignored labels or checks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-7  # probabilities before a logarithm


def one_hot(z: Tensor, y: Tensor) -> Tensor:
    return F.one_hot(y, z.shape[1]).to(z.dtype)


def at_label(values: Tensor, y: Tensor) -> Tensor:
    return (one_hot(values, y) * values).sum(1)


def p_y(z: Tensor, y: Tensor, least: float = 0.0) -> Tensor:
    p = F.softmax(z, 1)
    return at_label(p.clamp(min=least) if least else p, y)


def focal(logp: Tensor, gamma: float, detach: bool) -> Tensor:
    weight = (1 - logp.exp()) ** gamma
    return -(weight.detach() if detach else weight) * logp


def ce(z, y):
    return F.cross_entropy(z, y)


def fl(z, y, gamma, detach):
    return focal(F.log_softmax(z, 1).gather(1, y[:, None])[:, 0], gamma, detach).mean()


def ls(z, y, epsilon):
    return F.cross_entropy(z, y, label_smoothing=epsilon)


def mae(z, y):
    return (1 - p_y(z, y)).mean()


def nmae(z, y, as_released=False):
    return mae(z, y) / ((1 + as_released) * (z.shape[1] - 1))


def rce(z, y):
    return -(F.softmax(z, 1).clamp(min=LEAST) * one_hot(z, y).clamp(min=1e-4).log()).sum(1).mean()


def nrce(z, y, as_released=False):
    others = z.shape[1] - 1
    return rce(z, y) * (others / 4 if as_released else -1 / (math.log(1e-4) * others))


def sce(z, y, alpha, beta):
    return alpha * ce(z, y) + beta * rce(z, y)


def gce(z, y, q):
    return ((1 - p_y(z, y, LEAST) ** q) / q).mean()


def nce(z, y):
    logp = F.log_softmax(z, 1)
    return (at_label(logp, y) / logp.sum(1)).mean()


def nfl(z, y, gamma, detach):
    terms = focal(F.log_softmax(z, 1), gamma, detach)
    return (terms.gather(1, y[:, None])[:, 0] / terms.sum(1)).mean()


def ngce(z, y, q):
    p = F.softmax(z, 1).clamp(min=LEAST)
    return ((1 - at_label(p, y) ** q) / (z.shape[1] - (p**q).sum(1))).mean()


def agce(z, y, a, q):
    return (((a + 1) ** q - (a + p_y(z, y)) ** q) / q).mean()


def aul(z, y, a, q):
    return (((a - p_y(z, y)) ** q - (a - 1) ** q) / q).mean()


def ael(z, y, a):
    return torch.exp(-p_y(z, y) / a).mean()


def nnce(z, y):
    gaps = F.softmax(z, 1).clamp(min=LEAST).log() - math.log(LEAST)
    return (1 - at_label(gaps, y) / gaps.sum(1)).mean()


def nnfl(z, y, gamma, detach):
    terms = focal(F.log_softmax(z, 1).clamp(min=math.log(LEAST)), gamma, detach)
    most = -((1 - LEAST) ** gamma) * math.log(LEAST)
    return (1 - (most - terms.gather(1, y[:, None])[:, 0]) / (z.shape[1] * most - terms.sum(1))).mean()


def anl_ce(z, y, alpha, beta, delta=None):
    return alpha * nce(z, y) + beta * nnce(z, y)


def anl_fl(z, y, alpha, beta, gamma, detach, delta=None):
    return alpha * nfl(z, y, gamma, detach) + beta * nnfl(z, y, gamma, detach)


def log_epsilon_softmax(z, m):
    p = F.softmax(z, 1).clone()
    p[torch.arange(len(p), device=p.device), p.argmax(1)] += m
    return (p / (m + 1)).clamp(min=1e-8).log()


def ce_eps(z, y, m):
    return F.nll_loss(log_epsilon_softmax(z, m), y)


def fl_eps(z, y, gamma, m, detach):
    return focal(log_epsilon_softmax(z, m).gather(1, y[:, None])[:, 0], gamma, detach).mean()


def amse(z, y, a):
    return ((a * one_hot(z, y) - F.softmax(z, 1)) ** 2).mean()


def jal_ce(z, y, alpha, beta, a, delta=None):
    return alpha * nce(z, y) + beta * amse(z, y, a)


def jal_fl(z, y, alpha, beta, a, gamma, detach, delta=None):
    return alpha * nfl(z, y, gamma, detach) + beta * amse(z, y, a)


def taylor_ce(z, y, t):
    rest = 1 - p_y(z, y, LEAST)
    return sum(rest**i / i for i in range(1, int(t) + 1)).mean()


def phuber_ce(z, y, tau):
    p = p_y(z, y, LEAST)
    return torch.where(p <= 1 / tau, 1 + math.log(tau) - tau * p, -p.log()).mean()


def js(z, y, pi):
    label, p = one_hot(z, y), F.softmax(z, 1)
    log_m = (pi * label + (1 - pi) * p).clamp(min=LEAST).log()

    def divergence(q):
        return (q * (q.clamp(min=LEAST).log() - log_m)).sum(1).mean()

    return (pi * divergence(label) + (1 - pi) * divergence(p)) / -((1 - pi) * math.log(1 - pi))


class TemperedNormaliser(torch.autograd.Function):
    """lambda(z), (B, 1), by the paper's fixed-point iteration of 5 steps; its gradient is the escort distribution."""

    @staticmethod
    def forward(ctx, z, t, steps=5):
        most = z.amax(1, keepdim=True)
        scaled = z - most
        for _ in range(steps):
            total = tempered_exp(scaled, t).sum(1, keepdim=True)
            scaled = (z - most) * total ** (1 - t)
        total = tempered_exp(scaled, t).sum(1, keepdim=True)
        normaliser = most + (total ** (t - 1) - 1) / (t - 1)
        ctx.save_for_backward(tempered_exp(z - normaliser, t) ** t)
        return normaliser

    @staticmethod
    def backward(ctx, grad):
        (powers,) = ctx.saved_tensors
        return grad * powers / powers.sum(1, keepdim=True), None


def tempered_exp(u, t):
    return torch.exp(u) if t == 1 else (1 + (1 - t) * u).clamp(min=0) ** (1 / (1 - t))


def bi_tempered(z, y, t1, t2):
    p = F.softmax(z, 1) if t2 == 1 else tempered_exp(z - TemperedNormaliser.apply(z, t2), t2)
    p_label = at_label(p, y)
    log_t1 = p_label.log() if t1 == 1 else (p_label ** (1 - t1) - 1) / (1 - t1)
    return (-log_t1 - (1 - (p ** (2 - t1)).sum(1)) / (2 - t1)).mean()


def logit_clip(z, y, tau, delta):
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True) + LEAST
    return F.cross_entropy(torch.where(norm > tau, z / norm * (tau if delta is None else delta), z), y)


def ldr_kl(z, y, c, lam):
    label, s = one_hot(z, y), F.softplus(z)
    s = s / s.mean(1, keepdim=True)
    gaps = c * (1 - label) + s - (label * s).sum(1, keepdim=True)
    return lam * (torch.logsumexp(gaps / lam, 1) - math.log(z.shape[1])).mean()


FORMS = {
    form.__name__: form
    for form in (
        ce, fl, ls, mae, nmae, rce, nrce, sce, gce, nce, nfl, ngce, agce, aul, ael, nnce, nnfl, anl_ce, anl_fl, ce_eps,
        fl_eps, amse, jal_ce, jal_fl, taylor_ce, phuber_ce, js, bi_tempered, logit_clip, ldr_kl,
    )
}  # fmt: skip
