"""Losses in figures: the curve of each, and what it makes of wrong labels in training.

Specs or results (see `results`) in, matplotlib `Figure` out, no files, no state.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ..losses import get_loss, loss_needs
from ..noise.labels import check_num_classes
from .order import compact
from .style import dress, headline, legend, loss_styles

LANDSCAPE_TICKS = (1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99)
LANDSCAPE_TOP = 3.1  # untrained networks' losses: above, only losses without bound have much to show
MOST_HISTOGRAMS = 6
GROUPS: dict[str, dict[str, Any]] = {
    "clean": {"label": "correctly labelled", "color": "#0072B2", "linestyle": "-"},
    "flipped": {"label": "wrongly labelled (flipped)", "color": "#D55E00", "linestyle": "--"},
}


def loss_curve(loss: str, p: ArrayLike, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """A loss and its gradient weight by the probability p_y of the given label.  # (N,) -> (N,), (N,) float64

    The other K - 1 classes share 1 - p_y evenly, and the logits z sum to 0, which matters to losses that are not
    functions of softmax(z) alone. The gradient weight is |dL/dz_y|: how hard one sample pulls at its label's logit.

    Args:
        loss (`str`): spec of a loss of logits and labels alone.
        p: (N,) probabilities p_y, each in (0, 1).
        num_classes (`int`, *optional*, defaults to 10): K >= 2.

    Raises:
        ValueError: a bad spec, a p outside (0, 1) or of another shape, K < 2, or a loss that needs more than logits
            and labels.
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p > 0) & (p < 1)).all():
        raise ValueError(f"p: expected shape (N,) and values in (0, 1), got {p!r}")
    check_num_classes(num_classes)
    needs = sorted(loss_needs(loss) - {"parameters"})  # the L1 norm that is added is no function of p_y
    if needs:
        raise ValueError(f"loss {loss!r} needs more than logits and labels ({', '.join(needs)}): it has no curve")
    lead = np.log(p) - np.log((1 - p) / (num_classes - 1))  # of z_y over each other logit
    repeated = np.repeat(-lead[:, None] / num_classes, num_classes, axis=1)
    repeated[:, 0] += lead
    logits = torch.from_numpy(repeated).requires_grad_()
    values = get_loss(loss)(logits, torch.zeros(len(p), dtype=torch.int64), "none")
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return values.detach().numpy(), gradient[:, 0].abs().numpy()


def loss_landscape(losses: Sequence[str], num_classes: int = 10) -> Figure:
    """Losses by the probability p_y of the given label: their values and their gradient weights, a line a loss.

    Left: each loss on its own scale, (L - low) / (L(1/K) - low), low being its least value in the panel: 1 is an
    untrained network, 0 the most that training can gain, whatever a loss is multiplied by or starts from. Cut at 3.1,
    where losses without bound would flatten the others. Right: the gradient weight |dL/dz_y| (see [`loss_curve`]) as
    it is, on a log scale of at most six decades: a factor moves a line up or down and leaves its form; where a line
    leaves the panel the weight is next to 0, and at a sharp dip dL/dz_y changes its sign. Lines that coincide are told
    by their markers, which stand at different p_y.

    The p_y axis is even in logits, from 0.001 (0.1/K if that is less) to 0.99: an untrained network stands at 1/K, and
    of a network that does not memorise a wrong label lies far to the left.

    Raises:
        ValueError: no loss or one given twice (`gce` and `gce(q=0.7)` are one), whatever [`loss_curve`] refuses, or a
            loss that is nowhere lower than at p_y = 1/K.
    """
    specs = [get_loss(loss).spec for loss in losses]
    if not specs or len(set(specs)) != len(specs):
        raise ValueError(f"losses must be one or more different losses; got {list(losses)}")
    check_num_classes(num_classes)
    lowest, highest = (math.log(p / (1 - p)) for p in (min(0.001, 0.1 / num_classes), 0.99))
    p = 1 / (1 + np.exp(-np.linspace(lowest, highest, 401)))
    curves = {loss: _scaled_curve(loss, p, num_classes) for loss in map(compact, specs)}
    styles = loss_styles(curves)

    figure = Figure(figsize=(10.2, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    step = len(p) // 8
    for position, (loss, (values, weights)) in enumerate(curves.items()):
        colour, marker = styles[loss]
        style = {"color": colour, "marker": marker, "markersize": 7, "label": loss}
        style |= {"markeredgecolor": "white", "markeredgewidth": 0.4}
        style["linewidth"] = 2.4 - 1.2 * position / len(curves)  # what lies below another shows at its sides
        style["markevery"] = (step * (2 * position + 1) // (2 * len(curves)), step)
        left.plot(p, values, **style)
        right.plot(p, weights, **style)
    dress(left, title="Loss", xlabel="", ylabel="Loss (0: least shown, 1: untrained network)")
    dress(
        right, title="Gradient weight", xlabel="", ylabel=r"$|\partial L\,/\,\partial z_y|$, logit $z_y$ (log scale)"
    )
    left.set_ylim(0, min(1.05 * max(values.max() for values, _ in curves.values()), LANDSCAPE_TOP))
    right.set_yscale("log")
    bottom, top = right.get_ylim()
    right.set_ylim(bottom=max(bottom, 1e-6 * top))
    for axes in (left, right):
        _dress_probability_axis(axes, p, num_classes)
    legend(figure, styles, [Line2D([], [], color="0.5", linestyle=":", label="untrained network")])
    return figure


def _scaled_curve(loss: str, p: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """[`loss_curve`] with the loss from 0, its least value, to 1, that of an untrained network."""
    values, weights = loss_curve(loss, p, num_classes)
    # Just below 1/K, where the given label is not the most probable: at 1/K some losses jump.
    untrained_p = (1 - 1e-9) / num_classes
    untrained, low = loss_curve(loss, [untrained_p], num_classes)[0].item(), values.min()
    if not untrained > low:
        raise ValueError(f"losses: {loss} is nowhere lower than at p_y = 1/{num_classes}, by which it is scaled")
    return (values - low) / (untrained - low), weights


def _dress_probability_axis(axes: Axes, p: np.ndarray, num_classes: int) -> None:
    axes.set_xlabel(rf"Probability $p_y$ of the given label ($K = {num_classes}$, other classes equal)")
    axes.set_xscale("logit")
    axes.set_xlim(p[0], p[-1])
    ticks = [tick for tick in LANDSCAPE_TICKS if p[0] * 0.999 < tick < p[-1] * 1.001]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1 / num_classes, color="0.5", linestyle=":", linewidth=1.2, zorder=1)


def plot_loss_histograms(result: dict) -> Figure:
    """How one run's losses part correctly from wrongly labelled training images: histograms by epoch, AUC by epoch.

    Of the epochs that hold a histogram at most six are shown: the first, the last, and evenly between. A bar's height
    is the share of its group (all correctly labelled, or all flipped images) in that bin; an empty group has none.
    AUC, in the titles and the last panel, is the probability that a flipped image has the larger loss than a correctly
    labelled one: 0.5 if the loss says nothing. Where it is unknown at all epochs, its panel is left out.

    Args:
        result (`dict`): rows of its `history` may hold `loss_histogram`, a dict of `edges` (b + 1 rising floats, bins
            of one width), `clean` and `flipped` (b counts each), and `train_separation_auc` in 0..1.

    Raises:
        ValueError: no row of the history holds a histogram.
    """
    rows = [row for row in result["history"] if row.get("loss_histogram") is not None]
    if not rows:
        raise ValueError("result: no row of its history holds a loss_histogram")
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST_HISTOGRAMS)).round().astype(int)
    shown = [rows[position] for position in chosen]
    auc = [
        (row["epoch"], row["train_separation_auc"])
        for row in result["history"]
        if row.get("train_separation_auc") is not None
    ]

    lines = 1 if len(shown) <= 3 else 2
    columns = math.ceil(len(shown) / lines)
    figure = Figure(figsize=(2.9 * (columns + bool(auc)), 1.2 + 2.5 * lines), layout="constrained")
    figure.suptitle(headline(result))
    grid = figure.add_gridspec(lines, columns + bool(auc))
    _plot_histograms(figure, grid, columns, shown)
    if auc:
        axes = figure.add_subplot(grid[:, columns])
        axes.plot(*zip(*auc, strict=True), color="#000000", marker="o", markersize=4, label="AUC")
        axes.axhline(0.5, color="0.5", linestyle=":", linewidth=1.2)
        dress(axes, title="AUC by epoch", xlabel="Epoch", ylabel="P(flipped image: larger loss)")
        axes.set_xlim(auc[0][0] - 0.5, auc[-1][0] + 0.5)
        axes.set_ylim(min(0.45, *(value for _, value in auc)) - 0.02, 1.02)
    handles = [Line2D([], [], color=s["color"], linestyle=s["linestyle"], label=s["label"]) for s in GROUPS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _plot_histograms(figure: Figure, grid: GridSpec, columns: int, rows: list[dict]) -> None:
    """A panel a row of a history, in the first `columns` of the grid, all over the same range of losses."""
    first: Axes | None = None
    reached: list[float] = []
    for position, row in enumerate(rows):
        axes = figure.add_subplot(grid[position // columns, position % columns], sharex=first)
        first = first or axes
        edges = np.asarray(row["loss_histogram"]["edges"], dtype=float)
        for group, style in GROUPS.items():
            counts = np.asarray(row["loss_histogram"][group], dtype=float)
            if counts.sum() == 0:
                continue
            shares = 100 * counts / counts.sum()
            axes.stairs(shares, edges, fill=True, alpha=0.25, color=style["color"])
            axes.stairs(shares, edges, linewidth=1.4, **style)
            filled = np.flatnonzero(counts)
            reached += [edges[filled[0]], edges[filled[-1] + 1]]
        known = row.get("train_separation_auc")
        dress(
            axes,
            title=f"epoch {row['epoch']:g}" + ("" if known is None else f", AUC {known:.3f}"),
            xlabel="Loss" if position + columns >= len(rows) else "",
            ylabel="Share of the group (%)" if position % columns == 0 else "",
        )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_ylim(bottom=0)
    if first is not None and reached:  # bins that no epoch fills are not shown
        margin = 0.02 * (max(reached) - min(reached))
        first.set_xlim(min(reached) - margin, max(reached) + margin)
