"""Compare trainings of a Diffusion Transformer that differ in one thing: attention, objective, conditioning, seed.

    accelerate launch scripts/compare_dit.py --dataset_name my_images --resolution 64 --model dit-s-4 \\
        --attentions full na7 --seeds 0 1 --max_train_steps 20000 --output_dir runs/full-against-na7
    accelerate launch scripts/compare_dit.py --dataset_name my_images --resolution 32 --model dit-tiny-4 \\
        --objectives epsilon v_prediction flow --max_train_steps 2600 --train_batch_size 64 \\
        --eval_metric evaluate_metrics/cmmd --eval_num_images 500 --output_dir runs/objectives

All combinations of the axes are trained by the same flags, those of train_dit.py: the same seed, data order, noise,
steps and batch. With --eval_metric samples of each, as many and from the same noise, are scored on the way.

Written to the output folder: the folder of each training, compare.json, compare.md (a table), compare.png (losses and
scores with errors), samples.png, scoring.json (the flags of the scores, which can't change). Finished trainings are
kept, a killed one goes on: give the same command again, or more values of an axis. What no training of the comparison
can have is told before the first one.
"""

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_dit.training.arguments import (
    DataArguments,
    DiTTrainingArguments,
    ModelArguments,
)
from hf_dit.training.axes import CompareArguments
from hf_dit.training.scoring_arguments import ScoringArguments


def main() -> None:
    parts = (CompareArguments, DataArguments, ModelArguments, DiTTrainingArguments, ScoringArguments)
    axes, data, model, args, scoring = FlagParser(parts, description=__doc__).parse_args_into_dataclasses()
    from pathlib import Path

    from accelerate import PartialState

    from hf_common.processes import leave_processes
    from hf_dit.training.compare import Matched, compare, compare_markdown

    report = compare(Matched(data, model, args, scoring), axes)
    if PartialState().is_main_process:
        print(f"\n{compare_markdown(report['runs'])}\n")
        print(f"compare.json, compare.md, compare.png, samples.png: {Path(args.output_dir).resolve()}")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(main, "finished trainings and checkpoints are kept in --output_dir; the same command goes on:")
