"""What a benchmark says: its tables, its answer in words, its figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, NullLocator

from hf_common.tables import markdown_table

from .benchmark import LEVELS, speedup_bound
from .measure import BASELINE

LITTLE = 0.15  # a share of the multiply-adds at which noise and overhead are of the size of any gain
TITLES = {
    "operator": "Operator alone (queries, keys and values to their output)",
    "step": "Whole step of the model (bound: an attention that costs nothing, 1 / (1 - N / (6 d + N)))",
}
# Colours that colour-blind readers tell apart (Okabe and Ito, without the yellow), each with a marker of its own.
STYLES = (
    ("#000000", "o"),
    ("#0072B2", "s"),
    ("#D55E00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
    ("#E69F00", "X"),
)


def answer(report: dict) -> str:
    """In words: what attention is of a step at the fewest and at the most tokens, and so what can be gained."""
    settings, forward = report["settings"], report["settings"]["phases"][0]
    shares = sorted((s for s in report["shares"] if s["phase"] == forward), key=lambda share: share["tokens"])
    parts = []
    for share in shares if len(shares) == 1 else (shares[0], shares[-1]):
        text = f"At {share['tokens']} tokens attention is {100 * share['share_of_macs']:.1f} % of the multiply-adds"
        if share["share_of_time"] is not None:
            text += f" and {100 * share['share_of_time']:.1f} % of the time of a {forward} step"
        gain = f"no kernel can make the step more than {share['speedup_bound']:.2f} times as fast by the multiply-adds"
        if share["share_of_time"] is not None and share["share_of_time"] < 1:
            gain += f", {speedup_bound(share['share_of_time']):.2f} times by that time"
        parts.append(f"{text} of {settings['size']}: {gain}.")
    if shares[0]["share_of_macs"] < LITTLE:
        parts.append(
            f"Where attention is as little as at {shares[0]['tokens']} tokens, swapping it (for xformers' kernels, or "
            "for a local pattern) shows no gain, and a few more small operations in each layer show as a loss; it "
            "pays at many tokens."
        )
    return " ".join(parts)


def benchmark_markdown(report: dict) -> str:
    """A table a level, one of what attention can gain, [`answer`], and the reasons of what did not run."""
    parts = [f"{TITLES[level]}\n\n{_level_table(report, level)}" for level in LEVELS]
    parts.append(
        "What full attention is of a step, and how many times as fast the step is at most if it cost nothing. By the "
        "multiply-adds of a block, N / (6 d + N), "
        f"d = {report['settings']['heads'] * report['settings']['head_dim']}; and by the time of the operator, once a "
        f"layer, over that of the step.\n\n{_shares_table(report)}"
    )
    parts.append(answer(report))
    refused = _refused(report)
    if refused:
        parts.append("Not run:\n\n" + "\n".join(refused))
    return "\n\n".join(parts)


def _level_table(report: dict, level: str) -> str:
    bounds = {(tuple(share["grid"]), share["phase"]): share["speedup_bound"] for share in report["shares"]}
    cuda = any(row["peak_bytes"] is not None for row in report["rows"])
    heads = ["tokens", "grid", "phase", "attention", "ms (median)", "range"]
    heads += [f"times as fast as {BASELINE}", "range"]
    heads += ["bound"] * (level == "step") + ["peak MiB"] * cuda
    lines = []
    for row in report["rows"]:
        if row["level"] != level or row["ms"] is None:
            continue
        cells = [str(row["tokens"]), _grid_in_words(row["grid"]), row["phase"], row["attention"]]
        cells += _cells(row, "ms", ".4g") + _cells(row, "speedup", ".2f")
        cells += [f"{bounds[tuple(row['grid']), row['phase']]:.2f}"] * (level == "step")
        cells += ["-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"] * cuda
        lines.append(cells)
    return markdown_table(heads, lines)


def _shares_table(report: dict) -> str:
    lines = []
    for share in report["shares"]:
        macs, measured = share["share_of_macs"], share["share_of_time"]
        cells = [str(share["tokens"]), _grid_in_words(share["grid"]), share["phase"]]
        cells += [f"{100 * macs:.1f} %", f"{share['speedup_bound']:.2f}"]
        cells += ["-" if measured is None else f"{100 * measured:.1f} %"]
        cells += ["-" if measured is None or measured >= 1 else f"{speedup_bound(measured):.2f}"]
        lines.append(cells)
    return markdown_table(
        ["tokens", "grid", "phase", "share of multiply-adds", "bound", "share of time", "bound"], lines
    )


def _refused(report: dict) -> list[str]:
    """A line for each attention and reason: where it did not run, unless that is everywhere."""
    refused: dict[tuple[str, str], list[str]] = {}
    for row in report["rows"]:
        if row["unavailable"] is not None:
            place = f"{_grid_in_words(row['grid'])} {row['phase']}"
            refused.setdefault((row["attention"], row["unavailable"]), []).append(place)
    everywhere = {f"{_grid_in_words(share['grid'])} {share['phase']}" for share in report["shares"]}
    lines = []
    for (attention, reason), places in refused.items():
        where = "" if set(places) == everywhere else f" ({', '.join(dict.fromkeys(places))})"
        lines.append(f"- {attention}{where}: {reason}")
    return lines


def _grid_in_words(grid: Sequence[int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def _cells(row: dict, name: str, form: str) -> list[str]:
    if row[name] is None:
        return ["-", "-"]
    return [f"{row[name]:{form}}", f"{row[f'{name}_min']:{form}} to {row[f'{name}_max']:{form}}"]


def plot_benchmark(report: dict) -> Figure:
    """Left: time of the operator over N. Right: speed-up of the whole step over N, under its bound. A row a phase.

    Points are medians, bars the range. What did not run is absent; the table says why.
    """
    settings = report["settings"]
    phases = settings["phases"]
    figure = Figure(figsize=(10.2, 1.1 + 3.7 * len(phases)), layout="constrained")
    figure.suptitle(
        f"{settings['size']}: {settings['num_layers']} layers, {settings['heads']} heads of {settings['head_dim']}, "
        f"batch {settings['batch']}, {settings['dtype']}, {report['hardware'].replace(' 1 threads', ' 1 thread')}",
        fontsize="medium",
    )
    axes = figure.subplots(len(phases), 2, squeeze=False)
    handles: dict = {}
    for (left, right), phase in zip(axes, phases, strict=True):
        handles |= _draw_times(left, report, phase) | _draw_speedups(right, report, phase)
    bound = handles.pop("bound")
    figure.legend(
        handles=[*handles.values(), bound],
        labels=[*handles, "bound: attention at no cost, (6 d + N) / 6 d"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


class _PlainNumbers(LogFormatter):
    """At the ticks that matplotlib would label, numbers as the major ticks have them: 0.06 and not 6e-02."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _draw_times(axes: Axes, report: dict, phase: str) -> dict:
    """Times of the operator; the lines by attention."""
    handles = _draw_points(axes, report, "operator", phase, "ms")
    _dress(axes, report, f"Operator alone, {phase}", "Time (ms, log scale)")
    axes.yaxis.set_minor_formatter(_PlainNumbers(labelOnlyBase=False))
    return handles


def _draw_speedups(axes: Axes, report: dict, phase: str) -> dict:
    """Speed-ups of the step and their bound; the lines by attention, and `bound`."""
    handles = _draw_points(axes, report, "step", phase, "speedup")
    shares = sorted((s for s in report["shares"] if s["phase"] == phase), key=lambda share: share["tokens"])
    tokens, bound = [share["tokens"] for share in shares], [share["speedup_bound"] for share in shares]
    (handles["bound"],) = axes.plot(tokens, bound, color="0.45", linestyle=(0, (1, 1)), linewidth=2)
    axes.axhline(1, color="0.6", linewidth=1, zorder=1)
    _dress(axes, report, f"Whole step, {phase}", f"Times as fast as {BASELINE} (log scale)")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.yaxis.set_minor_locator(NullLocator())
    return handles


def _draw_points(axes: Axes, report: dict, level: str, phase: str, name: str) -> dict:
    handles = {}
    for position, attention in enumerate(report["settings"]["attentions"]):
        if (level, attention) == ("step", BASELINE):
            continue
        colour, marker = STYLES[position % len(STYLES)]
        dashes = ("-", "--", ":")[position // len(STYLES) % 3]
        style: dict[str, Any] = {
            "color": colour,
            "marker": marker,
            "linestyle": dashes,
            "markersize": 6,
            "linewidth": 1.6,
        }
        points = _points(report, level, phase, attention, name)
        if points:
            x, y, low, high = zip(*points, strict=True)
            bars = np.abs(np.array([low, high]) - np.array(y))
            handles[attention] = axes.errorbar(x, y, yerr=bars, capsize=2, label=attention, **style)
    return handles


def _points(report: dict, level: str, phase: str, attention: str, name: str) -> list[tuple[float, ...]]:
    wanted = (level, phase, attention)
    rows = [row for row in report["rows"] if (row["level"], row["phase"], row["attention"]) == wanted]
    return sorted(
        (row["tokens"], row[name], row[f"{name}_min"], row[f"{name}_max"]) for row in rows if row[name] is not None
    )


def _dress(axes: Axes, report: dict, title: str, ylabel: str) -> None:
    tokens = sorted({share["tokens"] for share in report["shares"]})
    axes.set_title(title, fontsize="medium")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("Tokens N")
    axes.set_ylabel(ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
