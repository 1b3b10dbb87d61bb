"""The pictures of the card of a data set with noisy labels, from its manifest and from nothing else."""

import math
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from hf_common.files import save_figure
from hf_common.tables import in_figure

from ..noise.kinds import kind_of
from .form import CIFAR10, manifest_form

RATES_FIGURE = CIFAR10.rates_figure
MATRICES_FIGURE = CIFAR10.matrices_figure

MOST_COLUMNS = 6
MOST_NAMES = 20  # of classes that can be read beside a matrix
OTHER_COLOUR = "#777777"  # of a kind that is not known here


def write_figures(folder: Path, manifest: dict) -> None:
    """Both pictures as PNG under `folder`, where the card has them; those there are replaced.

    One manifest and one version of matplotlib give the same bytes.
    """
    form = manifest_form(manifest)
    plots = {
        form.rates_figure: plot_rates,
        **({form.matrices_figure: plot_matrices} if has_matrices(manifest) else {}),
    }
    for name, plot in plots.items():
        save_figure(plot(manifest), folder / name)


def has_matrices(manifest: dict) -> bool:
    """Whether the classes are few enough for transition matrices."""
    return all(entry["matrix"] is not None for entry in manifest["configs"].values())


def plot_rates(manifest: dict) -> Figure:
    """The realised share of wrong training labels: a bar a config, in the order of the manifest."""
    rates = {name: 100 * entry["rate"] for name, entry in manifest["configs"].items()}
    figure = Figure(figsize=(8, 0.9 + 0.23 * len(rates)), layout="constrained")
    axes, kinds = figure.subplots(), [kind_of(name) for name in rates]
    colours = [OTHER_COLOUR if kind is None else kind.colour for kind in kinds]
    bars = axes.barh(list(rates), list(rates.values()), color=colours)
    axes.bar_label(bars, labels=[f"{rate:.2f}" for rate in rates.values()], padding=3, fontsize="small")
    axes.set_xlabel("Wrong labels in the training split (%)")
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_matrices(manifest: dict) -> Figure:
    """The realised transition matrices: a panel a config, rows clean classes, columns labels, cells row shares.

    The colour scale goes with the square root, so that rare flips show beside the diagonal.
    """
    names, matrices = (
        [in_figure(name, 20) for name in manifest["class_names"]],
        {k: v["matrix"] for k, v in manifest["configs"].items()},
    )
    ticks: range | list[int] = range(len(names))
    if len(names) > MOST_NAMES:
        names, ticks = [str(place) for place in (0, len(names) - 1)], [0, len(names) - 1]
    columns = min(MOST_COLUMNS, len(matrices))
    rows = math.ceil(len(matrices) / columns)
    figure = Figure(figsize=(1.9 + 1.55 * columns, 1.1 + 1.6 * rows), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for position, (axes, (config, matrix)) in enumerate(zip(panels, matrices.items(), strict=False)):
        image = axes.imshow(100 * np.array(matrix), cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        axes.set_title(in_figure(config, 40), fontsize="small")
        lowest = position + columns >= len(matrices)
        axes.set_xticks(ticks, names if lowest else [], rotation=90, fontsize="x-small")
        axes.set_yticks(ticks, names if position % columns == 0 else [], fontsize="x-small")
        axes.tick_params(length=2)
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    figure.supxlabel("Label", fontsize="medium")
    figure.supylabel("Clean label", fontsize="medium")
    figure.colorbar(image, ax=grid, label="Share of the clean class (%)", aspect=30, ticks=[0, 1, 5, 20, 50, 100])
    return figure
