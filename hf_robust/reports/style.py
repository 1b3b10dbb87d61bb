"""What all figures of losses and runs share: how each loss looks, titles, axes and legends."""

import math
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hf_common.tables import in_figure

from ..losses.table import LOSSES
from .order import compact

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
    # Three dark ones of Paul Tol's that stay apart from those and from each other.
    "nfl": ("#332288", "<"),
    "ogc_gce": ("#882255", ">"),
    "anl_ce": ("#999933", "p"),
}
# With the same colours, for losses beyond these: ten colours and five markers make 50 pairs.
SPARE_MARKERS = ("h", "d", "*", "8", "H")


def loss_styles(losses: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Loss spec without white space -> (colour, marker), in the order of `losses`.

    Losses of `STYLES`, and those that are registered with a style, always look the same. Others share what is left, in
    alphabetical order.
    """
    fixed = STYLES | {name: info.style for name, info in LOSSES.items() if info.style is not None}
    losses = list(dict.fromkeys(compact(loss) for loss in losses))
    free = [colour for loss, (colour, _) in STYLES.items() if loss not in losses]
    taken = [colour for loss, (colour, _) in STYLES.items() if loss in losses]
    others = sorted(set(losses) - set(fixed))
    colours, count = free + taken, len(SPARE_MARKERS)
    spare = {  # the markers move on by one with each round of the colours
        loss: (colours[place % len(colours)], SPARE_MARKERS[(place + place // len(colours)) % count])
        for place, loss in enumerate(others)
    }
    return {loss: fixed[loss] if loss in fixed else spare[loss] for loss in losses}


def headline(result: dict) -> str:
    """What one run is, in one line."""
    settings = result["settings"]
    unknown = settings["noise"] == "clean" and result["noise"].get("rate") is None  # nobody says that they are right
    noise = "given labels" if unknown else in_figure(settings["noise"], 50)
    if settings.get("features"):  # of label errors, which no network was trained for
        return f"features of {in_figure(settings['features'], 50)} on {noise}, seed {settings['seed']}"
    model = in_figure(settings["model"], 50)
    return f"{compact(settings['loss'])} on {noise}, {model}, seed {settings['seed']}"


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
    inches = sum(
        0.56 + 0.085 * len(str(line.get_label())) for line in lines
    )  # handle and gaps, and letters of 10 points
    rows = math.ceil(inches / (0.95 * figure.get_figwidth()))
    ncols = math.ceil(len(lines) / rows)
    figure.legend(handles=lines, loc="outside upper center", ncols=ncols, columnspacing=1.2, frameon=False)
