"""Train losses x noises x models x seeds, one run after the other, and draw what came out.

    accelerate launch scripts/sweep_robust.py --losses ce nce+rce --noises symmetric_20 symmetric_40 symmetric_60 \\
        --num_train_epochs 30 --output_dir runs/digits
    accelerate launch scripts/sweep_robust.py --recipe cifar10-cnn8 --seeds 0 1 2 \\
        --losses ce gce nce+agce anl_ce --noises symmetric_20 symmetric_40 asymmetric_40 --output_dir runs/cifar10

Finished runs are skipped and a killed one goes on from its last checkpoint: run the same command again.
Writes a folder a run, and sweep.json, results.md, accuracy_vs_noise.png and training_curves.png to --output_dir.
Every flag of train_robust.py is taken too.
--recipe sets data set, network, training arguments and each loss's hyper-parameters as published; flags that are given
win.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hf_common.running import run_command
from hf_robust.studies.flags import REPLACED_FLAGS
from hf_robust.studies.front import experiment_arguments


@dataclass
class SweepArguments:
    _argument_group_name = "sweep"

    losses: list[str] = field(default_factory=lambda: ["ce", "nce+rce"], metadata={"help": "Loss specs."})
    noises: list[str] = field(
        default_factory=lambda: ["symmetric_40"],
        metadata={"help": "Noise specs, put on clean labels; 'given': none, for a --dataset_config that is noisy."},
    )
    models: list[str] = field(default_factory=lambda: ["cnn_small"], metadata={"help": "Networks."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of weights, order and noise."})


def main() -> None:
    parser, (sweep, data, model, args) = experiment_arguments(
        __doc__, SweepArguments, hidden=REPLACED_FLAGS, output_dir="runs/sweep_robust"
    )
    from hf_common.processes import leave_processes
    from hf_robust.reports.tables import results_table
    from hf_robust.studies.sweep import Run, refuse_replaced_flags, run_sweep

    refuse_replaced_flags(parser, Run(data, model, args))
    results = run_sweep(sweep.losses, sweep.noises, sweep.models, sweep.seeds, data, model, args)
    if args.process_index == 0:
        print(results_table(results))
        print(f"tables, figures and runs: {Path(args.output_dir).resolve()}")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(
        main,
        "finished runs and the newest checkpoint of the one at hand are kept in --output_dir; this goes on:",
    )
