"""What is shown of scores: the table, and the picture of the curves."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_common.tables import escaped, in_figure, markdown_table

from .registry import SCORES, ScoreInfo, Value

SETTINGS_OF_VALUES = ("precision_k", "density_k", "inception_splits")


def score_table(scores: Sequence[dict]) -> str:
    """A row for each encoder and set of predictions, a column for each value that one has; then classes, and notes.

    Where there are several sets of predictions, the first column names them. Where rows are of several encoders or
    preprocessings, a column tells them apart by their digests, and a note says that their values do not compare.
    """
    several = len({row.get("predictions") for row in scores}) > 1
    values = [value for info in SCORES.values() for value in info.values if any(value.key in row for row in scores)]
    marked = len(protocols(scores)) > 1
    rows = []
    for row in scores:
        cells = [*([row["predictions"]] if several else []), row["encoder"], str(row["dim"])]
        cells += [_protocol(row)[:8]] if marked else []
        rows.append([*cells, *(_cell(row, value) for value in values)])
    heads = [*(["predictions"] if several else []), "encoder", "dimensions", *(["protocol"] if marked else [])]
    parts = [markdown_table([*heads, *(value.title for value in values)], rows)]
    for row in scores:
        if row.get("per_class"):
            of = f"{row['predictions']}, {row['encoder']}" if several else row["encoder"]
            parts.append(f"Classes, {of}:\n\n{_class_table(row)}")
    notes = list(dict.fromkeys(f"- {row['encoder']}: {note}" for row in scores for note in row["notes"]))
    notes += [f"- {note}" for note in protocol_notes(scores)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def without_nan(value: Any) -> Any:
    """A result as JSON has it: None for NaN and infinity, which JSON has not, also in lists and dicts."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def protocols(scores: Sequence[dict]) -> list[str]:
    """What tells the encoders and preprocessings of results apart, each once and in their order."""
    return list(dict.fromkeys(map(_protocol, scores)))


def protocol_notes(scores: Sequence[dict]) -> list[str]:
    """What keeps the values of a table's rows from being compared: encoders, preprocessings, settings, numbers."""
    notes = []
    if len(found := protocols(scores)) > 1:
        notes.append(
            f"rows of different encoders or preprocessings ({len(found)} of them) do not compare: read each protocol "
            "for itself"
        )
    for name in SETTINGS_OF_VALUES:
        used = sorted({row[name] for row in scores if name in row})
        if len(used) > 1:
            notes.append(f"rows of different {name} ({', '.join(map(str, used))}) do not compare")
    for name in ("n_predictions", "n_references"):
        numbers = sorted({row[name] for row in scores if row.get(name) is not None})
        if len(numbers) > 1:
            notes.append(f"rows of different {name} ({', '.join(map(str, numbers))}): most scores depend on them")
    return notes


def _protocol(row: dict) -> str:
    return row.get("digest") or row["encoder"]


def _cell(row: dict, value: Value) -> str:
    number, spread = row.get(value.key), row.get(value.error) if value.error else None
    return ("–" if number is None else f"{number:.4g}") + ("" if spread is None else f" ± {spread:.2g}")


def _class_table(row: dict) -> str:
    """Of each class its numbers of images and its values; then the means."""
    by_class = row["per_class"]
    given = {key for of_class in by_class.values() for key in of_class}
    values = [value for info in SCORES.values() for value in info.values if value.key in given]
    rows = [
        [escaped(name), *(str(one[f"n_{role}"]) for role in ("predictions", "references"))]
        + [_cell(one, value) for value in values]
        for name, one in by_class.items()
    ]
    means = {value.key: row.get(f"{value.key}_of_classes") for value in values}
    rows.append(["mean of the classes", "", "", *(_cell(means, value) for value in values)])
    return markdown_table(["class", "predictions", "references", *(value.title for value in values)], rows)


def plot_score_curves(scores: Sequence[dict]) -> Figure:
    """A row of panels for each result with a `curve`, a panel for each metric: mean and spread over the subsets."""
    several = len({row.get("predictions") for row in scores}) > 1
    panels = [
        [(row, info) for info in SCORES.values() if info.series and info.series[0][0] in row["curve"]]
        for row in scores
    ]
    panels = [line for line in panels if line]
    wide = max(map(len, panels))
    figure = Figure(figsize=(0.4 + 4.4 * wide, 0.5 + 3.5 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), wide, squeeze=False)
    for line, axes_of_line in zip(panels, grid, strict=True):
        for axes in axes_of_line[len(line) :]:
            axes.set_axis_off()
        for axes, (row, info) in zip(axes_of_line, line, strict=False):
            _plot_panel(axes, row, info)
            if several:
                axes.set_title(f"{axes.get_title()}, {in_figure(row['predictions'], 60)}", fontsize=8)
    figure.supxlabel(
        "predictions; line: mean over disjoint subsets, band: their standard deviation (none of a single subset)",
        fontsize=9,
    )
    return figure


def _plot_panel(axes: Axes, row: dict, info: ScoreInfo) -> None:
    title, series = info.label or info.name, info.series
    curve, lowest, highest = row["curve"], 0.0, 0.0
    counts = torch.tensor(curve["counts"], dtype=torch.float64)
    for key, label, colour in series:
        # A count of which a value is missing, or infinite, has no point.
        points = [torch.tensor([math.nan if v is None else v for v in values]) for values in curve[key]]
        points = [values if values.isfinite().all() else torch.tensor([math.nan]) for values in points]
        means = torch.stack([values.mean() for values in points])
        spread = torch.tensor([values.std().item() if len(values) > 1 else math.nan for values in points])
        axes.plot(counts, means, color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(counts, means - spread, means + spread, color=colour, alpha=0.25, linewidth=0)
        edges = torch.cat((means, means - spread, means + spread, torch.zeros(1)))
        edges = edges[~edges.isnan()]
        lowest, highest = min(lowest, float(edges.min())), max(highest, float(edges.max()))
    if info.name == "fd":
        if curve["fd_limit"] is not None:
            axes.axhline(
                curve["fd_limit"], color="#000000", linestyle="--", linewidth=1, label="extrapolated to infinity"
            )
        if curve["counts"][-1] <= row["dim"]:
            few, first = f"fewer images than {row['dim']} dimensions", 0.8 * curve["counts"][-1]
            axes.axvspan(first, row["dim"], color="#999999", alpha=0.2, linewidth=0, label=few)
            axes.axvline(row["dim"], color="#999999", linewidth=1)
    pad = 0.05 * (highest - lowest) or 1.0
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
