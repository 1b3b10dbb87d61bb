"""Scores of two sets of embeddings: the chosen metrics, the same against the number of images, table and picture."""

import math
import warnings
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hf_common.tables import markdown_table

from ..core.frechet import frechet_distance, frechet_distance_at_infinity, frechet_limit, kernel_distance
from ..core.mmd import cmmd, kid, permutation_test
from ..core.moments import Moments
from .embedding import Embedded

METRICS = {
    "cmmd": "CMMD, biased as published and unbiased, with its standard error (unit vectors only)",
    "p_value": "permutation test of the CMMD: do both sets come from one distribution? (unit vectors only)",
    "fd": "Frechet distance; with the encoder inception it is the FID",
    "fd_infinity": "its limit for infinitely many predictions",
    "kid": "kernel distance of random subsets; with the encoder inception it is the KID",
}
UNIT_VECTORS = ("cmmd", "p_value")
PREDICTIONS_KEPT, REFERENCES_KEPT = ("p_value", "fd_infinity", "kid"), ("p_value", "kid")  # moments don't do
CURVE_METRICS = ("cmmd", "fd", "kid")
FEWEST_OF_CURVE = 30  # images


def keeps(metrics: Sequence[str], curve: bool) -> tuple[bool, bool]:
    """Whether the embeddings of predictions and of references are needed beside their moments."""
    predictions = curve or any(metric in PREDICTIONS_KEPT for metric in metrics)
    return predictions, any(metric in REFERENCES_KEPT for metric in metrics)


def fits(metric: str, normalized: bool) -> bool:
    """Whether `metric` is defined for an encoder that gives unit vectors, or none."""
    return normalized or metric not in UNIT_VECTORS


def score(
    x: Embedded,
    y: Embedded,
    metrics: Sequence[str],
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    permutations: int = 999,
    seed: int = 0,
) -> dict:
    """The values of `metrics`, all of which fit, for predictions x and references y.

    Returns:
        For `cmmd`: `cmmd`, `cmmd_unbiased`, `standard_error` and `error_bound`, see [`cmmd`]; None where a set is too
        small. `p_value`: `p_value`, `permutations`. `fd`: `frechet_distance`. `fd_infinity`: `fd_infinity`,
        `fd_infinity_standard_error`. `kid`: `kid`, `kid_std`. `notes`: what a reader must know of them.
    """
    values: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for metric in metrics:
            if metric == "cmmd":
                result = cmmd(x.moments, y.moments)
                values |= {
                    "cmmd": result.biased,
                    "cmmd_unbiased": result.unbiased,
                    "standard_error": result.standard_error,
                    "error_bound": result.error_bound,
                }
            elif metric == "p_value":
                test = permutation_test(x.embeddings, y.embeddings, permutations=permutations, seed=seed)
                values |= {"p_value": test.p_value, "permutations": test.permutations}
            elif metric == "fd":
                values["frechet_distance"] = frechet_distance(x.moments, y.moments)
            elif metric == "fd_infinity":
                limit = frechet_distance_at_infinity(x.embeddings, y.moments, seed=seed)
                values |= {"fd_infinity": limit.value, "fd_infinity_standard_error": limit.standard_error}
            elif metric == "kid":
                mean, spread = kernel_distance(x.embeddings, y.embeddings, kid_subsets, kid_subset_size, seed)
                values |= {"kid": mean, "kid_std": spread}
    return {**values, "notes": sorted({str(warning.message) for warning in caught})}


def score_curve(x: Tensor, y: Embedded, metrics: Sequence[str], *, repeats: int = 8, seed: int = 0) -> dict:
    """Each metric of `CURVE_METRICS` against the number of predictions, the references being used whole.

    For n, n / 2, n / 4, ... predictions, down to `FEWEST_OF_CURVE`, up to `repeats` disjoint random subsets are
    scored; that they are disjoint makes their spread an honest error. KID takes as many references, drawn anew.

    Args:
        x: (n, d) float32 embeddings of the predictions, n >= 2 * `FEWEST_OF_CURVE`.
        y: the references; with embeddings for `kid`.

    Returns:
        `counts`, falling from n; for each series (`cmmd`, `cmmd_unbiased`, `frechet_distance`, `kid`) a list of
        the values of the subsets at each count; and `fd_limit`, see [`frechet_limit`], of the subsets of n / 10 images
        or more and more than dimensions; None where these are of fewer than 3 counts.
    """
    if len(x) < 2 * FEWEST_OF_CURVE:
        raise ValueError(f"a curve needs {2 * FEWEST_OF_CURVE} predictions or more; got {len(x)}")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more; got {repeats}")
    counts = [len(x) >> halvings for halvings in range(int(math.log2(len(x) / FEWEST_OF_CURVE)) + 1)]
    # Of their own, so that a metric draws the same subsets beside any others.
    generator, of_references = (torch.Generator().manual_seed(number) for number in (seed, seed + 1))
    curve: dict = {"counts": counts}
    for count in counts:
        order, found = torch.randperm(len(x), generator=generator), {}
        for subset in order.split(count)[: min(repeats, len(x) // count)]:
            for name, value in _curve_point(x[subset], y, metrics, of_references).items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            curve.setdefault(name, []).append(values)
    if "fd" in metrics:
        pairs = [
            (count, value)
            for count, values in zip(counts, curve["frechet_distance"], strict=True)
            for value in values
            if count > max(len(x) / 10, x.shape[1])
        ]
        enough = len({count for count, _ in pairs}) >= 3
        curve["fd_limit"] = frechet_limit(*map(list, zip(*pairs, strict=True))).value if enough else None
    return curve


def _curve_point(x: Tensor, y: Embedded, metrics: Sequence[str], generator: torch.Generator) -> dict[str, float]:
    moments, point = Moments.zeros(x.shape[1]).update(x), {}
    if "cmmd" in metrics:
        result = cmmd(moments, y.moments)
        point |= {"cmmd": result.biased, "cmmd_unbiased": result.unbiased}
    if "fd" in metrics:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the picture marks where covariances are singular
            point["frechet_distance"] = frechet_distance(moments, y.moments)
    if "kid" in metrics:
        chosen = torch.randperm(len(y.embeddings), generator=generator)[: len(x)]
        point["kid"] = kid(x, y.embeddings[chosen]).value
    return point


COLUMNS = {
    "cmmd": ("CMMD", "cmmd", None),
    "cmmd_unbiased": ("CMMD unbiased", "cmmd_unbiased", "standard_error"),
    "p_value": ("p-value", "p_value", None),
    "fd": ("FD", "frechet_distance", None),
    "fd_infinity": ("FD infinity", "fd_infinity", "fd_infinity_standard_error"),
    "kid": ("KID", "kid", "kid_std"),
}


def to_markdown(scores: Sequence[dict]) -> str:
    """A row for each encoder, a column for each value that an encoder has; then the notes."""
    columns = [column for column in COLUMNS.values() if any(column[1] in row for row in scores)]
    rows = []
    for row in scores:
        cells = [row["encoder"], str(row["dim"])]
        for _, key, error in columns:
            value, spread = row.get(key), row.get(error) if error else None
            cells.append(("–" if value is None else f"{value:.4g}") + ("" if spread is None else f" ± {spread:.2g}"))
        rows.append(cells)
    table = markdown_table(["encoder", "dimensions", *(title for title, _, _ in columns)], rows)
    notes = [f"- {row['encoder']}: {note}" for row in scores for note in row["notes"]]
    return "\n".join([table, *([""] + notes if notes else [])])


SERIES = {
    "cmmd": ("CMMD", [("cmmd", "biased, as published", "#0072B2"), ("cmmd_unbiased", "unbiased", "#009E73")]),
    "fd": ("Frechet distance", [("frechet_distance", "Frechet distance", "#D55E00")]),
    "kid": ("KID", [("kid", "unbiased", "#009E73")]),
}


def plot_curves(scores: Sequence[dict]) -> Figure:
    """A row of panels for each encoder with a `curve`, a panel for each metric: mean and spread over the subsets."""
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
    figure.supxlabel("predictions; line: mean over disjoint subsets, band: their standard deviation", fontsize=9)
    return figure


def _plot_panel(axes, row: dict, metric: str) -> None:
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
            axes.axvspan(0.8 * curve["counts"][-1], row["dim"], color="#999999", alpha=0.2, linewidth=0)
            axes.axvline(row["dim"], color="#999999", linewidth=1, label=f"fewer images than {row['dim']} dimensions")
    pad = 0.05 * (highest - lowest)
    axes.set_ylim(lowest - (pad if lowest < 0 else 0), highest + pad)
    axes.axhline(0, color="#000000", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8 * curve["counts"][-1], 1.25 * curve["counts"][0])
    axes.set_xticks(curve["counts"], [f"{count:,}" for count in curve["counts"]], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.set_title(f"{title}, {row['encoder']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
