#!/usr/bin/env python
"""Time and memory of forward and backward of the losses, in units of F.cross_entropy and of their textbook form.

    python scripts/benchmark_losses.py
    python scripts/benchmark_losses.py --batch 128 --classes 10 --repeats 500 --threads 1
    python scripts/benchmark_losses.py --losses gce "nce + 4*agce(a=6, q=1.5)" --device cuda --dtype bfloat16

Other programs of a machine slow down whatever runs at that moment, so each repeat times F.cross_entropy and, right
after it, the loss, and then its textbook form (scripts/textbook_losses.py: softmax, one-hot labels and autograd, as
losses are usually released); the table shows the median of the ratios and their range (the first row is
F.cross_entropy against itself). Counted from the logits to their gradient, without a network; the L1 norm of the
parameters of anl_* and jal_* is not in it. By default all losses of logits and labels, and a few sums. Under half
precision F.cross_entropy and the textbook forms stay in it, while the losses work in float32.

Saved: what is kept for the backward beside the logits, as the number of tensors of their size or larger, and in units
of the logits' bytes. Under CUDA also the peak: all that is allocated beyond logits and labels, the gradient included.
"""

import statistics
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from textbook_losses import FORMS
from torch import Tensor
from transformers import HfArgumentParser

from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table
from hf_robust import LIBRARIES
from hf_robust.losses import RobustLoss, get_loss, list_losses

SUMS = ("nce + rce", "nce + 4*agce(a=6, q=1.5)", "0.01*ce_eps + 10*mae")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

Criterion = Callable[[Tensor, Tensor], Tensor]  # (B, K) logits, (B,) labels -> ()


def closed_form_losses() -> list[str]:
    """The losses that need logits and labels alone (and the parameters, for a norm), and a few sums of them."""
    return [info.name for info in list_losses() if not info.stateful] + list(SUMS)


@dataclass
class BenchmarkArguments:
    batch: int = field(default=8192, metadata={"help": "Rows B of the logits."})
    classes: int = field(default=1000, metadata={"help": "Columns K of the logits."})
    dtype: str = field(default="float32", metadata={"help": "Of the logits.", "choices": list(DTYPES)})
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    repeats: int = field(default=20, metadata={"help": "Pairs that are timed for each loss."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads. Default: as torch has it."})
    losses: list[str] = field(default_factory=closed_form_losses, metadata={"help": "Loss specs, without state."})
    output: str = field(default="runs/benchmark_losses.json", metadata={"help": "The JSON file of the figures."})


def make_inputs(args: BenchmarkArguments) -> tuple[Tensor, Tensor]:
    """Normal logits that require a gradient and labels at random; the same for the same arguments."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(args.batch, args.classes, generator=generator)
    labels = torch.randint(args.classes, (args.batch,), generator=generator)
    return logits.to(args.device, DTYPES[args.dtype]).requires_grad_(), labels.to(args.device)


def milliseconds(criterion: Criterion, logits: Tensor, labels: Tensor) -> float:
    """Wall-clock time of one forward and backward; under CUDA the time between two events on the stream."""
    logits.grad = None
    if logits.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(logits.device)
        start.record()
        criterion(logits, labels).backward()
        end.record()
        torch.cuda.synchronize(logits.device)
        return start.elapsed_time(end)
    start = time.perf_counter()
    criterion(logits, labels).backward()
    return 1000 * (time.perf_counter() - start)


def saved_for_backward(criterion: Criterion, logits: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """(elements, bytes) of each piece of memory that the graph keeps beside the logits; one piece counts once."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != logits.untyped_storage().data_ptr():
            kept[storage.data_ptr()] = (storage.nbytes() // tensor.element_size(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = criterion(logits, labels)
    loss.backward()  # until here the graph holds what it kept: no address can have served twice
    return list(kept.values())


def memory(criterion: Criterion, logits: Tensor, labels: Tensor) -> dict:
    """What a step keeps for its backward and, under CUDA, the peak of what it allocates, in units of the logits."""
    logits.grad = None
    size = logits.numel() * logits.element_size()
    saved = saved_for_backward(criterion, logits, labels)
    figures = {
        "saved_tensors": sum(elements >= logits.numel() for elements, _ in saved),
        "saved": sum(size_of_one for _, size_of_one in saved) / size,
        "peak": None,
    }
    if logits.device.type == "cuda":
        logits.grad = None
        torch.cuda.synchronize(logits.device)
        torch.cuda.reset_peak_memory_stats(logits.device)
        before = torch.cuda.memory_allocated(logits.device)
        criterion(logits, labels).backward()
        torch.cuda.synchronize(logits.device)
        figures["peak"] = (torch.cuda.max_memory_allocated(logits.device) - before) / size
    return figures


def textbook(loss: RobustLoss) -> Criterion | None:
    """The same sum of textbook forms; None if one of its losses has none."""
    if not all(term.name in FORMS for term in loss.terms):
        return None

    def form(logits: Tensor, labels: Tensor) -> Tensor:
        total = [weight * FORMS[name](logits, labels, **params) for weight, name, params in loss.terms]
        return torch.stack(total).sum() if len(total) > 1 else total[0]

    return form


def benchmark(
    criterion: Criterion, logits: Tensor, labels: Tensor, repeats: int, form: Criterion | None = None
) -> dict:
    """Times of F.cross_entropy, a criterion and its textbook form in turn, their ratios by repeat, and its memory."""
    in_turn = [F.cross_entropy, criterion, *([] if form is None else [form])]
    for warm_up in in_turn:
        milliseconds(warm_up, logits, labels)
    rounds = [[milliseconds(each, logits, labels) for each in in_turn] for _ in range(repeats)]
    baseline, own, *other = zip(*rounds, strict=True)
    ratios = [mine / reference for mine, reference in zip(own, baseline, strict=True)]
    of_form = [mine / reference for mine, reference in zip(own, *other, strict=True)] if other else None
    return {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "of_textbook": None if of_form is None else statistics.median(of_form),
        "ms": statistics.median(own),
        "cross_entropy_ms": statistics.median(baseline),
        **memory(criterion, logits, labels),
    }


def to_markdown(figures: dict[str, dict]) -> str:
    """A row a loss of what [`benchmark`] gives."""
    peak = any(row["peak"] is not None for row in figures.values())
    heads = ["loss", "ms", "of F.cross_entropy (median)", "range", "of its textbook form"]
    heads += ["saved (B, K) tensors", "saved / logits"]
    heads += ["peak / logits"] * peak
    rows = []
    for name, row in figures.items():
        cells = [name, f"{row['ms']:.3g}", f"{row['ratio']:.2f}", f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"]
        cells += ["" if row["of_textbook"] is None else f"{row['of_textbook']:.2f}"]
        cells += [str(row["saved_tensors"]), f"{row['saved']:.2f}"]
        cells += [f"{row['peak']:.2f}"] if peak else []
        rows.append(cells)
    return markdown_table(heads, rows)


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    for name, least in (("batch", 1), ("classes", 2), ("repeats", 1), ("threads", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be {least} or more; got {getattr(args, name)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device: torch sees no CUDA device; got {args.device!r}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        losses: list[RobustLoss] = [get_loss(spec) for spec in args.losses]
    except ValueError as error:
        parser.error(f"--losses: {error}")
    for loss in losses:
        if loss.stateful:
            parser.error(f"--losses: {loss.spec!r} needs more than logits and labels; it is no part of this benchmark")
    logits, labels = make_inputs(args)
    figures = {"F.cross_entropy": benchmark(F.cross_entropy, logits, labels, args.repeats)}
    for loss in losses:
        figures[loss.spec] = benchmark(loss, logits, labels, args.repeats, textbook(loss))
    device = logits.device
    print(
        f"logits ({args.batch}, {args.classes}) {args.dtype}, {args.repeats} repeats, {hardware(device)}, "
        f"torch {torch.__version__}\n"
    )
    print(to_markdown(figures))
    report = {
        "settings": vars(args) | {"threads": torch.get_num_threads()},
        "losses": figures,
        "hardware": hardware(device),
        "versions": versions(LIBRARIES),
    }
    write_json(args.output, report)
    print(f"\nfigures: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
