#!/usr/bin/env python
"""Time and memory of precision and recall against the products of matrices that they need.

    python scripts/benchmark_neighbours.py
    python scripts/benchmark_neighbours.py --images 10000 --dim 2048 --repeats 3 --threads 1

n predictions against n references, float32, on the CPU, one process: non-negative vectors of some 60 directions with
noise, as those of an image network are. `products` are the three that any exact computation needs, x x', y y' and
x y', in float32, in the same blocks, each block thrown away. Each repeat times both in turn, so that whatever else the
machine does hits both alike; shown are minima, and the smallest of the ratios within a repeat. Memory is the peak of
the process above what it held with both sets in it, on Linux.
"""

import time
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import HfArgumentParser

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.neighbours import TILE
from evaluate_metrics.core.precision_recall import precision_recall
from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
DIRECTIONS = 64


@dataclass
class BenchmarkArguments:
    images: list[int] = field(default_factory=lambda: [2000, 10_000], metadata={"help": "Vectors n in each set."})
    dim: int = field(default=2048, metadata={"help": "Numbers in a vector; 2048 for Inception."})
    repeats: int = field(default=2, metadata={"help": "Times that each size is measured."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    output: str = field(default="runs/benchmark_neighbours.json", metadata={"help": "The JSON file of the figures."})


def make_features(n: int, dim: int, seed: int) -> Tensor:  # (n, dim) float32
    """Non-negative vectors about a plane of `DIRECTIONS` dimensions, the same for every seed."""
    plane = torch.randn(DIRECTIONS, dim, generator=torch.Generator().manual_seed(0)) / DIRECTIONS**0.5
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, DIRECTIONS, generator=generator) @ plane
    return vectors.add_(torch.randn(n, dim, generator=generator), alpha=0.3).relu_()


def products(x: Tensor, y: Tensor) -> None:
    """x x', y y' and x y' in blocks."""
    for a, b in ((x, x), (y, y), (x, y)):
        for rows in a.split(max(1, TILE // len(b))):
            rows @ b.T


def measure(n: int, dim: int, repeats: int) -> dict:
    """Seconds of both, the least ratio of a repeat, megabytes (2^20 bytes; None if not on Linux), and the values."""
    x, y = make_features(n, dim, 1), make_features(n, dim, 2)
    held = _memory("VmRSS")
    if held is not None:
        RESET.write_text("5")  # VmHWM, the peak, starts anew
    seconds: dict[str, list[float]] = {"products": [], "precision_recall": []}
    for _ in range(repeats):
        start = time.perf_counter()
        products(x, y)
        middle = time.perf_counter()
        result = precision_recall(x, y)
        seconds["products"].append(middle - start)
        seconds["precision_recall"].append(time.perf_counter() - middle)
    peak = _memory("VmHWM")
    ratios = [own / least for own, least in zip(seconds["precision_recall"], seconds["products"], strict=True)]
    return {
        **{name: min(values) for name, values in seconds.items()},
        "ratio": min(ratios),
        "megabytes": None if held is None or peak is None else peak - held,
        "precision": result.precision,
        "recall": result.recall,
    }


def _memory(name: str) -> float | None:
    if not STATUS.exists():
        return None
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    for name in ("dim", "repeats", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more; got {getattr(args, name)}")
    if not args.images or min(args.images) < 5:
        parser.error(f"--images must be 5 or more each; got {args.images}")
    torch.set_num_threads(args.threads)
    measure(256, args.dim, 1)  # a warm-up
    figures = {n: measure(n, args.dim, args.repeats) for n in sorted(set(args.images))}
    heads = ["n", "products, s", "precision and recall, s", "ratio", "MB", "precision", "recall"]
    shown = {n: ["" if value is None else f"{value:.3g}" for value in row.values()] for n, row in figures.items()}
    rows = [[str(n), *cells] for n, cells in shown.items()]
    print(f"vectors of {args.dim}, {hardware(torch.device('cpu'))}, torch {torch.__version__}\n")
    print(markdown_table(heads, rows))
    facts = {"settings": vars(args), "hardware": hardware(torch.device("cpu")), "versions": versions(LIBRARIES)}
    write_json(args.output, {**facts, "images": figures})
    print(f"\nfigures: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
