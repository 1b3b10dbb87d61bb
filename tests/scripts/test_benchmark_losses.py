import json
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F

from hf_robust.losses import get_loss, list_losses
from tests import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_losses.py"
sys.path.insert(0, str(ROOT / "scripts"))
from textbook_losses import FORMS  # noqa: E402

sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # as for `python scripts/...`
    yield runpy.run_path(str(SCRIPT))
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def run(script, monkeypatch, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        script["main"]()
        return capsys.readouterr().out

    return call


def test_every_closed_form_loss_is_measured_and_written(run, tmp_path):
    output = tmp_path / "new" / "figures.json"
    text = run("--batch", "8", "--classes", "5", "--repeats", "2", "--output", str(output))
    report = json.loads(output.read_text())
    closed_form = {info.name for info in list_losses() if not info.stateful}
    sums = {"nce + rce", "nce + 4*agce(a=6, q=1.5)", "0.01*ce_eps + 10*mae"}
    assert len(closed_form) > 20
    assert set(report["losses"]) == closed_form | sums | {"F.cross_entropy"}
    for name, row in report["losses"].items():
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["ms"] > 0
        assert row["peak"] is None and row["saved"] > 0
        assert f"| {name} | {row['ms']:.3g} | {row['ratio']:.2f} |" in text
        assert (row["of_textbook"] is None) == (name == "F.cross_entropy") and (row["of_textbook"] or 1) > 0
    assert str(output) in text and "logits (8, 5) float32, 2 repeats" in text
    assert report["settings"]["batch"] == 8 and report["settings"]["threads"] == torch.get_num_threads()


def test_memory_counts_each_tensor_once_and_the_logits_not_at_all(script):
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 4
    memory = script["memory"]
    # Cross-entropy keeps its log-softmax, and one index a row, of int64.
    assert memory(F.cross_entropy, logits, labels)["saved_tensors"] == 1
    assert memory(lambda z, y: (z * z).sum(), logits, labels)["saved"] == 0
    twice = memory(lambda z, y: (z.exp() * z.exp().detach()).sum(), logits, labels)
    assert (twice["saved_tensors"], twice["saved"]) == (2, 2.0)  # exp(z) for itself and the constant for the product
    same = memory(lambda z, y: z.exp().square().sum(), logits, labels)
    assert (same["saved_tensors"], same["saved"]) == (1, 1.0)  # exp(z), for itself and for the square


def test_the_losses_are_called_with_gradient_and_in_turn_with_cross_entropy(script, monkeypatch):
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.arange(6) % 4
    calls = []

    def noted(name, criterion):
        def call(logits, labels):
            assert logits.grad is None  # freed before each step
            calls.append(name)
            return criterion(logits, labels)

        return call

    monkeypatch.setattr(F, "cross_entropy", noted("baseline", F.cross_entropy))
    loss = get_loss("nce+rce")
    script["benchmark"](noted("loss", loss), logits, labels, 3, noted("form", script["textbook"](loss)))
    assert calls == ["baseline", "loss", "form"] * 4 + ["loss"]  # warm-up, three repeats, memory
    assert logits.grad.abs().sum() > 0


def test_other_sizes_and_types(run, tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--batch", "4", "--classes", "3", "--repeats", "1", "--dtype", "bfloat16", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        run(*flags, "--losses", "gce(q=0.5)", "--output", str(output))
    finally:
        torch.set_num_threads(threads)
    report = json.loads(output.read_text())
    assert list(report["losses"]) == ["F.cross_entropy", "gce(q=0.5)"] and report["settings"]["threads"] == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--losses", "elr"], "'elr'"),
        (["--losses", "nosuch"], "nosuch"),
        (["--repeats", "0"], "--repeats"),
        (["--dtype", "int8"], "bfloat16"),
    ],
)
def test_what_can_not_be_measured_is_refused(run, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as stopped:
        run(*flags, "--output", str(tmp_path / "figures.json"))
    assert stopped.value.code == 2 and words in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec", [*FORMS, "2*nce + 4*agce(a=6, q=1.5)", "fl(detach=true)", "nfl(gamma=2, detach=true)"]
)
def test_textbook_forms_are_the_losses(script, spec):
    """Two implementations: values and gradients of `hf_robust.losses` and of autograd on the formula."""
    logits = torch.randn(16, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.arange(16) % 5
    loss = get_loss(spec)
    form = script["textbook"](loss)
    # The paper's iteration has not converged after 5 steps; the clipping's textbook form adds 1e-7 to the norm.
    tolerance = 1e-5 if spec == "bi_tempered" else 1e-6 if spec == "logit_clip" else 1e-12
    own, other = loss(logits, labels), form(logits, labels)
    torch.testing.assert_close(own, other, rtol=tolerance, atol=0)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (own, other)]
    torch.testing.assert_close(*gradients, rtol=0, atol=tolerance * gradients[1].abs().max().item())


def test_a_loss_without_textbook_form_has_none(script, monkeypatch):
    monkeypatch.delitem(FORMS, "nce")
    assert script["textbook"](get_loss("nce + rce")) is None


def test_what_readme_says_was_measured():
    text = (ROOT / "hf_robust" / "README.md").read_text(encoding="utf-8").split("### What a loss costs")[1]
    results = ROOT / "model_cards" / "results"
    large, small = (json.loads((results / f"loss_speed{name}.json").read_text())["losses"] for name in ("", "_small"))
    closed_form = {info.name for info in list_losses() if not info.stateful}
    assert closed_form < set(large) and set(large) == set(small)
    for name in large.keys() - {"F.cross_entropy"}:
        cells = [f"{report[name][key]:.2f}" for report in (large, small) for key in ("ratio", "of_textbook")]
        assert f"| `{name}` | {' | '.join(cells)} |" in text
