"""What is shown of scores: the table, and the picture of the curves."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_common.tables import in_figure, markdown_table

COLUMNS = {
    "cmmd": ("CMMD", "cmmd", None),
    "cmmd_unbiased": ("CMMD unbiased", "cmmd_unbiased", "standard_error"),
    "p_value": ("p-value", "p_value", None),
    "fd": ("FD", "frechet_distance", None),
    "fd_infinity": ("FD infinity", "fd_infinity", "fd_infinity_standard_error"),
    "kid": ("KID", "kid", "kid_std"),
}


def score_table(scores: Sequence[dict]) -> str:
    """A row for each encoder and set of predictions, a column for each value that one has; then the notes.

    Where there are several sets of predictions, the first column names them.
    """
    several = len({row.get("predictions") for row in scores}) > 1
    columns = [column for column in COLUMNS.values() if any(column[1] in row for row in scores)]
    rows = []
    for row in scores:
        cells = [*([row["predictions"]] if several else []), row["encoder"], str(row["dim"])]
        for _, key, error in columns:
            value, spread = row.get(key), row.get(error) if error else None
            cells.append(("–" if value is None else f"{value:.4g}") + ("" if spread is None else f" ± {spread:.2g}"))
        rows.append(cells)
    heads = [*(["predictions"] if several else []), "encoder", "dimensions"]
    table = markdown_table([*heads, *(title for title, _, _ in columns)], rows)
    notes = dict.fromkeys(f"- {row['encoder']}: {note}" for row in scores for note in row["notes"])
    return "\n".join([table, *(["", *notes] if notes else [])])


def without_nan(value: Any) -> Any:
    """A result as JSON has it: None for NaN and infinity, which JSON has not, also in lists and dicts."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


SERIES = {
    "cmmd": ("CMMD", [("cmmd", "biased, as published", "#0072B2"), ("cmmd_unbiased", "unbiased", "#009E73")]),
    "fd": ("Frechet distance", [("frechet_distance", "Frechet distance", "#D55E00")]),
    "kid": ("KID", [("kid", "unbiased", "#009E73")]),
}


def plot_score_curves(scores: Sequence[dict]) -> Figure:
    """A row of panels for each result with a `curve`, a panel for each metric: mean and spread over the subsets."""
    several = len({row.get("predictions") for row in scores}) > 1
    panels = [
        [(row, metric) for metric, (_, series) in SERIES.items() if series[0][0] in row["curve"]] for row in scores
    ]
    panels = [line for line in panels if line]
    wide = max(map(len, panels))
    figure = Figure(figsize=(0.4 + 4.4 * wide, 0.5 + 3.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), wide, squeeze=False)
    for line, axes_of_line in zip(panels, grid, strict=True):
        for axes in axes_of_line[len(line) :]:
            axes.set_axis_off()
        for axes, (row, metric) in zip(axes_of_line, line, strict=False):
            _plot_panel(axes, row, metric)
            if several:
                axes.set_title(f"{axes.get_title()}, {in_figure(row['predictions'], 60)}", fontsize=8)
    figure.supxlabel(
        "predictions; line: mean over disjoint subsets, band: their standard deviation (none of a single subset)",
        fontsize=9,
    )
    return figure


def _plot_panel(axes: Axes, row: dict, metric: str) -> None:
    title, series = SERIES[metric]
    curve, lowest, highest = row["curve"], 0.0, 0.0
    counts = torch.tensor(curve["counts"], dtype=torch.float64)
    for key, label, colour in series:
        means = torch.tensor([sum(values) / len(values) for values in curve[key]])
        spread = torch.tensor([torch.tensor(v).std().item() if len(v) > 1 else math.nan for v in curve[key]])
        axes.plot(counts, means, color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(counts, means - spread, means + spread, color=colour, alpha=0.25, linewidth=0)
        edges = torch.cat((means, (means - spread)[~spread.isnan()], (means + spread)[~spread.isnan()]))
        lowest, highest = min(lowest, float(edges.min())), max(highest, float(edges.max()))
    if metric == "fd":
        if curve["fd_limit"] is not None:
            axes.axhline(
                curve["fd_limit"], color="#000000", linestyle="--", linewidth=1, label="extrapolated to infinity"
            )
        if curve["counts"][-1] <= row["dim"]:
            few, first = f"fewer images than {row['dim']} dimensions", 0.8 * curve["counts"][-1]
            axes.axvspan(first, row["dim"], color="#999999", alpha=0.2, linewidth=0, label=few)
            axes.axvline(row["dim"], color="#999999", linewidth=1)
    pad = 0.05 * (highest - lowest)
    axes.set_ylim(lowest - (pad if lowest < 0 else 0), highest + pad)
    axes.axhline(0, color="#000000", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8 * curve["counts"][-1], 1.25 * curve["counts"][0])
    axes.set_xticks(curve["counts"], [f"{count:,}" for count in curve["counts"]], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.set_ylabel(title)
    axes.set_title(f"{title}, {in_figure(row['encoder'], 60)}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
