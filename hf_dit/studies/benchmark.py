"""Time and memory of the attention processors, alone and within a model, beside what attention can gain at most.

Two levels: the *operator* (`attend` of a processor, from queries, keys and values to their output) and the whole
*step* of a [`DiTModel`]. Two phases: `forward`, and `forward+backward`.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator, NullLocator
from torch import Tensor
from tqdm.auto import tqdm

from hf_common.environment import hardware, versions

from .. import LIBRARIES
from ..attention.spec import parse_attn_item
from ..models.dit import DiTModel
from ..models.sizes import dit_config

Grid = tuple[int, int]  # rows and columns of tokens
Call = tuple[str, str]  # level and attention

BASELINE = "full"
PHASES = ("forward", "forward+backward")
LEVELS = ("operator", "step")
SHORTEST_SAMPLE = 0.01  # seconds; what is faster is called several times for one sample
MOST_CALLS = 100
LITTLE = 0.15  # a share of the multiply-adds at which noise and overhead are of the size of any gain
IN_CHANNELS, NUM_CLASSES = 4, 1000  # of the model, as for latents of ImageNet; without weight in the times


# --------------------------------------------------------------------------------------------- what attention can gain


def attention_share(tokens: int, dim: int) -> float:
    """Share of the attention in the multiply-adds of a DiT block of width `dim` over `tokens` tokens: N / (6 d + N).

    A token costs 12 d^2 in the projections (4 d^2) and the MLP (8 d^2), and 2 N d in scores and weighted values; the
    modulation, which is one a sample, is not counted.
    """
    return tokens / (6 * dim + tokens)


def speedup_bound(share: float) -> float:
    """How many times faster the whole becomes if a part of it, `share` in [0, 1), costs nothing (Amdahl)."""
    return 1 / (1 - share)


# ---------------------------------------------------------------------------------------------------------- measuring


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class PeakMemory:
    """The most memory in use between entry and exit, of a device or, for the CPU, of this process.

    `kind` says what `bytes` is: `"cuda_max_memory_allocated"`, tensors of this process on that GPU, or
    `"process_peak_resident_set"`, all that the process holds in RAM, libraries included. Where neither can be read
    (no Linux, another accelerator), both are None.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.kind: str | None = None
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.kind = "cuda_max_memory_allocated"
        elif self.device.type == "cpu":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to what is held now
            except OSError:
                return self
            self.kind = "process_peak_resident_set"
        return self

    def __exit__(self, *exception) -> None:
        if self.kind == "cuda_max_memory_allocated":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self.kind == "process_peak_resident_set":
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.bytes = 1024 * int(status["VmHWM"].split()[0])


def measure(
    calls: dict[Call, Callable[[], object]],
    repeats: int,
    device: torch.device,
    prepare: Callable[[Call], object] = lambda call: None,
) -> dict[Call, dict]:
    """Times of the calls, taken in turn: each repeat times every one, so that the machine's noise hits all alike.

    Before that each is called twice; a RuntimeError then (memory, a kernel that does not compile) is the reason why
    its row has no times, and the others go on. What takes less than 10 ms is called several times for one sample.

    Args:
        calls: by level and attention; those of an attention are compared with `"full"` on the same level.
        repeats: samples of each.
        device: what the calls work on.
        prepare: called with a call's key before its samples, outside of their time.

    Returns:
        For each call `ms`, `ms_min`, `ms_max`: median and range of `samples`; `speedup`, `speedup_min`, `speedup_max`:
        of the ratios to full attention in the same repeat, None without it; `peak_bytes`: allocated beyond what was
        before, on CUDA; `unavailable`: None or the reason.
    """
    counts, reasons = {}, {}
    for key, call in calls.items():
        prepare(key)
        try:
            call()
            counts[key] = min(MOST_CALLS, int(SHORTEST_SAMPLE / _seconds(call, 1, device)) + 1)
        except RuntimeError as error:
            reasons[key] = _one_line(error)
    samples: dict[Call, list[float]] = {key: [] for key in counts}
    for _ in range(repeats):
        for key, count in counts.items():
            prepare(key)
            samples[key].append(1000 * _seconds(calls[key], count, device))
    rows = {key: empty_row(reasons.get(key)) for key in calls}
    for key, values in samples.items():
        rows[key] |= {"samples": values, **_median_and_range("ms", values)}
        baseline = samples.get((key[0], BASELINE))
        if baseline is not None:
            ratios = [full / own for full, own in zip(baseline, values, strict=True)]
            rows[key] |= _median_and_range("speedup", ratios)
        if device.type == "cuda":
            prepare(key)
            before = torch.cuda.memory_allocated(device)
            with PeakMemory(device) as peak:
                calls[key]()
            rows[key]["peak_bytes"] = peak.bytes - before
    return rows


def empty_row(reason: str | None) -> dict:
    """A row of [`measure`] without figures, and the reason for it."""
    names = [f"{figure}{end}" for figure in ("ms", "speedup") for end in ("", "_min", "_max")]
    return {**dict.fromkeys(names), "samples": [], "peak_bytes": None, "unavailable": reason}


def _seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / count


def _median_and_range(name: str, values: Sequence[float]) -> dict:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _one_line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())


# --------------------------------------------------------------------------------------------------- what is measured


def operator_call(attention: str, inputs: Sequence[Tensor], grid: Grid, backward: bool) -> Callable[[], None]:
    """One call of a processor's `attend` on queries, keys and values, and then the gradients of the three."""
    # (B, N, H, D) float each
    processor = parse_attn_item(attention)
    inputs = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    gradient = torch.ones_like(inputs[0])

    def call() -> None:
        with torch.set_grad_enabled(backward):
            output = processor.attend(*inputs, grid)
        if backward:
            torch.autograd.grad(output, inputs, gradient)

    return call


def step_call(model: DiTModel, sample: Tensor, backward: bool) -> Callable[[], None]:
    """One call of the model, and then the gradients of its parameters."""
    # (B, C, H, W) float
    labels = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)
    parameters = list(model.parameters())

    def call() -> None:
        with torch.set_grad_enabled(backward):
            output = model(sample, 500, labels, return_dict=False)[0]
        if backward:
            torch.autograd.grad(output.sum(), parameters)

    return call


def make_model(config: dict, grid: Grid, generator: torch.Generator) -> DiTModel:
    """A model of a config as `dit_config` gives it, whose native grid is `grid`.

    All its parameters are drawn anew: the zeros of a model before training would make work of another kind.
    """
    patch = config["patch_size"]
    model = DiTModel(
        **config, sample_size=(grid[0] * patch, grid[1] * patch), in_channels=IN_CHANNELS, num_classes=NUM_CLASSES
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()  # a step of training has no other operations than this with gradients


def run_benchmark(
    attentions: Sequence[str],
    grids: Sequence[Grid],
    *,
    size: str = "dit-s-2",
    heads: int | None = None,
    head_dim: int | None = None,
    num_layers: int | None = None,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    repeats: int = 5,
    phases: Sequence[str] = PHASES,
    seed: int = 0,
) -> dict:
    """Measure processors at both levels on each grid; `full` is always among them, and the first.

    Args:
        attentions: items of an attention spec, such as `"na7"`. One that cannot run here, by its own `check` or by an
            error of its kernel, keeps its row, with the reason in place of times.
        grids: rows and columns of tokens.
        size: of the model, a key of `hf_dit.sizes.DIT_SIZES`.
        heads, head_dim, num_layers: in place of that size's own.
        batch: B, samples in a call.
        dtype, device: of weights and inputs.
        repeats: samples of each time.
        phases: of `PHASES`.
        seed: of the random weights and inputs.

    Returns:
        A dict ready for JSON. `rows` holds what [`measure`] gives, with `level`, `phase`, `grid`, `tokens`,
        `attention`; `shares` holds, for each grid and phase, attention's share of the multiply-adds and of the
        measured time, and the speed-up that each leaves at most; beside these `settings`, `hardware`, `versions`.

    Raises:
        ValueError: an unknown attention, size or phase, an empty list, or a number that is too small.
    """
    device = torch.device(device)
    attentions = [BASELINE, *(item for item in dict.fromkeys(attentions) if item != BASELINE)]
    for attention in attentions:
        parse_attn_item(attention)
    for name, values in (("grids", grids), ("phases", phases)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    if not set(phases) <= set(PHASES):
        raise ValueError(f"phases must be of {', '.join(PHASES)}; got {list(phases)}")
    if min(itertools.chain(*grids)) < 1:
        raise ValueError(f"grids: rows and columns must be 1 or more; got {list(grids)}")
    for name, value in (("batch", batch), ("repeats", repeats), ("num_layers", num_layers)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")

    given = {"num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": num_layers}
    config = dit_config(size, **{key: value for key, value in given.items() if value is not None})
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config, grids[0], generator)
    torch.nn.Module.to(model, device, dtype)  # ModelMixin's own warns of every cast, whatever the model
    heads, head_dim, num_layers = (config[key] for key in given)
    settings = {
        "size": size,
        "heads": heads,
        "head_dim": head_dim,
        "num_layers": num_layers,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "repeats": repeats,
        "seed": seed,
        "attentions": attentions,
        "grids": [list(grid) for grid in grids],
        "phases": list(phases),
    }
    rows, shares = [], []
    for grid, phase in tqdm(list(itertools.product(grids, phases)), desc="grids and phases"):
        tokens, backward = grid[0] * grid[1], phase == PHASES[1]
        reasons = {}
        for attention in attentions:
            try:
                parse_attn_item(attention).check(
                    device=device, dtype=dtype, grid=grid, head_dim=head_dim, training=backward
                )
            except (ImportError, RuntimeError, ValueError) as error:
                reasons[attention] = _one_line(error)
        able = [attention for attention in attentions if attention not in reasons]

        shape = (batch, tokens, heads, head_dim)
        inputs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
        calls = {("operator", attention): operator_call(attention, inputs, grid, backward) for attention in able}
        patch = config["patch_size"]
        sample = torch.randn(batch, IN_CHANNELS, grid[0] * patch, grid[1] * patch, generator=generator)
        step = step_call(model, sample.to(device, dtype), backward)
        calls |= {("step", attention): step for attention in able}
        measured = measure(calls, repeats, device, prepare=lambda key: model.set_attn_processor(key[1]))
        case = {"phase": phase, "grid": list(grid), "tokens": tokens}
        for level, attention in itertools.product(LEVELS, attentions):
            row = measured[level, attention] if attention in able else empty_row(reasons[attention])
            rows.append({"level": level, **case, "attention": attention, **row})
        of_macs = attention_share(tokens, heads * head_dim)
        share = {**case, "share_of_macs": of_macs, "speedup_bound": speedup_bound(of_macs), "share_of_time": None}
        times = [measured[level, BASELINE]["samples"] if BASELINE in able else [] for level in LEVELS]
        if all(times):
            share["share_of_time"] = statistics.median(
                num_layers * operator / whole for operator, whole in zip(*times, strict=True)
            )
        shares.append(share)
    return {
        "settings": settings,
        "rows": rows,
        "shares": shares,
        "hardware": hardware(device),
        "versions": versions(LIBRARIES),
    }


# ------------------------------------------------------------------------------------------------------ what is shown


TITLES = {
    "operator": "Operator alone (queries, keys and values to their output)",
    "step": "Whole step of the model (bound: an attention that costs nothing, 1 / (1 - N / (6 d + N)))",
}


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


def to_markdown(report: dict) -> str:
    """A table a level, one of what attention can gain, [`answer`], and the reasons of what did not run."""
    parts = []
    bounds = {(tuple(share["grid"]), share["phase"]): share["speedup_bound"] for share in report["shares"]}
    cuda = any(row["peak_bytes"] is not None for row in report["rows"])
    for level in LEVELS:
        heads = ["tokens", "grid", "phase", "attention", "ms (median)", "range"]
        heads += [f"times as fast as {BASELINE}", "range"]
        heads += ["bound"] * (level == "step") + ["peak MiB"] * cuda
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        for row in report["rows"]:
            if row["level"] != level or row["ms"] is None:
                continue
            cells = [str(row["tokens"]), _words(row["grid"]), row["phase"], row["attention"]]
            cells += _cells(row, "ms", ".4g") + _cells(row, "speedup", ".2f")
            cells += [f"{bounds[tuple(row['grid']), row['phase']]:.2f}"] * (level == "step")
            cells += ["-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"] * cuda
            lines.append("| " + " | ".join(cells) + " |")
        parts.append(f"{TITLES[level]}\n\n" + "\n".join(lines))
    lines = [
        "| tokens | grid | phase | share of multiply-adds | bound | share of time | bound |",
        "|" + " --- |" * 7,
    ]
    for share in report["shares"]:
        macs, measured = share["share_of_macs"], share["share_of_time"]
        cells = [str(share["tokens"]), _words(share["grid"]), share["phase"]]
        cells += [f"{100 * macs:.1f} %", f"{share['speedup_bound']:.2f}"]
        cells += ["-" if measured is None else f"{100 * measured:.1f} %"]
        cells += ["-" if measured is None or measured >= 1 else f"{speedup_bound(measured):.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    parts.append(
        "What full attention is of a step, and how many times as fast the step is at most if it cost nothing. By the "
        "multiply-adds of a block, N / (6 d + N), "
        f"d = {report['settings']['heads'] * report['settings']['head_dim']}; and by the time of the operator, once a "
        "layer, over that of the step.\n\n" + "\n".join(lines)
    )
    parts.append(answer(report))
    refused: dict[tuple[str, str], list[str]] = {}
    for row in report["rows"]:
        if row["unavailable"] is not None:
            refused.setdefault((row["attention"], row["unavailable"]), []).append(
                f"{_words(row['grid'])} {row['phase']}"
            )
    if refused:
        everywhere = {f"{_words(share['grid'])} {share['phase']}" for share in report["shares"]}
        lines = []
        for (attention, reason), places in refused.items():
            where = "" if set(places) == everywhere else f" ({', '.join(dict.fromkeys(places))})"
            lines.append(f"- {attention}{where}: {reason}")
        parts.append("Not run:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _words(grid: Sequence[int]) -> str:
    return f"{grid[0]} x {grid[1]}"


def _cells(row: dict, name: str, form: str) -> list[str]:
    if row[name] is None:
        return ["-", "-"]
    return [f"{row[name]:{form}}", f"{row[f'{name}_min']:{form}} to {row[f'{name}_max']:{form}}"]


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


def plot_benchmark(report: dict) -> Figure:
    """Left: time of the operator over N. Right: speed-up of the whole step over N, under its bound. A row a phase.

    Points are medians, bars the range. What did not run is absent; the table says why.
    """
    settings = report["settings"]
    phases = settings["phases"]
    figure = Figure(figsize=(10.2, 1.1 + 3.7 * len(phases)), layout="constrained")
    figure.suptitle(
        f"{settings['size']}: {settings['num_layers']} layers, {settings['heads']} heads of {settings['head_dim']}, "
        f"batch {settings['batch']}, {settings['dtype']}, {report['hardware']}",
        fontsize="medium",
    )
    axes = figure.subplots(len(phases), 2, squeeze=False)
    handles = {}
    for (left, right), phase in zip(axes, phases, strict=True):
        for position, attention in enumerate(settings["attentions"]):
            colour, marker = STYLES[position % len(STYLES)]
            dashes = ("-", "--", ":")[position // len(STYLES) % 3]
            style = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 6, "linewidth": 1.6}
            for panel, level, figure_name in ((left, "operator", "ms"), (right, "step", "speedup")):
                if (level, attention) == ("step", BASELINE):
                    continue
                points = _points(report, level, phase, attention, figure_name)
                if points:
                    x, y, low, high = zip(*points, strict=True)
                    bars = np.abs(np.array([low, high]) - np.array(y))
                    handles[attention] = panel.errorbar(x, y, yerr=bars, capsize=2, label=attention, **style)
        shares = sorted((s for s in report["shares"] if s["phase"] == phase), key=lambda share: share["tokens"])
        tokens = [share["tokens"] for share in shares]
        bound = [share["speedup_bound"] for share in shares]
        (handles["bound"],) = right.plot(tokens, bound, color="0.45", linestyle=(0, (1, 1)), linewidth=2)
        right.axhline(1, color="0.6", linewidth=1, zorder=1)
        _dress(left, tokens, f"Operator alone, {phase}", "Time (ms, log scale)")
        _dress(right, tokens, f"Whole step, {phase}", f"Times as fast as {BASELINE} (log scale)")
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        right.yaxis.set_major_locator(MaxNLocator(nbins=7))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.yaxis.set_minor_locator(NullLocator())
    bound_handle = handles.pop("bound")
    figure.legend(
        handles=[*handles.values(), bound_handle],
        labels=[*handles, "bound: attention at no cost, (6 d + N) / 6 d"],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    return figure


def _points(report: dict, level: str, phase: str, attention: str, name: str) -> list[tuple[float, ...]]:
    wanted = (level, phase, attention)
    rows = [row for row in report["rows"] if (row["level"], row["phase"], row["attention"]) == wanted]
    return sorted(
        (row["tokens"], row[name], row[f"{name}_min"], row[f"{name}_max"]) for row in rows if row[name] is not None
    )


def _dress(axes: Axes, tokens: Sequence[int], title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(set(tokens)), [str(count) for count in sorted(set(tokens))])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("Tokens N")
    axes.set_ylabel(ylabel)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
