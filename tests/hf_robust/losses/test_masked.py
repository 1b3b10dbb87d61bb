"""Logits of -inf: a class that a model leaves out has probability 0, and the loss and its gradient stay finite."""

import numpy as np
import pytest
import torch

from hf_robust.losses import get_loss, list_losses

from .test_losses import SPECS

INFINITE = ("ls", "ls(epsilon=0.9)", "backward")  # these have no finite value where any p_k is 0
STATEFUL = [info.name for info in list_losses() if info.stateful]
FINITE = [spec for spec in [*SPECS, *STATEFUL] if spec not in INFINITE]
LABELS = torch.tensor([0, 1, 0, 1])


def masked_batch(num_classes, dtype, mask=-torch.inf):
    """One class masked; all but one, which is the label; all but two."""
    logits = 2 * torch.randn(4, num_classes, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits[:2, -1] = mask
    logits[2:, 2:] = mask
    logits[2, 1] = mask
    return logits


def made(spec, num_classes):
    matrix = 0.7 * np.eye(num_classes) + 0.3 / num_classes
    loss = get_loss(spec, **({"transition_matrix": matrix} if spec in ("forward", "backward") else {}))
    loss.prepare(len(LABELS))
    return loss


def value_and_gradient(loss, logits, labels=LABELS):
    logits = logits.clone().requires_grad_()
    losses = loss(logits, labels, "none", index=torch.arange(len(labels)))
    losses.sum().backward()
    return losses.detach(), logits.grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [3, 10, 1000])
@pytest.mark.parametrize("spec", FINITE)
def test_value_and_gradient_are_finite(spec, num_classes, dtype):
    for training in (False, True):
        loss = made(spec, num_classes).train(training)
        logits = masked_batch(num_classes, dtype)
        if training and "views" in loss.needs:
            logits = torch.cat([logits, 0.5 * logits])
        losses, gradient = value_and_gradient(loss, logits)
        assert losses.isfinite().all() and gradient.isfinite().all()
        assert not gradient[logits.isneginf()].any()  # nothing moves what is not there


@pytest.mark.parametrize("spec", [spec for spec in FINITE if "logit_clip" not in spec])
def test_it_is_the_limit(spec):
    loss = made(spec, 10).eval()
    exact = value_and_gradient(loss, masked_batch(10, torch.float64))
    for found, near in zip(exact, value_and_gradient(loss, masked_batch(10, torch.float64, -1e30)), strict=True):
        torch.testing.assert_close(found, near, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", ["logit_clip", "logit_clip(tau=0.4, delta=2.5)", "ls(epsilon=0)"])
def test_these_are_the_loss_without_the_class(spec):
    logits = masked_batch(10, torch.float64)[:2]
    losses, gradient = value_and_gradient(made(spec, 10), logits, LABELS[:2])
    expected = value_and_gradient(made(spec, 9), logits[:, :-1], LABELS[:2])
    torch.testing.assert_close(losses, expected[0])
    torch.testing.assert_close(gradient[:, :-1], expected[1])


@pytest.mark.parametrize("spec", INFINITE)
def test_others_say_so(spec):
    name = spec.partition("(")[0]
    loss, logits = made(spec, 10), masked_batch(10, torch.float32)
    with pytest.raises(ValueError, match=rf"{name} takes no class of probability 0, .* got one in row 0, class 9"):
        loss(logits, LABELS)
    loss(logits, torch.full_like(LABELS, -100), "sum")  # ignored samples may have what they have
    logits[:] = torch.nan  # a training that diverged is not said to be masked
    assert loss(logits, LABELS).isnan()
