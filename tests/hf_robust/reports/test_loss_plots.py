import math
import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_robust.reports import loss_plots
from hf_robust.reports.loss_plots import loss_curve, loss_landscape, plot_loss_histograms
from hf_robust.reports.style import loss_styles
from tests import ROOT

SCRIPT = ROOT / "scripts" / "plot_losses.py"
P = np.array([1e-6, 0.001, 0.1, 0.5, 0.9, 0.999])


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


# --- the numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 10, 100])
@pytest.mark.parametrize(
    ("loss", "value", "weight"),
    [
        ("ce", lambda p: -np.log(p), lambda p: 1 - p),
        ("mae", lambda p: 1 - p, lambda p: p * (1 - p)),
        ("gce", lambda p: (1 - p**0.7) / 0.7, lambda p: p**0.7 * (1 - p)),
        ("gce(q=0.3)", lambda p: (1 - p**0.3) / 0.3, lambda p: p**0.3 * (1 - p)),
        ("2*ce + 3*mae", lambda p: -2 * np.log(p) + 3 * (1 - p), lambda p: (2 + 3 * p) * (1 - p)),
    ],
)
def test_curves_that_do_not_depend_on_the_other_classes(loss, value, weight, num_classes):
    values, weights = loss_curve(loss, P, num_classes)
    assert values.dtype == weights.dtype == np.float64
    np.testing.assert_allclose(values, value(P), rtol=1e-9)
    np.testing.assert_allclose(weights, weight(P), rtol=1e-9)


def test_rce_is_mae_times_the_logarithm_of_10000():
    for rce, mae in zip(loss_curve("rce", P), loss_curve("mae", P), strict=True):
        np.testing.assert_allclose(rce, 9.210340371976184 * mae, rtol=1e-9)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_nce_by_hand(num_classes):
    # L = log p / (log p + (K-1) log r), r = (1-p) / (K-1), whose derivatives by the logit of the label are
    # d log p / dz = 1 - p and d log r / dz = -p.
    log_p, log_r = np.log(P), np.log((1 - P) / (num_classes - 1))
    total = log_p + (num_classes - 1) * log_r
    slope = ((1 - P) * total - log_p * ((1 - P) - (num_classes - 1) * P)) / total**2
    values, weights = loss_curve("nce", P, num_classes)
    np.testing.assert_allclose(values, log_p / total, rtol=1e-9)
    np.testing.assert_allclose(weights, np.abs(slope), rtol=1e-9)


def test_logits_sum_to_zero(monkeypatch):
    seen = []

    def spy(spec):
        def forward(logits, labels, reduction):
            seen.append((logits.detach().numpy(), labels.tolist(), reduction))
            return logits.sum(1)

        return forward

    monkeypatch.setattr(loss_plots, "get_loss", spy)
    _, weights = loss_curve("ce", [0.2, 0.9], num_classes=5)
    ((logits, labels, reduction),) = seen
    assert (logits.dtype, labels, reduction) == (np.float64, [0, 0], "none")
    np.testing.assert_allclose(logits.sum(1), 0, atol=1e-12)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(p, [[0.2] * 5, [0.9] + [0.025] * 4])
    np.testing.assert_array_equal(weights, 1)


def test_bad_arguments_of_a_curve_are_refused():
    for p in ([0.0], [0.5, 1.0], [math.nan], [[0.5]], 0.5):
        with pytest.raises(ValueError, match=r"p: expected shape \(N,\) and values in \(0, 1\)"):
            loss_curve("ce", p)
    for make in (lambda k: loss_curve("ce", [0.5], k), lambda k: loss_landscape(["ce"], k)):
        for num_classes in (1, 0):
            with pytest.raises(ValueError, match="num_classes: expected an int >= 2"):
                make(num_classes)
    with pytest.raises(ValueError, match="unknown loss 'cross'"):
        loss_curve("cross", [0.5])


# --- the landscape -------------------------------------------------------------------------------------------------


def test_landscape_scales_the_loss_and_leaves_the_weight_as_it_is():
    figure = loss_landscape(["ce", "nce + rce", "mae"])
    left, right = figure.axes
    assert texts(figure) == ["ce", "nce+rce", "mae", "untrained network"]
    assert (left.get_title(), right.get_title()) == ("Loss", "Gradient weight")
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    assert list(lines(left)) == list(lines(right)) == ["ce", "nce+rce", "mae"]
    p = lines(left)["ce"].get_xdata()
    np.testing.assert_allclose([p[0], p[-1]], [0.001, 0.99])
    np.testing.assert_allclose(np.diff(np.log(p / (1 - p))), np.log(999 * 99) / (len(p) - 1))  # even in logits
    # From the least value, at p = 0.99, to that at p = 1/10.
    np.testing.assert_allclose(lines(left)["ce"].get_ydata(), np.log(p / 0.99) / np.log(0.1 / 0.99), atol=1e-7)
    np.testing.assert_allclose(lines(left)["mae"].get_ydata(), (0.99 - p) / 0.89, atol=1e-7)
    np.testing.assert_allclose(lines(right)["ce"].get_ydata(), 1 - p)
    np.testing.assert_allclose(lines(right)["mae"].get_ydata(), p * (1 - p))
    for loss, style in loss_styles(["ce", "nce+rce", "mae"]).items():
        for axes in figure.axes:
            assert (lines(axes)[loss].get_color(), lines(axes)[loss].get_marker()) == style


def test_scale_and_offset_of_a_loss_do_not_move_it_in_the_left_panel():
    left, right = loss_landscape(["mae", "rce", "0.5*mae"]).axes
    mae, *others = (line.get_ydata() for line in lines(left).values())
    for other in others:
        np.testing.assert_allclose(other, mae, atol=1e-12)
    weights = {loss: line.get_ydata() for loss, line in lines(right).items()}
    np.testing.assert_allclose(weights["0.5*mae"], weights["mae"] / 2)
    starts = [line.get_markevery()[0] for line in lines(left).values()]
    assert len(set(starts)) == 3  # lines that coincide show their markers at different places


def test_an_unbounded_loss_does_not_flatten_the_others():
    left = loss_landscape(["ce", "mae"], num_classes=2).axes[0]
    assert lines(left)["ce"].get_ydata().max() > 9
    assert left.get_ylim()[1] < 3.5


def test_many_classes_are_shown_from_below_1_over_k():
    left, _ = loss_landscape(["mae"], num_classes=1000).axes
    p = lines(left)["mae"].get_xdata()
    np.testing.assert_allclose([p[0], p[-1]], [0.0001, 0.99])
    dotted = [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"]
    assert dotted == [0.001]


def test_losses_that_jump_or_do_not_fall(monkeypatch):
    class Loss:
        def __init__(self, spec):
            self.spec = spec

        def __call__(self, logits, labels, reduction):
            p_y = logits.softmax(1)[:, 0]
            return {"jump": 1.0 * (p_y < 0.1) + 0 * p_y, "constant": 1 + 0 * p_y, "offset": 90 - 6 * p_y}[self.spec]

    monkeypatch.setattr(loss_plots, "get_loss", Loss)
    monkeypatch.setattr(loss_plots, "loss_needs", lambda spec: frozenset())
    left, _ = loss_landscape(["jump", "offset"]).axes
    jump, offset = lines(left).values()
    np.testing.assert_array_equal(jump.get_ydata(), jump.get_xdata() < 0.1)
    np.testing.assert_allclose(offset.get_ydata(), (0.99 - offset.get_xdata()) / 0.89, atol=1e-7)
    with pytest.raises(ValueError, match="constant is nowhere lower than at p_y = 1/10"):
        loss_landscape(["constant", "offset"])


def test_losses_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="losses must be one or more different losses; got \\[\\]"):
        loss_landscape([])
    for twice in (["ce", "ce"], ["nce+rce", " nce + rce"], ["gce", "gce(q=0.7)"]):
        with pytest.raises(ValueError, match="losses must be one or more different losses"):
            loss_landscape(["mae", *twice])
    with pytest.raises(ValueError, match="position 0: unknown loss 'cross'"):
        loss_landscape(["ce", "cross"])

    for loss, needs in {
        "elr": "index",
        "nce + gjs": "views",
        "ogc_ce": "learning_rate",
        "nlnl": "index",
    }.items():
        with pytest.raises(ValueError, match=f"needs more than logits and labels .{needs}"):
            loss_landscape(["ce", loss])


# --- histograms ----------------------------------------------------------------------------------------------------


def run(epochs, *, auc=True, **changes):
    """One run; at epoch e the clean images fill bin 0 and the flipped ones e of 20 in bin 0, the rest in bin 1."""
    history = []
    for epoch in range(1, epochs + 1):
        histogram = {"edges": [0.0, 0.5, 1.0, 1.5], "clean": [80, 0, 0], "flipped": [epoch, 20 - epoch, 0]}
        history.append({"epoch": float(epoch), "test_accuracy": 0.5, "loss_histogram": histogram})
        if auc:
            history[-1]["train_separation_auc"] = 1 - epoch / 40
    settings = {"loss": "nce + rce", "noise": "symmetric_40", "model": "cnn_small", "seed": 3}
    return {"settings": settings, "history": history, **changes}


def histograms(figure):
    """Title -> {label: (shares in percent, edges)} of every panel that holds a histogram."""
    found = {}
    for axes in figure.axes:
        steps = {patch.get_label(): patch.get_data() for patch in axes.patches if patch.get_label()}
        if steps:
            found[axes.get_title()] = {
                label: (data.values.tolist(), data.edges.tolist()) for label, data in steps.items()
            }
    return found


def test_histograms_are_shares_of_each_group():
    figure = plot_loss_histograms(run(2))
    assert figure.get_suptitle() == "nce+rce on symmetric_40, cnn_small, seed 3"
    assert texts(figure) == ["correctly labelled", "wrongly labelled (flipped)"]
    edges = [0, 0.5, 1, 1.5]
    assert histograms(figure) == {
        "epoch 1, AUC 0.975": {
            "correctly labelled": ([100, 0, 0], edges),
            "wrongly labelled (flipped)": ([5, 95, 0], edges),
        },
        "epoch 2, AUC 0.950": {
            "correctly labelled": ([100, 0, 0], edges),
            "wrongly labelled (flipped)": ([10, 90, 0], edges),
        },
    }
    low, high = figure.axes[0].get_xlim()
    assert -0.1 < low < 0 and 1 < high < 1.1  # the bin that no epoch fills is not shown


@pytest.mark.parametrize(
    ("epochs", "shown"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 5, 6]), (11, [1, 3, 5, 7, 9, 11])]
)
def test_at_most_six_epochs_are_shown(epochs, shown):
    figure = plot_loss_histograms(run(epochs))
    assert list(histograms(figure)) == [f"epoch {e}, AUC {1 - e / 40:.3f}" for e in shown]
    assert figure.axes[-1].get_title() == "AUC by epoch"
    np.testing.assert_allclose(
        lines(figure.axes[-1])["AUC"].get_xydata(), [[e, 1 - e / 40] for e in range(1, epochs + 1)]
    )


def test_epochs_without_a_histogram_are_passed_over():
    result = run(4)
    result["history"][0]["loss_histogram"] = None
    del result["history"][2]["loss_histogram"]
    figure = plot_loss_histograms(result)
    assert list(histograms(figure)) == ["epoch 2, AUC 0.950", "epoch 4, AUC 0.900"]
    assert len(lines(figure.axes[-1])["AUC"].get_xdata()) == 4


def test_what_is_unknown_is_left_out():
    figure = plot_loss_histograms(run(3, auc=False))
    assert [axes.get_title() for axes in figure.axes] == ["epoch 1", "epoch 2", "epoch 3"]
    result = run(1)
    result["history"][0]["loss_histogram"]["flipped"] = [0, 0, 0]
    result["history"][0]["train_separation_auc"] = None
    assert [list(groups) for groups in histograms(plot_loss_histograms(result)).values()] == [["correctly labelled"]]


def test_a_run_without_histograms_is_refused():
    for history in ([], [{"epoch": 1.0, "loss_histogram": None}, {"epoch": 2.0, "train_separation_auc": 0.9}]):
        with pytest.raises(ValueError, match="no row of its history holds a loss_histogram"):
            plot_loss_histograms(run(0, history=history))


# --- the script ----------------------------------------------------------------------------------------------------


def test_script_writes_the_file_that_it_names(tmp_path):
    path = tmp_path / "figures" / "landscape.png"
    arguments = ["--losses", "ce", "nce + rce", "--num_classes", "4", "--output", str(path)]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(path.resolve())]
    with Image.open(path) as image:
        assert image.size == (10.2 * 150, 5 * 150)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--losses", "ce", "nope"], 2, "loss spec 'nope', position 0: unknown loss 'nope'"),
        (["--losses", "ce", "--num_classes", "1"], 2, "num_classes: expected an int >= 2, got 1"),
        (["--losses", "ce", "--output", "landscape"], 2, "--output: its suffix must be one of"),
        (["--help"], 0, 'python scripts/plot_losses.py --losses ce nce mae gce "nce+rce" --output landscape.png'),
    ],
)
def test_script_says_what_is_wrong_and_how_it_is_run(arguments, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot_losses.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert message in (out if code == 0 else err.splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_the_output_may_lie_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot_losses.py", "--losses", "ce", "--output", "~/a.png"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}\n"
