"""The transition matrix of a run's labels as a figure: counted, and between what bounds it is estimated."""

import math
import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from hf_common.tables import in_figure

from ..noise.bounds import CANNOT_TELL, FEWEST, IN_SAMPLE, OK, TOO_FEW
from ..noise.summary import estimate_in_words
from .style import headline

MOST_NUMBERED = 20  # classes: with more, a matrix's cells are too small for numbers


class Panel(NamedTuple):
    """One matrix: shares in percent (K, K), NaN where nothing is known, the words of each cell, or of them all."""

    title: str
    shares: np.ndarray
    words: list[list[str]]
    note: str | None = None


def plot_transition_matrices(result: dict) -> Figure:
    """The true and the estimated transition matrix of one run's labels, side by side, with their noise rates.

    A row is a clean class, a column a given label, a cell the percentage of the row's images that carry that label;
    of an estimate from held-out images, a cell says between what it lies, and its colour is the middle. A row that
    rests on too few images says so, and so does an estimate that can't be made.
    The colour scale goes with the square root, so that single flips show beside the diagonal. Up to 20 classes each
    cell holds its number. A row of counts is divided by its sum; a row of zeros stays as it is. A matrix that is
    absent or None is left out.

    Args:
        result (`dict`): `noise["matrix"]` and `noise["estimated_matrix"]`, (K, K) counts or row shares;
            `noise["rate"]` and `noise["estimated_rate"]` in 0..1 or None; `noise["estimate"]`, see
            [`~hf_robust.noise.summary.noise_summary`]; `label_names`, K strings; without, the classes are numbered.

    Raises:
        ValueError: neither matrix is there, or one is not (K, K).
    """
    noise = result["noise"]
    # Older results may lack the names.
    names = result.get("label_names") or range(len(noise.get("matrix") or noise.get("estimated_matrix") or ()))
    panels = []
    if noise.get("matrix") is not None:
        rate = noise.get("rate")
        title = "true" if rate is None else f"true: {100 * rate:.1f} % wrong labels"
        panels.append(_counted(title, _shares(noise, "matrix", len(names))))
    if noise.get("estimated_matrix") is not None:
        panels.append(_estimated(noise, _shares(noise, "estimated_matrix", len(names))))
    if not panels:
        raise ValueError("result: its noise holds neither a matrix nor an estimated_matrix")
    numbered = len(names) <= MOST_NUMBERED
    side = max(3.6, 0.42 * len(names)) if numbered else 8.0
    figure = Figure(figsize=((side + 1.2) * len(panels) + 1, side + 1.8), layout="compressed")
    figure.suptitle(headline(result))
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    images = [_draw(axes, panel, names, numbered) for axes, panel in zip(all_axes, panels, strict=True)]
    all_axes[0].set_ylabel("Clean label")
    bar = figure.colorbar(images[-1], ax=list(all_axes), label="Share of the clean class (%)", shrink=0.8)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    return figure


def _shares(noise: dict[str, Any], key: str, size: int) -> np.ndarray:
    matrix = np.asarray(noise[key], dtype=float)
    if matrix.shape != (size, size):
        raise ValueError(f"noise[{key!r}]: expected shape ({size}, {size}), got {matrix.shape}")
    sums = matrix.sum(axis=1, keepdims=True)
    return 100 * matrix / np.where(sums == 0, 1, sums)


def _counted(title: str, shares: np.ndarray) -> Panel:
    return Panel(title, shares, [["0" if share == 0 else f"{share:.1f}" for share in row] for row in shares])


def _estimated(noise: dict[str, Any], shares: np.ndarray) -> Panel:
    words, estimate = estimate_in_words(noise), noise.get("estimate")
    if estimate is None or estimate["verdict"] not in (OK, TOO_FEW, CANNOT_TELL):
        title = "estimated" if words is None else f"estimated: {words}".replace(" %", " % wrong labels", 1)
        panel = _counted(title, shares)
        if estimate is not None and estimate["verdict"] == IN_SAMPLE:
            for row, images in zip(range(len(shares)), estimate.get("confident_per_class") or (), strict=False):
                if images < FEWEST:
                    panel.shares[row], panel.words[row] = np.nan, _too_few(len(shares))
        return panel
    if estimate["verdict"] != OK:
        return Panel("estimated", np.full(shares.shape, np.nan), [[""] * len(shares)] * len(shares), words)
    return _between(f"estimated: {words} wrong labels", estimate, len(shares))


def _between(title: str, estimate: dict[str, Any], size: int) -> Panel:
    middle, cells = np.full((size, size), np.nan), [[""] * size for _ in range(size)]
    for row, (low, high) in enumerate(zip(estimate["low"], estimate["high"], strict=True)):
        if low is None or high is None:
            cells[row] = _too_few(size)
            continue
        middle[row] = 50 * (np.asarray(low) + high)
        for column, ends in enumerate(zip(low, high, strict=True)):
            low_word, high_word = (f"{100 * end:.0f}" for end in ends)
            cells[row][column] = low_word if low_word == high_word else f"{low_word}–{high_word}"
    return Panel(title, middle, cells)


def _too_few(size: int) -> list[str]:
    return [f"fewer than {FEWEST} images", *[""] * (size - 1)]


def _draw(axes: Axes, panel: Panel, names: Any, numbered: bool) -> AxesImage:
    image = axes.imshow(panel.shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel("Given label")
    ticks = range(0, len(names), math.ceil(len(names) / 50))  # names that do not overlap
    size = "small" if numbered else "xx-small"
    axes.set_xticks(ticks, [in_figure(names[k], 30) for k in ticks], rotation=90, fontsize=size)
    axes.set_yticks(ticks, [in_figure(names[k], 30) for k in ticks], fontsize=size)
    if panel.note is not None:
        note = textwrap.fill(panel.note, 30)
        axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center")
    for row, words in enumerate(panel.words if numbered else ()):
        for column, word in enumerate(words):
            share = panel.shares[row, column]
            whole = bool(np.isnan(share))  # what stands there is of the whole row
            place = (len(names) - 1) / 2 if whole else column
            if word:
                colour = "white" if share > 45 else "black"
                font = 7.5 if len(word) < 5 or whole else 6.5
                axes.text(place, row, word, ha="center", va="center", color=colour, fontsize=font)
    return image
