#!/usr/bin/env python
"""Time and memory of CMMD against the number of images: from moments, from all pairs in blocks, by the plain formula.

    python scripts/benchmark_metrics.py
    python scripts/benchmark_metrics.py --images 1000 20000 --dim 1152 --repeats 3 --threads 1
    python scripts/benchmark_metrics.py --images 20000 --pairs_up_to 20000

n unit vectors against n others, float32, on the CPU, one process. `formula` is the published one as it stands: three
n x n float32 matrices |a|^2 + |b|^2 - 2 a.b, exp, mean. Each repeat times all methods in turn, so that whatever else
the machine does hits all alike; shown are medians, and the median of the ratios within a repeat. The exponent is the
slope of log time against log n over the larger half of the sizes. Memory is the peak of the process above what it held
before, on Linux.

Embedding the images is no part of this; it costs all methods the same.
"""

import ctypes
import math
import statistics
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import HfArgumentParser

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.mmd import cmmd
from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table

IMAGES = [1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class BenchmarkArguments:
    images: list[int] = field(default_factory=lambda: list(IMAGES), metadata={"help": "Vectors n in each set."})
    dim: int = field(default=768, metadata={"help": "Numbers in a vector; 768 for CLIP."})
    pairs_up_to: int = field(default=20_000, metadata={"help": "Largest n for the methods of all pairs."})
    repeats: int = field(default=1, metadata={"help": "Times that each size is measured."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads. Default: as torch has it."})
    output: str = field(default="runs/benchmark_metrics.json", metadata={"help": "The JSON file of the figures."})


def formula(x: Tensor, y: Tensor) -> float:  # (m, d), (n, d) float32
    """CMMD as published, sigma 10, scale 1000: every kernel matrix as a whole."""
    norms_x, norms_y = x.square().sum(1), y.square().sum(1)

    def mean_kernel(a: Tensor, b: Tensor, norms_a: Tensor, norms_b: Tensor) -> Tensor:
        return torch.exp(-0.005 * (-2 * a @ b.T + norms_a[:, None] + norms_b[None, :])).mean()

    own = mean_kernel(x, x, norms_x, norms_x) + mean_kernel(y, y, norms_y, norms_y)
    return 1000 * float(own - 2 * mean_kernel(x, y, norms_x, norms_y))


METHODS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "moments": lambda x, y: cmmd(x, y).value,
    "pairwise": lambda x, y: cmmd(x, y, method="pairwise").value,
    "formula": formula,
}


def make_embeddings(n: int, dim: int, seed: int) -> Tensor:  # (n, dim) float32
    """Unit vectors around a common direction, as those of CLIP are: mean cosine about 0.5."""
    vectors = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


def measure(method: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> dict:
    """`seconds`, `value`, and `megabytes` (2^20 bytes) beyond what the process held before, None if not on Linux."""
    if STATUS.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what earlier methods have freed would hide what this one takes
    before = _memory("VmRSS")
    if before is not None:
        RESET.write_text("5")  # VmHWM, the peak, starts anew
    start = time.perf_counter()
    value = method(x, y)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "value": value, "megabytes": None if before is None else _memory("VmHWM") - before}


def _memory(name: str) -> float | None:
    if not STATUS.exists():
        return None
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def benchmark(n: int, dim: int, repeats: int, names: list[str]) -> dict[str, dict]:
    """For each method the medians of its seconds and megabytes, its value, and the formula's time as a multiple."""
    x, y = make_embeddings(n, dim, 0), make_embeddings(n, dim, 1)
    runs = [{name: measure(METHODS[name], x, y) for name in names} for _ in range(repeats)]
    rows = {}
    for name in names:
        own = [run[name] for run in runs]
        megabytes = None if own[0]["megabytes"] is None else max(run["megabytes"] for run in own)
        rows[name] = {
            "seconds": statistics.median(run["seconds"] for run in own),
            "megabytes": megabytes,
            "value": own[0]["value"],
            "times_faster_than_formula": statistics.median(
                run["formula"]["seconds"] / run[name]["seconds"] for run in runs
            )
            if "formula" in names
            else None,
        }
    return rows


def exponent(sizes: list[int], seconds: list[float]) -> float | None:
    """Slope of log time against log n over the larger half of the sizes, at least two; None for fewer."""
    half = slice(min(len(sizes) // 2, len(sizes) - 2), None)
    if len(sizes) < 2:
        return None
    return statistics.linear_regression(*([math.log(v) for v in values[half]] for values in (sizes, seconds))).slope


def to_markdown(figures: dict[int, dict[str, dict]], exponents: dict[str, float | None]) -> str:
    """A row for each size, a group of columns for each method, and a last row of exponents."""
    heads = ["n"] + [f"{name}, {what}" for name in METHODS for what in ("s", "MB")]
    heads += ["moments, times faster", "pairwise, times faster"]
    rows = []

    def number(row: dict | None, key: str) -> str:
        return "" if row is None or row[key] is None else f"{row[key]:.3g}"

    for n, of_methods in figures.items():
        cells = [f"{n}"]
        cells += [number(of_methods.get(name), key) for name in METHODS for key in ("seconds", "megabytes")]
        cells += [number(of_methods.get(name), "times_faster_than_formula") for name in ("moments", "pairwise")]
        rows.append(cells)
    last = [text for name in METHODS for text in ("" if exponents[name] is None else f"n^{exponents[name]:.2f}", "")]
    return markdown_table(heads, [*rows, ["exponent", *last, "", ""]])


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    for name, least in (("dim", 1), ("repeats", 1), ("threads", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be {least} or more; got {getattr(args, name)}")
    if not args.images or min(args.images) < 2:
        parser.error(f"--images must be 2 or more each; got {args.images}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    sizes = sorted(set(args.images))
    names = {n: [name for name in METHODS if name == "moments" or n <= args.pairs_up_to] for n in sizes}
    warm_up = make_embeddings(256, args.dim, 2)
    for method in METHODS.values():
        method(warm_up, warm_up)
    print(
        f"vectors of {args.dim}, {args.repeats} repeats, {hardware(torch.device('cpu'))}, torch {torch.__version__}\n",
        flush=True,
    )
    figures = {}
    for n in sizes:
        figures[n] = benchmark(n, args.dim, args.repeats, names[n])
        print(
            ", ".join([f"n = {n}", *(f"{name} {row['seconds']:.3g} s" for name, row in figures[n].items())]),
            flush=True,
        )
    exponents = {}
    for name in METHODS:
        measured = [n for n in sizes if name in figures[n]]
        exponents[name] = exponent(measured, [figures[n][name]["seconds"] for n in measured])
    print("\n" + to_markdown(figures, exponents))
    report = {
        "settings": vars(args) | {"threads": torch.get_num_threads()},
        "images": figures,
        "exponents": exponents,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(LIBRARIES),
    }
    write_json(args.output, report)
    print(f"\nfigures: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
