"""The link of a loss: what makes a model's probabilities of its logits."""

import math

import numpy as np
import pytest
import torch

from hf_robust.losses import RobustLoss, get_loss, list_losses

from .test_losses import random_batch, tempered_softmax

LINKED = {"bi_tempered", "logit_clip"}


def softmax(z):
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


def made(name):
    return get_loss(name, **({"transition_matrix": np.eye(10)} if name in ("forward", "backward") else {}))


@pytest.mark.parametrize("name", [info.name for info in list_losses() if info.name not in LINKED])
def test_it_is_softmax_for_most(name):
    logits, _ = random_batch(20, 10, 5, dtype=torch.float64)
    np.testing.assert_allclose(made(name).probabilities(logits), softmax(logits.numpy()), rtol=1e-12)
    assert made(name).link_words == "softmax(z)"


def test_of_bi_tempered_with_t2_2_and_two_classes_it_solves_a_quadratic():
    a, b = 1.7, -0.4
    # 1 / (1 + l - a) + 1 / (1 + l - b) = 1, and so with u = 1 + l: u^2 - (a + b + 2) u + a b + a + b = 0.
    u = ((a + b + 2) + math.sqrt((a + b + 2) ** 2 - 4 * (a * b + a + b))) / 2
    found = get_loss("bi_tempered(t2=2)").probabilities(torch.tensor([[a, b]], dtype=torch.float64))
    np.testing.assert_allclose(found, [[1 / (u - a), 1 / (u - b)]], rtol=1e-12)


@pytest.mark.parametrize("t", [1, 1.2, 4])
def test_of_bi_tempered_it_is_the_tempered_softmax(t):
    logits, _ = random_batch(20, 10, 5, dtype=torch.float64)
    expected = [tempered_softmax(row - row.max(), t) for row in logits.numpy()]
    np.testing.assert_allclose(get_loss(f"bi_tempered(t1=0.5, t2={t})").probabilities(logits), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("spec", "tau", "delta"), [("logit_clip(tau=0.4, delta=2.5)", 0.4, 2.5), ("logit_clip", 1, 1)]
)
def test_of_logit_clip_it_is_the_softmax_of_the_clipped_logits(spec, tau, delta):
    logits = torch.cat([random_batch(20, 10, scale)[0] for scale in (0.01, 0.1, 5)]).double()
    norms = np.linalg.norm(logits.numpy(), axis=1, keepdims=True)
    assert (norms > tau).any() and (norms < tau).any()
    expected = softmax(np.where(norms > tau, delta / norms, 1) * logits.numpy())
    np.testing.assert_allclose(get_loss(spec).probabilities(logits), expected, rtol=1e-12)


@pytest.mark.parametrize("spec", ["bi_tempered(t1=1, t2=1)", "logit_clip(tau=0.4, delta=2.5)", "ce"])
def test_the_loss_is_the_cross_entropy_of_these_probabilities(spec):
    logits, labels = random_batch(20, 10, 3, dtype=torch.float64)
    p = get_loss(spec).probabilities(logits)
    torch.testing.assert_close(get_loss(spec)(logits, labels, "none"), -p[torch.arange(20), labels].log())


def test_a_sum_of_several_links_has_their_weighted_mean():
    logits, _ = random_batch(20, 10, 5)
    loss = RobustLoss("3*bi_tempered + ce")
    tempered, plain = get_loss("bi_tempered").probabilities(logits), logits.softmax(1)
    torch.testing.assert_close(loss.probabilities(logits), (3 * tempered + plain) / 4)
    assert loss.link_words == "the tempered softmax exp_t2(z - lambda) and softmax(z)"
    torch.testing.assert_close(get_loss("10*nce + rce").probabilities(logits), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [info.name for info in list_losses()])
def test_rows_sum_to_1_keep_the_order_and_leave_masked_classes_out(name, dtype):
    logits, _ = random_batch(50, 10, 5, dtype=dtype)
    logits[:, -1] = -torch.inf
    p = made(name).probabilities(logits)
    assert p.dtype == torch.float32 and p.shape == logits.shape
    torch.testing.assert_close(p.sum(1), torch.ones(50))
    assert (p.gather(1, logits.argsort(1)).diff(dim=1) >= 0).all() and (p[:, -1] < 1e-30).all()


def test_bad_logits_are_refused():
    with pytest.raises(TypeError, match="logits must be floating point"):
        get_loss("ce").probabilities(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"logits must have shape \(B, K\), got \(3,\)"):
        get_loss("ce").probabilities(torch.zeros(3))
