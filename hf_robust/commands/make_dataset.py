"""Write CIFAR-10 with noisy labels as a data set folder of many configs.

Examples:

  Every config of the table, from the Hub:
    python scripts/make_noisy_cifar10.py --output_dir noisy-cifar10

  From a local copy, with the human labels of CIFAR-10N (the published CIFAR-10_human.pt):
    python scripts/make_noisy_cifar10.py --source path/to/cifar10 --output_dir noisy-cifar10 \\
        --human_labels CIFAR-10_human.pt

  Some configs, one of a rate that the table lacks; a second call adds what is missing:
    python scripts/make_noisy_cifar10.py --output_dir noisy-cifar10 --configs clean symmetric_40 symmetric_35

  Publish the folder, after building what it lacks:
    python scripts/make_noisy_cifar10.py --output_dir noisy-cifar10 --push_to_hub USER/noisy-cifar10

The folder is read with load_dataset("noisy-cifar10", "symmetric_40"), the repository with
load_dataset("USER/noisy-cifar10", "symmetric_40").
"""

from dataclasses import dataclass, field

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_robust.noise.base import SAMPLINGS
from hf_robust.noise.human import HUMAN_CONFIGS, is_human_name
from hf_robust.noise.spec import check_noise_names, spec_patterns
from hf_robust.noisy_dataset.arguments import GOES_ON, RepositoryArguments, print_configs, publish_built


@dataclass
class Arguments:
    _argument_group_name = "data set"

    output_dir: str = field(metadata={"help": "New or empty folder, or one that an earlier call built."})
    source: str = field(
        default="uoft-cs/cifar10",
        metadata={"help": "Hub id or folder of a data set with the columns img and label."},
    )
    configs: list[str] | None = field(
        default=None,
        metadata={
            "help": f"{spec_patterns()} with RR in percent, and with --human_labels {', '.join(HUMAN_CONFIGS)} "
            "(default: all of the published rates)."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    sampling: str = field(
        default="quota",
        metadata={
            "choices": list(SAMPLINGS),
            "help": "quota: exact counts per class; bernoulli: each image for itself.",
        },
    )
    human_labels: str | None = field(
        default=None, metadata={"help": "CIFAR-10N: CIFAR-10_human.pt, or the same labels as .parquet."}
    )


def main():
    args, hub = FlagParser((Arguments, RepositoryArguments), description=__doc__).parse_args_into_dataclasses()
    check_noise_names("configs", args.configs or (), is_human_name)
    from hf_robust.noisy_dataset.build import build_noisy_cifar10
    from hf_robust.noisy_dataset.hub import check_publish

    published = None if hub.push_to_hub is None else check_publish(hub.push_to_hub, **hub.target)
    manifest = build_noisy_cifar10(
        args.source,
        args.output_dir,
        configs=args.configs,
        seed=args.seed,
        sampling=args.sampling,
        human_labels=args.human_labels,
        published=published,
    )
    print_configs(manifest, args.output_dir, "images")
    publish_built(args.output_dir, hub)


def run() -> None:
    """The command."""
    run_command(main, GOES_ON)
