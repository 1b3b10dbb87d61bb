"""Find wrong labels: cross-validate a robust classifier on noisy labels and let cleanlab read its probabilities.

    accelerate launch scripts/find_label_errors.py --dataset digits --noise symmetric_20 --loss nce+rce \\
        --num_train_epochs 10 --output_dir runs/label-errors
    accelerate launch scripts/find_label_errors.py --dataset USER/noisy-cifar10 --dataset_config human_worst \\
        --model cnn8 --loss gce --output_dir runs/cifar10-label-errors

    python scripts/find_label_errors.py --dataset my_photos --features facebook/dinov2-base \\
        --save_cleaned my_photos_cleaned --output_dir runs/my_photos
    python scripts/find_label_errors.py --dataset my_texts.csv --text_column_name sentence --model bert-base-cased \\
        --recipe auto --loss gce --output_dir runs/my_texts

Finished folds are skipped: run the same command again after a kill.
Writes label_errors.csv and .json (file or text, given and suggested label, the most suspicious first),
label_errors.png (of images, the worst), pred_probs.npy and labels.npy (as cleanlab reads them) and results.json to
--output_dir. No test split is needed. Every flag of train_robust.py is taken too. Needs cleanlab:
pip install 'cleanlab>=2.9'
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from hf_common.running import run_command
from hf_robust.studies.flags import HubFlags
from hf_robust.studies.front import experiment_arguments

CLEANED = ["drop", "relabel"]
# Of one training: there are several here, none of which is kept.
UNUSED_FLAGS = ("do_train", "resume_from_checkpoint", *(flag.name for flag in fields(HubFlags)))


@dataclass
class FoldArguments:
    _argument_group_name = "cross-validation"

    num_folds: int = field(
        default=5, metadata={"help": "Folds of the cross-validation; a network is trained for each."}
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "Train no network, but a linear classifier on the features of this one: a vision model's Hub id "
            "or folder, or file.py:function."
        },
    )
    save_cleaned: str | None = field(
        default=None, metadata={"help": "New folder for the training images without what was found, as a data set."}
    )
    cleaned: str = field(default="drop", metadata={"help": "There: drop them, or relabel them.", "choices": CLEANED})


def main() -> None:
    _, (folds, data, model, args) = experiment_arguments(
        __doc__, FoldArguments, hidden=UNUSED_FLAGS, output_dir="runs/find_label_errors"
    )
    from hf_common.processes import leave_processes
    from hf_robust.studies.label_errors import cleaned_in_words, find_label_errors, label_errors_table

    results = find_label_errors(data, model, args, **asdict(folds))
    if args.process_index == 0:
        print(label_errors_table(results))
        if folds.save_cleaned:
            print(cleaned_in_words(results, Path(folds.save_cleaned).resolve(), folds.cleaned))
        folder = Path(args.output_dir).resolve()
        sheet = ".csv, .json and .png" if (folder / "label_errors.png").exists() else ".csv and .json"
        print(f"label_errors{sheet}, labels, probabilities and results: {folder}")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(
        main,
        "the finished folds are kept in --output_dir; the same command trains the others:",
    )
