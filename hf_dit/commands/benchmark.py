"""Time and memory of the attention processors: the operator alone, and a whole step of a DiT with it.

    python scripts/benchmark_attention.py
    python scripts/benchmark_attention.py --size dit-b-2 --tokens 1024 4096 --attentions na7 na11 swa64 --batch 4
    python scripts/benchmark_attention.py --device cuda --dtype bfloat16 --tokens 256 1024 4096 16384
    python scripts/benchmark_attention.py --grids 16x32 24x40 --attentions na7/truncate --phases forward
    python scripts/benchmark_attention.py --quick

Each repeat times every processor in turn, so that whatever else the machine does hits all alike; shown are medians
and ranges, of the times and of the ratios to full attention within a repeat. Processors that cannot run here are
listed with their reason. Beside the times of the step stands what an attention that costs nothing would give:
attention is N / (6 d + N) of the multiply-adds of a block (N tokens, width d), 10 % in a DiT-S and 4 % in a DiT-XL
of 256 tokens.

Written to the output folder: benchmark.json, benchmark.md (the tables), benchmark.png. Memory is measured on CUDA
alone: the most that a call allocates beyond what was there before it.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from hf_common.files import replace_text, save_figure, write_json
from hf_common.flags import FlagParser
from hf_common.running import STARTS_OVER, run_command
from hf_dit.models.sizes import DIT_SIZES
from hf_dit.studies.axes import PHASES

DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTIONS = ["full", "swa64", "na7", "xformers:full", "xformers:swa64", "flex:swa64", "flex:na7", "natten:na7"]
QUICK = {
    "size": "dit-micro-2",
    "tokens": [16, 36],
    "attentions": ["full", "swa4", "na3", "xformers:full", "natten:na3"],
    "batch": 1,
    "repeats": 2,
}


@dataclass
class BenchmarkArguments:
    _argument_group_name = "benchmark"

    size: str = field(default="dit-s-2", metadata={"help": f"Of the model: {', '.join(DIT_SIZES)}."})
    tokens: list[int] | None = field(
        default=None, metadata={"help": "Squares of whole numbers. Default: 256 1024 4096, on CUDA 16384 too."}
    )
    grids: list[str] | None = field(default=None, metadata={"help": "Rows x columns of tokens, as 16x32."})
    attentions: list[str] = field(
        default_factory=lambda: list(ATTENTIONS),
        metadata={"help": "Items of a spec; full is always there."},
    )
    heads: int | None = field(default=None, metadata={"help": "Default: the size's own."})
    head_dim: int | None = field(default=None, metadata={"help": "Default: the size's own."})
    num_layers: int | None = field(default=None, metadata={"help": "Of the model. Default: the size's own."})
    batch: int = field(default=2, metadata={"help": "Samples B; two are one guided image."})
    phases: list[str] = field(
        default_factory=lambda: list(PHASES), metadata={"help": "What is timed.", "choices": list(PHASES)}
    )
    dtype: str | None = field(
        default=None, metadata={"help": "Default: bfloat16 on CUDA, else float32.", "choices": list(DTYPES)}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})
    repeats: int = field(default=5, metadata={"help": "Samples of each time."})
    seed: int = field(default=0, metadata={"help": "Of the random weights and inputs."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads. Default: as torch has it."})
    quick: bool = field(default=False, metadata={"help": "A trial of seconds: micro model, few tokens."})
    output_dir: str = field(default="runs/benchmark_attention", metadata={"help": "The folder of what is written."})


def parse_grids(tokens: list[int] | None, grids: list[str] | None) -> list[tuple[int, int]]:
    """Square grids of so many tokens, then the grids in words; a `ValueError` for what is neither."""
    parsed = []
    for count in tokens or ():
        side = math.isqrt(max(count, 0))
        if count < 1 or side * side != count:
            raise ValueError(f"--tokens must be squares (256, 1024, ...), other grids go to --grids; got {count}")
        parsed.append((side, side))
    for text in grids or ():
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise ValueError(f"--grids must look like 16x32; got {text!r}")
        parsed.append((int(match[1]), int(match[2])))
    return list(dict.fromkeys(parsed))


def checked_grids(args: BenchmarkArguments) -> list[tuple[int, int]]:
    """The grids that are asked for; a `ValueError` for what no machine could time."""
    for name in ("heads", "head_dim", "num_layers", "batch", "repeats", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more; got {getattr(args, name)}")
    if args.size not in DIT_SIZES:
        raise ValueError(f"--size must be one of {', '.join(DIT_SIZES)}; got {args.size!r}")
    size = DIT_SIZES[args.size]
    dim = (args.heads or size["num_attention_heads"]) * (args.head_dim or size["attention_head_dim"])
    if dim % 4:
        raise ValueError(f"--heads times --head_dim must be divisible by 4; got {dim}")
    if args.tokens is None and args.grids is None:
        args.tokens = [256, 1024, 4096] + [16384] * args.device.startswith("cuda")
    return parse_grids(args.tokens, args.grids)


def main() -> None:
    parser = FlagParser(BenchmarkArguments, description=__doc__)
    (args,) = parser.parse_args_into_dataclasses()
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) == parser.get_default(name) and not (name == "tokens" and args.grids):
                setattr(args, name, value)
    try:
        grids, cuda = checked_grids(args), args.device.startswith("cuda")
    except ValueError as error:
        parser.error(str(error))
    import torch

    from hf_dit.attention.spec import parse_attn_item
    from hf_dit.studies.benchmark import run_benchmark
    from hf_dit.studies.benchmark_report import benchmark_markdown, plot_benchmark

    if cuda and not torch.cuda.is_available():
        parser.error(f"--device: torch sees no CUDA device; got {args.device!r}")
    try:
        for attention in args.attentions:
            parse_attn_item(attention)
    except ValueError as error:
        parser.error(str(error))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
    except RuntimeError:
        parser.error(f"--device must be cpu, cuda, cuda:1, ...; got {args.device!r}")

    report = run_benchmark(
        args.attentions,
        grids,
        size=args.size,
        heads=args.heads,
        head_dim=args.head_dim,
        num_layers=args.num_layers,
        batch=args.batch,
        dtype=getattr(torch, args.dtype or ("bfloat16" if cuda else "float32")),
        device=device,
        repeats=args.repeats,
        phases=list(dict.fromkeys(args.phases)),
        seed=args.seed,
    )
    settings = report["settings"]
    text = (
        f"{settings['size']}: {settings['num_layers']} layers, {settings['heads']} heads of {settings['head_dim']}, "
        f"batch {settings['batch']}, {settings['dtype']}, {settings['repeats']} repeats, {report['hardware']}, "
        f"torch {torch.__version__}\n\n{benchmark_markdown(report)}\n"
    )
    folder = Path(args.output_dir)
    write_json(folder / "benchmark.json", report)
    replace_text(folder / "benchmark.md", text)
    save_figure(plot_benchmark(report), folder / "benchmark.png")
    print(f"\n{text}\nwritten to {folder.resolve()}")


def run() -> None:
    """The command."""
    run_command(main, STARTS_OVER)
