"""A loss of one's own in the table of losses."""

import pytest
import torch

from hf_robust import get_loss, list_losses, register_loss
from hf_robust.losses import (
    POSITIVE,
    UNIT_INTERVAL,
    LossInfo,
    LossInputs,
    StatefulLoss,
    functional,
    loss_function,
    parse_loss_spec,
)
from hf_robust.losses.papers import loss_bibtex
from hf_robust.losses.table import LOSSES
from hf_robust.reports.style import STYLES, loss_styles


@loss_function(q=UNIT_INTERVAL)
def power(x: LossInputs, *, q: float = 0.5) -> torch.Tensor:
    return 1 - (q * x.logp_y).exp()


@loss_function(q=POSITIVE)
def without_default(x: LossInputs, *, q: float) -> torch.Tensor:
    return q * x.logp_y


@loss_function()
def without_domain(x: LossInputs, *, q: float = 1.0) -> torch.Tensor:
    return q * x.logp_y


@loss_function(q=UNIT_INTERVAL)
def outside(x: LossInputs, *, q: float = 7.0) -> torch.Tensor:
    return q * x.logp_y


class Counting(StatefulLoss):
    """Cross-entropy times the number of batches seen."""

    domains = {"start": POSITIVE}

    def __init__(self, *, start: float = 1.0):
        super().__init__()
        self.register_buffer("seen", torch.tensor(float(start)))

    def forward(self, x: LossInputs) -> torch.Tensor:
        if self.training:
            self.seen += 1
        return -x.logp_y * self.seen


@pytest.fixture(autouse=True)
def table():
    """The table as it was, afterwards."""
    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)


def test_a_registered_loss_is_a_term_of_specs():
    register_loss(LossInfo("power", power, "1 - p_y^q", "this work"))
    info = register_loss(LossInfo("power", power, "1 - p_y^q", "this work"))  # of a module that is loaded again
    assert list_losses()[-1] is info and functional.power is power and "power" in LOSSES
    assert [term.params for term in parse_loss_spec("nce + 2*power(q=0.25)")] == [{}, {"q": 0.25}]
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, -100, 1])
    loss = get_loss("2*power(q=0.25)")(logits, labels)
    p_y = logits.softmax(1)[[0, 1, 2, 4], [0, 1, 2, 1]]
    torch.testing.assert_close(loss, 2 * (1 - p_y**0.25).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(2 * (1 - p_y**0.25).mean(), logits)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ValueError, match=r"q of power must be a number in \(0, 1\], got 2"):
        get_loss("power(q=2)")


def test_a_registered_module_keeps_its_state():
    register_loss(LossInfo("counting", Counting, "n CE", "this work"))
    loss = get_loss("counting(start=2)")
    logits, labels = torch.zeros(2, 4), torch.tensor([0, 1])
    values = [float(loss(logits, labels)) for _ in range(2)]
    assert values == pytest.approx([3 * 1.3862944, 4 * 1.3862944])
    other = get_loss("counting(start=2)")
    other.load_state_dict(loss.state_dict())
    assert float(other.eval()(logits, labels)) == pytest.approx(4 * 1.3862944)


def test_style_and_citation():
    paper = "Doe & Roe 2031, arXiv:3101.00001"
    info = LossInfo("power", power, "1 - p_y^q", paper, title="Powers of Powers", style=("#117733", "x"))
    register_loss(info)
    assert "title = {{Powers of Powers}}" in loss_bibtex(info) and "eprint = {3101.00001}" in loss_bibtex(info)
    assert loss_styles(["ce", "power"]) == {"ce": STYLES["ce"], "power": ("#117733", "x")}
    assert loss_bibtex(LossInfo("other", power, "f", "this work")) is None


@pytest.mark.parametrize(
    ("info", "error", "message"),
    [
        ("power", TypeError, "info must be a LossInfo, got str"),
        (LossInfo("power", len, "f", "p"), TypeError, "build must be made by loss_function or be a StatefulLoss"),
        (LossInfo("power", torch.nn.Linear, "f", "p"), TypeError, "build must be made by loss_function"),
        (LossInfo("a b", power, "f", "p"), ValueError, "name must be an identifier"),
        (LossInfo("true", power, "f", "p"), ValueError, "name must be an identifier"),
        (LossInfo("größe", power, "f", "p"), ValueError, "name must be an identifier"),
        (LossInfo("ce", power, "f", "p"), ValueError, "there is a loss 'ce' already"),
        (LossInfo("own", without_default, "f", "p"), ValueError, "q of own needs a default and a domain"),
        (LossInfo("own", without_domain, "f", "p"), ValueError, "q of own needs a default and a domain"),
        (
            LossInfo("own", outside, "f", "p"),
            ValueError,
            r"q of own must have a default that is a number in \(0, 1\]; got 7",
        ),
        (
            LossInfo("own", power, "f", "p", needs=("foo", "views")),
            ValueError,
            "needs of own must be of index, .*'foo'",
        ),
        (LossInfo("own", power, "f", "p", style=("green", "o")), ValueError, "style of own must be such as"),
        (LossInfo("own", power, "f", "p", style=("#117733", "??")), ValueError, "style of own must be such as"),
        (LossInfo("own", power, "f", "this work", title="T"), ValueError, "paper must be such as 'Ma et al. 2020"),
    ],
)
def test_what_specs_and_cards_could_not_use_is_refused(info, error, message):
    before = dict(LOSSES)
    with pytest.raises(error, match=message):
        register_loss(info)
    assert before == LOSSES


@pytest.mark.parametrize(
    ("core", "got"),
    [
        (lambda x: x.minus_logp_y.mean(), r"shape \(\)"),
        (lambda x: x.minus_logp_y[:, None], r"shape \(8, 1\)"),
        (lambda x: x.logp, r"shape \(8, 3\)"),
        (lambda x: x.logp.mean(0), r"shape \(3,\)"),
        (lambda x: 1.0, "float"),
    ],
)
def test_a_loss_that_is_not_one_value_a_sample_is_refused(core, got):
    core.__name__ = "odd"
    odd = loss_function()(core)
    register_loss(LossInfo("odd", odd, "f", "this work"))
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    message = rf"loss 'odd' must return one value a sample, shape \(B,\) = \(8,\); got {got}"
    for call in (odd, get_loss("odd"), get_loss("ce + odd"), get_loss("2*odd")):
        with pytest.raises(ValueError, match=message):
            call(logits, labels)
