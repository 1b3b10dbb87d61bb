"""Train one classifier on noisy labels and score it on clean ones.

    accelerate launch scripts/train_robust.py --noise symmetric_40 --loss nce+rce --num_train_epochs 10 \\
        --output_dir runs/digits-sym40
    accelerate launch scripts/train_robust.py --recipe cifar10-cnn8 --noise symmetric_40 --output_dir runs/sym40

Further examples:

    accelerate launch scripts/train_robust.py --dataset USER/noisy-cifar10 --dataset_config human_worst --loss gce \\
        --output_dir runs/cifar10-human
    accelerate launch scripts/train_robust.py --model runs/sym40 --dataset uoft-cs/cifar10 --do_train false \\
        --output_dir runs/sym40-score
    accelerate launch scripts/train_robust.py --noise symmetric_40 --loss nce+rce --output_dir runs/digits-sym40 \\
        --push_to_hub --hub_model_id USER/digits-sym40
    accelerate launch scripts/train_robust.py --dataset my_texts.csv --text_column_name sentence \\
        --validation_split 0.1 --model bert-base-cased --recipe auto --loss gce --output_dir runs/my_texts

Writes the model, results.json and curves.png to --output_dir. Every flag of TrainingArguments is taken too.
--push_to_hub uploads what was written, with a model card: one commit, no checkpoints. If the upload fails, the same
command makes good for it without training again.
--recipe sets data set, network, training arguments and the loss's hyper-parameters as published; flags that are given
win. --recipe auto takes the training arguments that fit the network.
"""

from pathlib import Path

from hf_common.running import run_command
from hf_robust.studies.front import experiment_arguments


def main() -> None:
    _, (data, model, args) = experiment_arguments(__doc__)
    from hf_common.processes import leave_processes
    from hf_robust.reports.tables import results_table
    from hf_robust.studies.run import run_experiment

    results = run_experiment(data, model, args)
    if args.process_index == 0:
        print(results_table([results]))
        print(f"everything else: {Path(args.output_dir).resolve()}")
        if args.push_to_hub:
            print(f"on the Hub: {args.hub_model_id}")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(
        main,
        "the newest checkpoint, if any yet, and what is finished are kept in --output_dir; this goes on:",
        flags=("--resume_from_checkpoint=last",),
    )
