"""Every figure and table of the robust studies: results in, matplotlib `Figure` or Markdown out, no files, no state.

A result is what `results.json` of a run holds. Of it these functions read

- `settings`: `loss`, `noise`, `model`, `seed`;
- `noise`: `rate`, the realised share of wrong labels, or None where the clean labels are unknown, and `matrix`, their
  K x K transition matrix; `estimated_rate` and `estimated_matrix`, what a method made of the noisy labels alone;
- `label_names`: the K classes;
- `accuracy`: `last` and `best`, test accuracies in 0..1, and `best_epoch`;
- `memorisation`: `train_memorised` and `train_separation_auc` of the last epoch;
- `history`: one dict an evaluation with `epoch` and `test_accuracy`, and where the clean labels of the training images
  are known `train_clean_accuracy` (all images, clean label), `train_memorised` (wrongly labelled images, the wrong
  label), `train_separation_auc` and `loss_histogram` (see [`plot_loss_histograms`]); shares in 0..1. Absent or None, a
  value is left out.

The figures of the losses themselves are in `loss_plots` and are had from here as well.
"""

import math
import re
from collections.abc import Iterable
from statistics import mean, stdev

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .loss_plots import (
    SPARE_MARKERS,
    STYLES,
    compact,
    dress,
    headline,
    legend,
    loss_curve,
    loss_landscape,
    loss_styles,
    plot_loss_histograms,
)

__all__ = [
    "SPARE_MARKERS",
    "STYLES",
    "details_table",
    "loss_curve",
    "loss_landscape",
    "loss_styles",
    "plot_accuracy_vs_noise",
    "plot_curves",
    "plot_loss_histograms",
    "plot_runs",
    "plot_transition_matrices",
    "results_table",
]

MOST_NUMBERED = 20  # classes: with more, a matrix's cells are too small for numbers


def plot_curves(result: dict) -> Figure:
    """One run by epoch: test accuracy with its best epoch, and what of the training labels is fitted.

    The second panel is left out where the history says nothing about clean labels.

    Raises:
        ValueError: the history holds no test accuracy.
    """
    (result,) = _with_history([result])
    history, settings = result["history"], result["settings"]
    colour, marker = loss_styles([settings["loss"]])[compact(settings["loss"])]
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
    figure.suptitle(headline(settings))

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
    dress(axes[0], title="Clean test set", xlabel="Epoch", ylabel="Test accuracy (%)")
    if fits:
        for key, style in fits.items():
            axes[1].plot(*_series(history, key), markersize=4, **style)
        dress(axes[1], title="Training images", xlabel="Epoch", ylabel="Fitted (%)")
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
            for loss, seeds in _grouped(runs, lambda r: compact(r["settings"]["loss"])).items():
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
            dress(
                axes,
                title=(f"{noise}, {model}" if several_models else noise) if row == 0 else "",
                xlabel="Epoch" if last_row else "",
                ylabel=ylabel if column == 0 else "",
            )
            if key == "train_memorised":
                axes.set_ylim(-3, 103)
                if not axes.lines:
                    axes.text(0.5, 0.5, "no wrong labels known", ha="center", transform=axes.transAxes, color="0.4")
    legend(figure, styles)
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
            for loss, seeds in _grouped(shown, lambda r: compact(r["settings"]["loss"])).items():
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
            dress(
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
    legend(figure, styles, extra)
    return figure


def plot_transition_matrices(result: dict) -> Figure:
    """The true and the estimated transition matrix of one run's labels, side by side, with their noise rates.

    A row is a clean class, a column a given label, a cell the percentage of the row's images that carry that label.
    The colour scale goes with the square root, so that single flips show beside the diagonal. Up to 20 classes each
    cell holds its number. A row of counts is divided by its sum; a row of zeros stays as it is. A matrix that is
    absent or None is left out.

    Args:
        result (`dict`): `noise["matrix"]` and `noise["estimated_matrix"]`, (K, K) counts or row shares;
            `noise["rate"]` and `noise["estimated_rate"]` in 0..1 or None; `label_names`, K strings.

    Raises:
        ValueError: neither matrix is there, or one is not (K, K).
    """
    noise, names = result["noise"], result["label_names"]
    matrices = {}
    for title, key, rate_key in (("true", "matrix", "rate"), ("estimated", "estimated_matrix", "estimated_rate")):
        if noise.get(key) is None:
            continue
        matrix = np.asarray(noise[key], dtype=float)
        if matrix.shape != (len(names), len(names)):
            raise ValueError(f"noise[{key!r}]: expected shape ({len(names)}, {len(names)}), got {matrix.shape}")
        rate = noise.get(rate_key)
        title += "" if rate is None else f": {100 * rate:.1f} % wrong labels"
        sums = matrix.sum(axis=1, keepdims=True)
        matrices[title] = 100 * matrix / np.where(sums == 0, 1, sums)
    if not matrices:
        raise ValueError("result: its noise holds neither a matrix nor an estimated_matrix")

    numbered = len(names) <= MOST_NUMBERED
    side = max(3.6, 0.42 * len(names)) if numbered else 8.0
    ticks = range(0, len(names), math.ceil(len(names) / 50))  # names that do not overlap
    size = "small" if numbered else "xx-small"
    figure = Figure(figsize=((side + 1.2) * len(matrices) + 1, side + 1.8), layout="compressed")
    figure.suptitle(headline(result["settings"]))
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("Given label")
        axes.set_xticks(ticks, [names[k] for k in ticks], rotation=90, fontsize=size)
        axes.set_yticks(ticks, [names[k] for k in ticks], fontsize=size)
        if numbered:
            for (row, column), share in np.ndenumerate(matrix):
                text = "0" if share == 0 else f"{share:.1f}"
                colour = "white" if share > 45 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
    panels[0].set_ylabel("Clean label")
    bar = figure.colorbar(image, ax=list(panels), label="Share of the clean class (%)", shrink=0.8)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
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
    rows = _grouped(results, lambda r: (r["settings"]["model"], compact(r["settings"]["loss"])))
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
    return "\n".join([f"{caption}{_over_seeds(counts)}.", "", *lines])


def details_table(results: Iterable[dict]) -> str:
    """Markdown, a heading and a table a noise: a row a loss (and model, if there are several), by last accuracy.

    Columns: test accuracy of the last epoch and of the best (with its epoch, or its earliest and latest over seeds),
    the share of wrongly labelled training images predicted as their wrong label, all in percent, and the AUC of the
    loss as a detector of wrong labels; the latter two of the last epoch. Over several seeds each is `mean ± sample
    standard deviation` of those that know it. A dash stands where none does; rows without an accuracy come last.

    Raises:
        ValueError: there are no results.
    """
    results = list(results)
    if not results:
        raise ValueError("results: there are none")
    several_models = len({r["settings"]["model"] for r in results}) > 1
    heads = [*(["model"] if several_models else []), "loss", "last", "best (epoch)", "memorised", "AUC"]
    sections, counts = [], set()
    noises = _grouped(results, lambda r: r["settings"]["noise"])
    for noise in sorted(noises, key=_noise_order):
        rows = []
        for (model, loss), runs in _grouped(
            noises[noise], lambda r: (r["settings"]["model"], compact(r["settings"]["loss"]))
        ).items():
            scored = [r["accuracy"] for r in runs if r["accuracy"]]
            counts |= {len(scored)} - {0}
            last = [accuracy["last"] for accuracy in scored]
            best = "–"
            if scored:
                epochs = [accuracy["best_epoch"] for accuracy in scored]
                between = "–".join(f"{epoch:g}" for epoch in sorted({min(epochs), max(epochs)}))
                best = f"{_mean_and_spread([accuracy['best'] for accuracy in scored])} ({between})"
            fits = [r.get("memorisation", {}) for r in runs]
            memorised, auc = (
                [fit[key] for fit in fits if fit.get(key) is not None]
                for key in ("train_memorised", "train_separation_auc")
            )
            cells = [*([model] if several_models else []), loss, _mean_and_spread(last) if last else "–", best]
            cells.append(_mean_and_spread(memorised) if memorised else "–")
            cells.append(_mean_and_spread(auc, scale=1, digits=3) if auc else "–")
            rows.append((-mean(last) if last else math.inf, "| " + " | ".join(cells) + " |"))
        rows = [line for _, line in sorted(rows, key=lambda row: row[0])]
        sections += ["", f"### {noise}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *rows]
    caption = (
        "Accuracy on the clean test set, last epoch and best, and share of the wrongly labelled training images "
        "predicted as their wrong label (memorised), in percent. AUC: probability that a wrongly labelled training "
        "image has a larger loss than a correctly labelled one. Memorised and AUC are of the last epoch"
    )
    return "\n".join([f"{caption}{_over_seeds(counts)}.", *sections])


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


def _mean_and_spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    scaled = [scale * value for value in values]
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    return f"{mean(scaled):.{digits}f} ± {stdev(scaled):.{digits}f}"


def _over_seeds(counts: set[int]) -> str:
    # what a caption says of cells that are made of so many seeds
    if not counts - {1}:
        return ""
    seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f", mean ± standard deviation over {seeds} seeds"
