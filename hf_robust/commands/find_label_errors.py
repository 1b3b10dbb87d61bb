"""Find wrong labels: cross-validate a robust classifier on noisy labels and let cleanlab read its probabilities.

    accelerate launch scripts/find_label_errors.py --dataset digits --noise symmetric_20 --loss nce+rce \\
        --num_train_epochs 10 --output_dir runs/label-errors
    accelerate launch scripts/find_label_errors.py --dataset USER/noisy-cifar10 --dataset_config human_worst \\
        --model cnn8 --loss gce --output_dir runs/cifar10-label-errors

Finished folds are skipped: run the same command again after a kill.
Writes label_errors.csv (the most suspicious label first), pred_probs.npy and labels.npy (as cleanlab reads them) and
results.json to --output_dir. Every flag of train_robust.py is taken too. Needs cleanlab: pip install 'cleanlab>=2.9'
"""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path

from hf_common.processes import leave_processes
from hf_common.signals import run_command
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.label_errors import find_label_errors, label_errors_table
from hf_robust.training.recipes import RecipeParser


@dataclass
class FoldArguments:
    num_folds: int = field(
        default=5, metadata={"help": "Folds of the cross-validation; a network is trained for each."}
    )


def main() -> None:
    parser = RecipeParser(
        (FoldArguments, DataArguments, ModelArguments, ExperimentArguments),
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(output_dir="runs/find_label_errors")
    folds, data, model, args = parser.parse_args_into_dataclasses()
    results = find_label_errors(data, model, args, folds.num_folds)
    if args.process_index == 0:
        print(label_errors_table(results))
        print(f"label_errors.csv, labels, probabilities and results: {Path(args.output_dir).resolve()}")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(
        main,
        "the finished folds are kept in --output_dir; the same command trains the others:",
    )
