"""Write any data set of classes, images or text, with noisy labels as a data set folder of many configs.

Examples:

  Photographs in class folders, a tenth of each class held out as a clean test split:
    hf-robust make-noisy-dataset --source photos --validation_split 0.1 --output_dir noisy-photos \\
        --configs clean symmetric_20 symmetric_40

  CIFAR-100 with wrong labels inside its superclasses, and by the labels of CIFAR-100N:
    hf-robust make-noisy-dataset --source uoft-cs/cifar100 --label_column_name fine_label \\
        --human_labels CIFAR-100_human.pt --output_dir noisy-cifar100 --configs clean superclass_20 human_fine

  MNIST by the published map of digits that are mistaken for each other:
    hf-robust make-noisy-dataset --source ylecun/mnist --semantic_map mnist --output_dir noisy-mnist \\
        --configs clean semantic_40

  A table of texts, with the transition matrix that find-label-errors estimated on it, published:
    hf-robust find-label-errors --dataset reviews.csv --text_column_name text --model bert-base-cased \\
        --recipe auto --loss gce --output_dir runs/reviews
    hf-robust make-noisy-dataset --source reviews.csv --text_column_name text --test_split none \\
        --output_dir noisy-reviews --configs clean matrix:runs/reviews/results.json --push_to_hub USER/noisy-reviews

A config has the columns of the source, then label (noisy) and clean_label. A second call adds configs. The folder is
read with load_dataset("noisy-photos", "symmetric_40"), and trained on with --dataset noisy-photos --dataset_config.
"""

from dataclasses import dataclass, field

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_robust.noise.base import SAMPLINGS
from hf_robust.noise.human import is_human_name
from hf_robust.noise.spec import check_noise_names, spec_patterns
from hf_robust.noisy_dataset.arguments import GOES_ON, RepositoryArguments, print_configs, publish_built

NO_SPLIT = "none"


@dataclass
class SourceArguments:
    _argument_group_name = "source"

    source: str = field(
        metadata={
            "help": "Hub id, folder of class folders or one that datasets knows, or a CSV, TSV, JSON or Parquet file."
        }
    )
    source_config: str | None = field(default=None, metadata={"help": "Configuration of the source."})
    label_column_name: str | None = field(default=None, metadata={"help": "Column of the labels (default: label)."})
    text_column_name: list[str] | None = field(
        default=None, metadata={"help": "Column of the texts, or two of pairs: what a table has if not images."}
    )
    columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to keep beside the labels (default: all)."}
    )
    superclass_column: str | None = field(
        default=None,
        metadata={"help": "Column of each row's superclass, for superclass_RR (default: coarse_label, if there)."},
    )
    test_split: str = field(
        default="test", metadata={"help": f"Split that becomes test, with its labels as they are; or {NO_SPLIT}."}
    )
    validation_split: float | None = field(
        default=None, metadata={"help": "Instead, hold out this share of each class as test, drawn with seed 0."}
    )
    skip_corrupt: bool = field(default=False, metadata={"help": "Leave out images that cannot be read."})


@dataclass
class NoiseArguments:
    _argument_group_name = "data set"

    output_dir: str = field(metadata={"help": "New or empty folder, or one that an earlier call built."})
    configs: list[str] = field(
        metadata={"help": f"{spec_patterns()} with RR in percent, and with --human_labels the names in that file."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the noise."})
    sampling: str = field(
        default="quota",
        metadata={"choices": list(SAMPLINGS), "help": "quota: exact counts; bernoulli: each row for itself."},
    )
    semantic_map: str | None = field(
        default=None,
        metadata={
            "help": 'Of semantic_RR: mnist, or a JSON file of which class is taken for which, such as {"cat": "dog"} '
            "(default: the map of CIFAR-10, on its classes)."
        },
    )
    human_labels: str | None = field(
        default=None,
        metadata={
            "help": "Labels of people: CIFAR-10_human.pt, CIFAR-100_human.pt (human_fine), or .parquet with the "
            "columns clean and human_*, in the order of the training split."
        },
    )
    max_shard_size: str = field(
        default="100MB", metadata={"help": "Of the rows of a file, which is written in memory of several times that."}
    )


def main():
    parser = FlagParser((SourceArguments, NoiseArguments, RepositoryArguments), description=__doc__)
    source, args, hub = parser.parse_args_into_dataclasses()
    check_noise_names("configs", args.configs, is_human_name)
    from hf_robust.noisy_dataset.any_source import Reading
    from hf_robust.noisy_dataset.build import build_noisy_dataset
    from hf_robust.noisy_dataset.form import ANY
    from hf_robust.noisy_dataset.hub import check_publish

    reading = Reading(
        config=source.source_config,
        label_column=source.label_column_name,
        columns=source.columns,
        text_columns=source.text_column_name,
        test_split=None if source.test_split == NO_SPLIT else source.test_split,
        validation_split=source.validation_split,
        superclass_column=source.superclass_column,
        skip_corrupt=source.skip_corrupt,
    )
    published = None if hub.push_to_hub is None else check_publish(hub.push_to_hub, **hub.target, form=ANY)
    manifest = build_noisy_dataset(
        source.source,
        args.output_dir,
        configs=args.configs,
        reading=reading,
        semantic_map=args.semantic_map,
        human_labels=args.human_labels,
        seed=args.seed,
        sampling=args.sampling,
        max_shard_size=args.max_shard_size,
        published=published,
    )
    print_configs(manifest, args.output_dir, "rows")
    publish_built(args.output_dir, hub)


def run() -> None:
    """The command."""
    run_command(main, GOES_ON)
