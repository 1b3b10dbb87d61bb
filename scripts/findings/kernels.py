"""Why another kernel for attention does not make a step faster: the share of attention in a step, over the tokens."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from hf_common.tables import markdown_table
from hf_dit.models.sizes import dit_config
from hf_dit.studies.benchmark import run_benchmark

from .cells import cell_file, write_cell
from .claims import CONFIRMED, OPEN, REFUTED, Claim
from .study import Place

STUDY, CELLS = "kernels", ["cpu", "cuda"]
REPORTED = 256  # tokens of the report
ATTENTIONS = ["full", "swa64", "na7", "xformers:full", "xformers:swa64", "flex:swa64", "flex:na7", "natten:na7"]
SETTINGS = {
    "cpu": {"size": "dit-s-2", "num_layers": 4, "batch": 2, "grids": [(8, 8), (16, 16), (32, 32), (64, 64)]},
    "cuda": {
        "size": "dit-s-2",
        "batch": 8,
        "dtype": torch.bfloat16,
        "grids": [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128)],
    },
}
ON_GPU = "python scripts/studies.py --run kernels"
PHASES = {"forward": ("#0072B2", "o"), "forward+backward": ("#D55E00", "s")}


def run(place: Place) -> None:
    """Measure on what this machine has: the GPU, or else one thread of the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cell_file(STUDY, device, place.results).exists():
        return
    if device == "cpu":
        torch.set_num_threads(1)
    write_cell(STUDY, device, run_benchmark(ATTENTIONS, device=device, **SETTINGS[device]), place.results)


def share_of_attention(size: str, tokens: np.ndarray) -> np.ndarray:
    """Of the multiply-adds of a block of width d: N / (6 d + N)."""
    config = dit_config(size)
    return tokens / (6 * config["num_attention_heads"] * config["attention_head_dim"] + tokens)


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Measured shares of the time, and the share of the multiply-adds."""
    figure = Figure(figsize=(5.2 * len(cells), 4.0), layout="constrained")
    for axes, cell in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        counts = sorted({row["tokens"] for row in cell["shares"]})
        line = np.geomspace(counts[0], counts[-1], 100)
        axes.plot(line, share_of_attention(cell["settings"]["size"], line), color="0.3", label="multiply-adds")
        axes.plot(
            line, share_of_attention("dit-xl-2", line), color="0.3", linestyle=":", label="multiply-adds, DiT-XL"
        )
        for phase, (colour, marker) in PHASES.items():
            of_phase = [row for row in cell["shares"] if row["phase"] == phase]
            axes.plot(
                [row["tokens"] for row in of_phase],
                [row["share_of_time"] for row in of_phase],
                color=colour,
                marker=marker,
                linestyle="none",
                label=f"time, {phase}",
            )
        axes.axvline(REPORTED, color="0.7", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set(xlabel="Tokens", ylabel="Share of attention in a step", ylim=(0, 1))
        axes.set_title(f"{cell['settings']['size']}, {_device(cell)}, {cell['settings']['dtype']}", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.8)
        axes.legend(frameon=False, fontsize="small", loc="upper left")
    return {"attention_share": figure}


def _device(cell: dict) -> str:
    return "GPU" if cell["settings"]["device"].startswith("cuda") else "CPU"


def paragraph(cells: dict[str, list[dict]]) -> str:
    """Tables and text."""
    parts = [
        "Attention alone grows with the square of the tokens: of a block of width d it is N / (6 d + N) of the "
        "multiply-adds. The rest of a step no kernel touches; a step gains at most 1 / (1 - share)."
    ]
    for cell in cells[STUDY]:
        rows = [
            [
                f"{row['tokens']:,}",
                row["phase"],
                f"{100 * row['share_of_macs']:.0f} %",
                f"{100 * row['share_of_time']:.0f} %",
                f"{row['speedup_bound']:.2f}",
                *(_speedup(cell, row, attention) for attention in ("xformers:full", "na7", "flex:na7")),
            ]
            for row in cell["shares"]
        ]
        heads = ["tokens", "phase", "share of multiply-adds", "share of time", "gain at most"]
        heads += ["step with `xformers:full`", "with `na7`", "with `flex:na7`"]
        parts.append(f"On the {_device(cell)}, times as fast as full attention:\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(parts)


def _speedup(cell: dict, share: dict, attention: str) -> str:
    found = _row(cell, "step", share["phase"], share["tokens"], attention)
    return "–" if found is None else f"{found['speedup']:.2f} ({found['speedup_min']:.2f}–{found['speedup_max']:.2f})"


def _row(cell: dict, level: str, phase: str, tokens: int, attention: str) -> dict | None:
    wanted = {"level": level, "phase": phase, "tokens": tokens, "attention": attention, "unavailable": None}
    return next((row for row in cell["rows"] if all(row[key] == value for key, value in wanted.items())), None)


def claims(cells: list[dict]) -> list[Claim]:
    """What the report said of xformers."""
    said = f"xformers is slower than PyTorch's attention at {REPORTED} tokens."
    small, large = (100 * float(share_of_attention(size, np.array(REPORTED))) for size in ("dit-s-2", "dit-xl-2"))
    bound = (
        f"attention is {small:.0f} % of the multiply-adds of a DiT-S of {REPORTED} tokens and {large:.0f} % of a "
        f"DiT-XL: a step cannot be more than {1 / (1 - small / 100):.2f} times as fast"
    )
    rows = [_row(cell, "step", phase, REPORTED, "xformers:full") for cell in cells for phase in PHASES]
    rows = [row for row in rows if row is not None]
    if not rows:
        return [Claim(said, OPEN, f"xformers needs a GPU, where `{ON_GPU}` measures it; {bound}.")]
    slower = all(row["speedup_max"] < 1 for row in rows)
    faster = any(row["speedup_min"] > 1 for row in rows)
    verdict = CONFIRMED if slower else REFUTED if faster else OPEN
    shown = "; ".join(
        f"{row['phase']} {row['speedup']:.2f} times as fast ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})"
        for row in rows
    )
    return [Claim(said, verdict, f"A whole step: {shown}; {bound}.")]
