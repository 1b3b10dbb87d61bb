"""What all figures of losses and runs share: how each loss looks, titles, axes and legends."""

import math
import re
from collections.abc import Iterable
from itertools import cycle

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


def loss_styles(losses: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Loss spec without white space -> (colour, marker), in the order of `losses`.

    Losses of `STYLES` always look the same. Others share what is left, in alphabetical order.
    """
    losses = list(dict.fromkeys(compact(loss) for loss in losses))
    free = [colour for loss, (colour, _) in STYLES.items() if loss not in losses]
    taken = [colour for loss, (colour, _) in STYLES.items() if loss in losses]
    others = sorted(set(losses) - set(STYLES))
    spare = dict(zip(others, zip(cycle(free + taken), cycle(SPARE_MARKERS), strict=False), strict=False))
    return {loss: STYLES[loss] if loss in STYLES else spare[loss] for loss in losses}


def compact(loss: str) -> str:
    """A loss spec without white space, as figures and tables write it."""
    return re.sub(r"\s", "", loss)


def headline(settings: dict) -> str:
    """What one run is, in one line."""
    return f"{compact(settings['loss'])} on {settings['noise']}, {settings['model']}, seed {settings['seed']}"


def dress(axes: Axes, *, title: str, xlabel: str, ylabel: str) -> None:
    """Texts, grid and frame; whole numbers on the x axis."""
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, styles: dict[str, tuple[str, str]], extra: Iterable[Line2D] = ()) -> None:
    """One legend of the losses for the whole figure, above it, in as many rows as its width needs."""
    lines = [Line2D([], [], color=colour, marker=marker, label=loss) for loss, (colour, marker) in styles.items()]
    lines += extra
    inches = sum(0.56 + 0.085 * len(line.get_label()) for line in lines)  # handle and gaps, and letters of 10 points
    rows = math.ceil(inches / (0.95 * figure.get_figwidth()))
    ncols = math.ceil(len(lines) / rows)
    figure.legend(handles=lines, loc="outside upper center", ncols=ncols, columnspacing=1.2, frameon=False)
