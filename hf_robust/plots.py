"""Every figure and table of the robust studies: results in, matplotlib `Figure` or Markdown out, no files, no state.

A result is what `results.json` of a run holds. Of it these functions read

- `settings`: `loss`, `noise`, `model`, `seed`;
- `noise["rate"]`: realised share of wrong labels, or None where the clean labels are unknown;
- `accuracy`: `last` and `best`, test accuracies in 0..1;
- `history`: one dict an evaluation with `epoch` and `test_accuracy`, and where the clean labels of the training images
  are known `train_clean_accuracy` (all images, clean label) and `train_memorised` (wrongly labelled images, the wrong
  label); shares in 0..1. Absent or None, a value is left out.
"""

import math
import os
import re
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# These losses look the same in every figure. Colours that colour-blind readers tell apart (Okabe & Ito, without the
# yellow, which vanishes on white), each with a marker of its own.
STYLES = {
    "ce": ("#D55E00", "o"),
    "nce+rce": ("#0072B2", "s"),
    "nce": ("#56B4E9", "^"),
    "gce": ("#009E73", "D"),
    "sce": ("#E69F00", "v"),
    "mae": ("#CC79A7", "P"),
    "fl": ("#000000", "X"),
}
# With the same colours, for losses beyond these: six, so that seven colours and six markers make 42 pairs.
SPARE_MARKERS = ("<", ">", "p", "h", "d", "*")


def plot_curves(result: dict) -> Figure:
    """One run by epoch: test accuracy with its best epoch, and what of the training labels is fitted.

    The second panel is left out where the history says nothing about clean labels.

    Raises:
        ValueError: the history holds no test accuracy.
    """
    (result,) = _with_history([result])
    history, settings = result["history"], result["settings"]
    colour, marker = loss_styles([settings["loss"]])[_compact(settings["loss"])]
    fits = {
        "train_clean_accuracy": {"label": "all images: their clean label", "color": colour, "marker": marker},
        "train_memorised": {
            "label": "wrongly labelled images: their wrong label (memorised)",
            "color": "#000000",
            "marker": "o",
            "linestyle": "--",
            "fillstyle": "none",
        },
    }
    fits = {key: style for key, style in fits.items() if _series(history, key)[0]}

    columns = 2 if fits else 1
    figure = Figure(figsize=(4.8 * columns, 4.2), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.suptitle(
        f"{_compact(settings['loss'])} on {settings['noise']}, {settings['model']}, seed {settings['seed']}"
    )

    epochs, accuracy = _series(history, "test_accuracy")
    best = accuracy.index(max(accuracy))
    axes[0].plot(epochs, accuracy, color=colour, marker=marker, markersize=4, label=f"last {accuracy[-1]:.1f} %")
    axes[0].plot(
        epochs[best],
        accuracy[best],
        color="#000000",
        linestyle="none",
        marker="o",
        markersize=11,
        fillstyle="none",
        label=f"best {accuracy[best]:.1f} %, epoch {epochs[best]:g}",
    )
    _dress(axes[0], title="Clean test set", xlabel="Epoch", ylabel="Test accuracy (%)")
    if fits:
        for key, style in fits.items():
            axes[1].plot(*_series(history, key), markersize=4, **style)
        _dress(axes[1], title="Training images", xlabel="Epoch", ylabel="Fitted (%)")
        axes[1].set_ylim(-3, 103)
    for panel in axes:  # below, where no curve can run through it
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
    return figure


def plot_runs(results: Iterable[dict]) -> Figure:
    """Several runs by epoch: a column a noise (and model, if there are several), a line a loss.

    Above the test accuracy; below, where known, the share of wrongly labelled training images whose wrong label is
    predicted. Lines are means over seeds, bands go from the lowest seed to the highest.

    Raises:
        ValueError: no history holds a test accuracy.
    """
    results = _with_history(results)
    columns = _grouped(results, lambda r: (r["settings"]["noise"], r["settings"]["model"]))
    columns = dict(sorted(columns.items(), key=lambda item: (_noise_order(item[0][0]), item[0][1])))
    several_models = len({model for _, model in columns}) > 1
    styles = loss_styles(r["settings"]["loss"] for r in results)
    rows = [("test_accuracy", "Test accuracy (%)")]
    if any(_series(r["history"], "train_memorised")[0] for r in results):
        rows.append(("train_memorised", "Wrong labels memorised (%)"))

    figure = Figure(figsize=(1.2 + 3.0 * len(columns), 0.9 + 2.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row", sharex="col")
    for column, ((noise, model), runs) in enumerate(columns.items()):
        for row, (key, ylabel) in enumerate(rows):
            axes = grid[row][column]
            for loss, seeds in _grouped(runs, lambda r: _compact(r["settings"]["loss"])).items():
                by_epoch: dict[float, list[float]] = {}
                for run in seeds:
                    for epoch, value in zip(*_series(run["history"], key), strict=True):
                        by_epoch.setdefault(epoch, []).append(value)
                if not by_epoch:
                    continue
                epochs = sorted(by_epoch)
                colour, marker = styles[loss]
                axes.plot(
                    epochs,
                    [mean(by_epoch[e]) for e in epochs],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    markevery=max(1, len(epochs) // 10),
                    label=loss,
                )
                if len(seeds) > 1:
                    lowest = [min(by_epoch[e]) for e in epochs]
                    highest = [max(by_epoch[e]) for e in epochs]
                    axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.2, linewidth=0)
            last_row = row == len(rows) - 1
            _dress(
                axes,
                title=(f"{noise}, {model}" if several_models else noise) if row == 0 else "",
                xlabel="Epoch" if last_row else "",
                ylabel=ylabel if column == 0 else "",
            )
            if key == "train_memorised":
                axes.set_ylim(-3, 103)
                if not axes.lines:
                    axes.text(0.5, 0.5, "no wrong labels known", ha="center", transform=axes.transAxes, color="0.4")
    _legend(figure, styles)
    return figure


def plot_accuracy_vs_noise(results: Iterable[dict]) -> Figure:
    """Test accuracy against the noise rate: a panel a kind of noise, a row a model, a line a loss.

    Solid: last epoch, mean over seeds; error bars are the sample standard deviation (none for one seed). Dashed and
    faint: best epoch. `clean` is rate 0 of every kind. A rate is the one in the noise's name, or else (CIFAR-10N) the
    realised one.

    Raises:
        ValueError: no result has both a test accuracy and a noise rate.
    """
    results = [r for r in results if r["accuracy"] and _kind_and_rate(r) is not None]
    if not results:
        raise ValueError("results: none has both a test accuracy and a noise rate")
    kinds = sorted({_kind_and_rate(r)[0] for r in results} - {"clean"}, key=_kind_order) or ["clean"]
    models = _grouped(results, lambda r: r["settings"]["model"])
    styles = loss_styles(r["settings"]["loss"] for r in results)

    figure = Figure(figsize=(1.2 + 3.6 * len(kinds), 0.9 + 3.2 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(kinds), squeeze=False, sharey="row")
    for row, (model, runs) in enumerate(models.items()):
        for column, kind in enumerate(kinds):
            axes = grid[row][column]
            shown = [r for r in runs if _kind_and_rate(r)[0] in (kind, "clean")]
            for loss, seeds in _grouped(shown, lambda r: _compact(r["settings"]["loss"])).items():
                by_rate = dict(sorted(_grouped(seeds, lambda r: _kind_and_rate(r)[1]).items()))
                last = {rate: [100 * r["accuracy"]["last"] for r in group] for rate, group in by_rate.items()}
                best = [mean(100 * r["accuracy"]["best"] for r in group) for group in by_rate.values()]
                colour, marker = styles[loss]
                axes.plot(list(by_rate), best, color=colour, alpha=0.45, linestyle="--", linewidth=1.2, marker="_")
                averages = [mean(values) for values in last.values()]
                axes.plot(list(by_rate), averages, color=colour, marker=marker, markersize=5, label=loss)
                repeated = [rate for rate, values in last.items() if len(values) > 1]
                if repeated:
                    axes.errorbar(
                        repeated,
                        [mean(last[rate]) for rate in repeated],
                        yerr=[stdev(last[rate]) for rate in repeated],
                        color=colour,
                        linestyle="none",
                        capsize=3,
                    )
            title = f"{kind} noise" if kind != "clean" else "clean labels"
            _dress(
                axes,
                title=f"{title}, {model}" if len(models) > 1 else title,
                xlabel="Noise rate (%)" if row == len(models) - 1 else "",
                ylabel="Test accuracy (%)" if column == 0 else "",
            )
            rates = [_kind_and_rate(r)[1] for r in shown]
            axes.set_xlim(min(rates, default=0) - 5, max(rates, default=0) + 5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    extra = [
        Line2D([], [], color="0.3", label="last epoch"),
        Line2D([], [], color="0.3", alpha=0.6, linestyle="--", label="best epoch"),
    ]
    _legend(figure, styles, extra)
    return figure


def results_table(results: Iterable[dict]) -> str:
    """A Markdown table, a row a loss (and model, if there are several), a column a noise: test accuracy in percent.

    A cell is `last (best)`; over several seeds each is `mean ± sample standard deviation`. A dash stands where no
    result is.

    Raises:
        ValueError: there are no results.
    """
    results = list(results)
    if not results:
        raise ValueError("results: there are none")
    noises = sorted({r["settings"]["noise"] for r in results}, key=_noise_order)
    rows = _grouped(results, lambda r: (r["settings"]["model"], _compact(r["settings"]["loss"])))
    several_models = len({model for model, _ in rows}) > 1
    heads = [*(["model"] if several_models else []), "loss", *noises]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    counts = set()
    for (model, loss), runs in rows.items():
        cells = [*([model] if several_models else []), loss]
        for noise in noises:
            scored = [r["accuracy"] for r in runs if r["settings"]["noise"] == noise and r["accuracy"]]
            if scored:
                counts.add(len(scored))
                last, best = (_mean_and_spread([accuracy[key] for accuracy in scored]) for key in ("last", "best"))
                cells.append(f"{last} ({best})")
            else:
                cells.append("–")
        lines.append("| " + " | ".join(cells) + " |")
    caption = "Accuracy on the clean test set in percent: last epoch (best epoch)"
    if counts - {1}:
        seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
        caption += f", mean ± standard deviation over {seeds} seeds"
    return "\n".join([f"{caption}.", "", *lines])


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write `figure` in the format of the path's suffix (`.png`, `.pdf`, `.svg`), to a temporary name first: a reader
    never sees half a file. Folders are made as needed; a file of that name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def loss_styles(losses: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Loss spec without white space -> (colour, marker), in the order of `losses`.

    Losses of `STYLES` always look the same. Others share what is left, in alphabetical order.
    """
    losses = list(dict.fromkeys(_compact(loss) for loss in losses))
    free = [colour for loss, (colour, _) in STYLES.items() if loss not in losses]
    taken = [colour for loss, (colour, _) in STYLES.items() if loss in losses]
    others = sorted(set(losses) - set(STYLES))
    spare = dict(zip(others, zip(cycle(free + taken), cycle(SPARE_MARKERS), strict=False), strict=False))
    return {loss: STYLES[loss] if loss in STYLES else spare[loss] for loss in losses}


def _compact(loss: str) -> str:
    return re.sub(r"\s", "", loss)


def _series(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    # epochs and values in percent of the entries that have the value
    rows = [(row["epoch"], 100 * row[key]) for row in history if row.get(key) is not None]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _with_history(results: Iterable[dict]) -> list[dict]:
    results = [r for r in results if _series(r["history"], "test_accuracy")[0]]
    if not results:
        raise ValueError("results: no history holds a test_accuracy")
    return results


def _grouped(results: Iterable[dict], key) -> dict:
    groups: dict = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def _kind_and_rate(result: dict) -> tuple[str, float] | None:
    # ("symmetric", 40.0) of symmetric_40, ("human", 9.01) of human_aggregate, ("clean", 0.0); None: rate unknown
    name, realised = result["settings"]["noise"], result["noise"]["rate"]
    if name == "clean":
        return "clean", 0.0
    kind, _, last = name.rpartition("_")
    if kind and re.fullmatch(r"\d+(\.\d+)?", last):
        return kind, float(last)
    if realised is None:
        return None
    return name.partition("_")[0], 100 * realised


def _kind_order(kind: str) -> tuple[int, str]:
    order = ["clean", "symmetric", "asymmetric", "semantic", "instance", "human"]
    return (order.index(kind) if kind in order else len(order)), kind


def _noise_order(name: str) -> tuple:
    kind, _, last = name.rpartition("_")
    if kind and re.fullmatch(r"\d+(\.\d+)?", last):
        return *_kind_order(kind), float(last), name
    return *_kind_order(name.partition("_")[0]), 0.0, name


def _mean_and_spread(shares: list[float]) -> str:
    percent = [100 * share for share in shares]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}"


def _dress(axes: Axes, *, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, styles: dict[str, tuple[str, str]], extra: Iterable[Line2D] = ()) -> None:
    lines = [Line2D([], [], color=colour, marker=marker, label=loss) for loss, (colour, marker) in styles.items()]
    lines += extra
    inches = sum(0.56 + 0.085 * len(line.get_label()) for line in lines)  # handle and gaps, and letters of 10 points
    rows = math.ceil(inches / (0.95 * figure.get_figwidth()))
    ncols = math.ceil(len(lines) / rows)
    figure.legend(handles=lines, loc="outside upper center", ncols=ncols, columnspacing=1.2, frameon=False)
