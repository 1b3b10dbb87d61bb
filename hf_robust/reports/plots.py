"""Figures of runs: results (see `results`) in, matplotlib `Figure` out, no files, no state."""

from collections.abc import Iterable
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_common.tables import in_figure

from .order import compact, grouped, kind_and_rate, kind_order, noise_order
from .results import scored_on_given
from .style import dress, headline, legend, loss_styles


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
    figure.suptitle(headline(result))

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
    held_out = scored_on_given([result])
    title = "Held-out images, given labels" if held_out else "Clean test set"
    ylabel = "Accuracy (%)" if held_out else "Test accuracy (%)"
    dress(axes[0], title=title, xlabel="Epoch", ylabel=ylabel)
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
    columns = grouped(results, lambda r: (r["settings"]["noise"], r["settings"]["model"]))
    columns = dict(sorted(columns.items(), key=lambda item: (noise_order(item[0][0]), item[0][1])))
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
            for loss, seeds in grouped(runs, lambda r: compact(r["settings"]["loss"])).items():
                _plot_by_epoch(axes, loss, [_series(run["history"], key) for run in seeds], *styles[loss])
            last_row = row == len(rows) - 1
            dress(
                axes,
                title=in_figure(f"{noise}, {model}" if several_models else noise, 60) if row == 0 else "",
                xlabel="Epoch" if last_row else "",
                ylabel=ylabel if column == 0 else "",
            )
            if key == "train_memorised":
                axes.set_ylim(-3, 103)
                if not axes.lines:
                    axes.text(0.5, 0.5, "no wrong labels known", ha="center", transform=axes.transAxes, color="0.4")
    legend(figure, styles)
    return figure


def _plot_by_epoch(axes: Axes, loss: str, curves: list[tuple[list, list]], colour: str, marker: str) -> None:
    """The mean of the curves (epochs, values), and if there are several a band from the lowest to the highest."""
    by_epoch: dict[float, list[float]] = {}
    for curve in curves:
        for epoch, value in zip(*curve, strict=True):
            by_epoch.setdefault(epoch, []).append(value)
    if not by_epoch:
        return
    epochs = sorted(by_epoch)
    axes.plot(
        epochs,
        [mean(by_epoch[e]) for e in epochs],
        color=colour,
        marker=marker,
        markersize=4,
        markevery=max(1, len(epochs) // 10),
        label=loss,
    )
    if len(curves) > 1:
        lowest = [min(by_epoch[e]) for e in epochs]
        highest = [max(by_epoch[e]) for e in epochs]
        axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.2, linewidth=0)


def plot_accuracy_vs_noise(results: Iterable[dict]) -> Figure:
    """Test accuracy against the noise rate: a panel a kind of noise, a row a model, a line a loss.

    Solid: last epoch, mean over seeds; error bars are the sample standard deviation (none for one seed). Dashed and
    faint: best epoch. `clean` is rate 0 of every kind. A rate is the one in the noise's name, or else (CIFAR-10N) the
    realised one.

    Raises:
        ValueError: no result has both a test accuracy and a noise rate.
    """
    results = [r for r in results if r["accuracy"] and kind_and_rate(r) is not None]
    if not results:
        raise ValueError("results: none has both a test accuracy and a noise rate")
    kinds = sorted({_placed(r)[0] for r in results} - {"clean"}, key=kind_order) or ["clean"]
    models = grouped(results, lambda r: r["settings"]["model"])
    styles = loss_styles(r["settings"]["loss"] for r in results)

    figure = Figure(figsize=(1.2 + 3.6 * len(kinds), 0.9 + 3.2 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), len(kinds), squeeze=False, sharey="row")
    for row, (model, runs) in enumerate(models.items()):
        for column, kind in enumerate(kinds):
            axes = grid[row][column]
            shown = [r for r in runs if _placed(r)[0] in (kind, "clean")]
            for loss, seeds in grouped(shown, lambda r: compact(r["settings"]["loss"])).items():
                _plot_by_rate(axes, loss, seeds, *styles[loss])
            title = f"{kind} noise" if kind != "clean" else "clean labels"
            dress(
                axes,
                title=in_figure(f"{title}, {model}" if len(models) > 1 else title, 60),
                xlabel="Noise rate (%)" if row == len(models) - 1 else "",
                ylabel="Test accuracy (%)" if column == 0 else "",
            )
            rates = [_placed(r)[1] for r in shown]
            axes.set_xlim(min(rates, default=0) - 5, max(rates, default=0) + 5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
            if len(set(rates)) == 1:
                axes.set_xticks([rates[0]])
    extra = [
        Line2D([], [], color="0.3", label="last epoch"),
        Line2D([], [], color="0.3", alpha=0.6, linestyle="--", label="best epoch"),
    ]
    legend(figure, styles, extra)
    return figure


def _placed(result: dict) -> tuple[str, float]:
    found = kind_and_rate(result)
    assert found is not None  # the others were left out
    return found


def _plot_by_rate(axes: Axes, loss: str, runs: list[dict], colour: str, marker: str) -> None:
    """Best and last accuracy of one loss by rate, means over its runs, with error bars where there are several."""
    by_rate = dict(sorted(grouped(runs, lambda r: _placed(r)[1]).items()))
    last = {rate: [100 * r["accuracy"]["last"] for r in group] for rate, group in by_rate.items()}
    best = [mean(100 * r["accuracy"]["best"] for r in group) for group in by_rate.values()]
    # Of a single rate no line is seen, and the mark has to do.
    (marks,) = axes.plot(list(by_rate), best, color=colour, alpha=0.45, linestyle="--", linewidth=1.2, marker="_")
    if len(by_rate) == 1:
        marks.set(markersize=16, markeredgewidth=2)
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


def _series(history: list[dict], key: str) -> tuple[list[float], list[float]]:
    # epochs and values in percent of the entries that have the value
    rows = [(row["epoch"], 100 * row[key]) for row in history if row.get(key) is not None]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _with_history(results: Iterable[dict]) -> list[dict]:
    results = [r for r in results if _series(r["history"], "test_accuracy")[0]]
    if not results:
        raise ValueError("results: no history holds a test_accuracy")
    return results
