"""The labels that look most wrong, as a sheet of pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hf_common.tables import in_figure

COLUMNS = 6


class Suspect(NamedTuple):
    """One image: its pixels (H, W, 3) uint8, what it is called, what it seems to be, and how sure the former is."""

    pixels: np.ndarray
    given: str
    suggested: str
    confidence: float
    name: str


def sheet_of_suspects(suspects: Sequence[Suspect]) -> Figure:
    """A picture each, the most suspicious first, over it the given label and below it the one that is suggested.

    Raises:
        ValueError: there are none.
    """
    if not suspects:
        raise ValueError("suspects: there is none to be drawn")
    columns = min(COLUMNS, len(suspects))
    rows = -(-len(suspects) // columns)
    figure = Figure(figsize=(1.75 * columns, 0.5 + 2.3 * rows), layout="constrained")
    figure.suptitle("Labels that look wrong: given label above, suggested one below", fontsize="medium")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, suspect in zip(panels, suspects, strict=False):
        axes.imshow(suspect.pixels)
        axes.set_title(in_figure(suspect.given, 22), fontsize=9, color="#B00020")
        suggested = f"{in_figure(suspect.suggested, 22)}\np(given) {100 * suspect.confidence:.1f} %"
        axes.set_xlabel(f"{suggested}\n{in_figure(suspect.name, 26)}", fontsize=7.5)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(suspects) :]:
        axes.axis("off")
    return figure
