"""Report how many bytes each config of a noisy CIFAR-10 folder adds to storage that keeps equal chunks once.

Example:
    python scripts/report_chunk_reuse.py noisy-cifar10 --json chunk_reuse.json
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_common.files import write_json
from hf_robust.noisy_dataset.chunk_reuse import chunk_reuse


@dataclass
class Arguments:
    avg: int = field(default=65536, metadata={"help": "Average chunk in bytes (default %(default)s, as on the Hub)."})
    json: str | None = field(default=None, metadata={"help": "Also write the rows to this file."})


def main():
    parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("dir", help="folder written by make_noisy_cifar10.py")
    args, positional = parser.parse_args_into_dataclasses()
    rows = chunk_reuse(positional.dir, args.avg)
    print(f"{'config':<18}{'bytes':>12}{'new bytes':>12}{'new':>9}")
    for row in rows:
        print(f"{row['config']:<18}{row['bytes']:>12}{row['new_bytes']:>12}{row['percent']:>8.3f}%")
    total, new = sum(row["bytes"] for row in rows), sum(row["new_bytes"] for row in rows)
    print(f"{'all':<18}{total:>12}{new:>12}{100 * new / total:>8.3f}%")
    if args.json:
        write_json(args.json, {"average": args.avg, "configs": rows, "bytes": total, "new_bytes": new})


if __name__ == "__main__":
    main()
