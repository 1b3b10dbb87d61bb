"""Write CIFAR-10 with noisy labels as a data set folder of many configs.

Examples:

  Every config of the table, from the Hub:
    python scripts/make_noisy_cifar10.py --output_dir noisy-cifar10

  From a local copy, with the human labels of CIFAR-10N (the published CIFAR-10_human.pt):
    python scripts/make_noisy_cifar10.py --source path/to/cifar10 --output_dir noisy-cifar10 \\
        --human_labels CIFAR-10_human.pt

  Some configs, one of a rate that the table lacks; a second call adds what is missing:
    python scripts/make_noisy_cifar10.py --output_dir noisy-cifar10 --configs clean symmetric_40 symmetric_35

  Publish it:
    hf upload USER/noisy-cifar10 noisy-cifar10 . --repo-type dataset

The folder is read with load_dataset("noisy-cifar10", "symmetric_40").
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_robust.noise import SAMPLINGS
from hf_robust.noisy_cifar10 import build_noisy_cifar10


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "New or empty folder, or one that an earlier call built."})
    source: str = field(
        default="uoft-cs/cifar10",
        metadata={"help": "Hub id or folder of a data set with the columns img and label (default %(default)s)."},
    )
    configs: list[str] | None = field(
        default=None,
        metadata={
            "help": "clean, symmetric_RR, asymmetric_RR, semantic_RR, instance_RR with RR in percent, and with "
            "--human_labels human_aggregate, human_random1, human_random2, human_random3, human_worst (default: all "
            "of the published rates)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the noise (default %(default)s)."})
    sampling: str = field(
        default="quota",
        metadata={
            "choices": list(SAMPLINGS),
            "help": "quota: exact counts per class; bernoulli: each image for itself (default %(default)s).",
        },
    )
    human_labels: str | None = field(
        default=None, metadata={"help": "CIFAR-10N: CIFAR-10_human.pt, or the same labels as .parquet."}
    )


def main():
    parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    manifest = build_noisy_cifar10(
        args.source,
        args.output_dir,
        configs=args.configs,
        seed=args.seed,
        sampling=args.sampling,
        human_labels=args.human_labels,
    )
    print(f"{'config':<18}{'images':>8}{'realised rate':>16}{'MB':>9}")
    for name, entry in manifest["configs"].items():
        print(f"{name:<18}{entry['num_examples']:>8}{entry['rate']:>16.3%}{entry['file_bytes'] / 1e6:>9.1f}")
    print(f"{len(manifest['configs'])} configs in {args.output_dir}")


if __name__ == "__main__":
    main()
