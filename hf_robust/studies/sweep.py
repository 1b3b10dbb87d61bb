"""Experiments over losses x noises x models x seeds: run what is missing, gather the results, draw them."""

import copy
import itertools
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from hf_common.files import replace_text, save_figure, slug, write_json
from hf_common.foreign import read_json
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, settings_difference

from ..losses import format_loss_spec, loss_needs, parse_loss_spec
from ..noise.spec import NoiseSpec
from ..reports.plots import plot_accuracy_vs_noise, plot_runs
from ..reports.tables import results_table
from ..training.arguments import default_weight_decay
from ..training.checkpoints import complete_checkpoints
from .arguments import DataArguments, ExperimentArguments, ModelArguments, check_arguments, run_settings
from .prepare import load_splits
from .run import run_experiment

# In place of a noise: the labels as the data set has them, noisy or not.
GIVEN = "given"


class Run(NamedTuple):
    """The arguments of one experiment."""

    data: DataArguments
    model: ModelArguments
    args: ExperimentArguments


def run_sweep(
    losses: Sequence[str],
    noises: Sequence[str],
    models: Sequence[str],
    seeds: Sequence[int],
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
) -> list[dict]:
    """Run every combination that is not finished yet; return the results of all, in the order of the loops.

    A seed is the seed of the initial weights, of the order of the images and of the noise: three seeds are three
    draws of everything, and losses are compared on the same noisy labels.

    Args:
        losses, noises, models, seeds: what is combined; a run's folder is `<noise>/<model>/<loss>/seed<seed>`. The
            noise `"given"` stands for the labels as the data set has them.
        data, model, args: everything else; `args.output_dir` is the folder of the whole sweep.

    Raises:
        ValueError: a list is empty, names something twice or something unknown, or a folder holds another run; all of
            this before the first run.
    """
    if args.push_to_hub:
        raise ValueError(
            "push_to_hub=True: a sweep makes many models; push one by train_robust.py with its output_dir"
        )
    losses = [format_loss_spec(parse_loss_spec(loss)) for loss in losses]
    noises = [noise if noise == GIVEN else NoiseSpec.parse(noise) for noise in noises]
    if data.noise_contaminated and not any(noise != GIVEN and noise.kind == "semantic" for noise in noises):
        raise ValueError(
            f"noise_contaminated=True is allowed with semantic noise alone; got noises={list(map(str, noises))}"
        )
    for name, values in (("losses", losses), ("noises", list(map(str, noises))), ("models", models), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    if args.transition_matrix is not None and not any("transition_matrix" in loss_needs(loss) for loss in losses):
        raise ValueError(f"transition_matrix={args.transition_matrix!r}: none of the losses {losses} takes one")
    runs = [
        _one_run(noise, model_name, seed, loss, Run(data, model, args))
        for noise, model_name, seed, loss in itertools.product(noises, models, seeds, losses)
    ]
    for run in runs:
        check_arguments(*run)
    return _run_missing(runs, data, args)


def _one_run(noise: NoiseSpec | str, model: str, seed: int, loss: str, common: Run) -> Run:
    """The arguments of one combination; what it does not say is as in `common`, whose folder its folder lies in."""
    args = copy.copy(common.args)  # `replace` would run TrainingArguments' set-up of devices and defaults twice
    args.loss, args.seed = loss, seed
    if "weight_decay" not in args.not_default:
        args.weight_decay = default_weight_decay(loss)
    if "transition_matrix" not in loss_needs(loss):
        args.transition_matrix = None
        args.not_default = {k: v for k, v in args.not_default.items() if k != "transition_matrix"}
    data = replace(
        common.data,
        noise=None if noise == GIVEN else noise,
        noise_seed=seed,
        # Of the noises, what has this form.
        noise_contaminated=common.data.noise_contaminated and noise != GIVEN and noise.kind == "semantic",
    )
    args.output_dir = str(Path(args.output_dir) / data.noise_name / slug(model) / slug(loss) / f"seed{seed}")
    return Run(data, replace(common.model, model=model), args)


def _run_missing(runs: list[Run], data: DataArguments, args: ExperimentArguments) -> list[dict]:
    """The results of all runs, made where they are not there; after each, and at the end, those there are drawn."""
    processes = args.process_index, args.world_size
    results = from_first_process(lambda: [_results_of(run) for run in runs], *processes)
    splits = None
    for position, run in enumerate(tqdm(runs, desc="runs", disable=args.process_index != 0)):
        if results[position] is not None:
            continue
        splits = load_splits(data) if splits is None else splits
        started = from_first_process(lambda run=run: bool(complete_checkpoints(run.args.output_dir)), *processes)
        run.args.resume_from_checkpoint = "last" if started else None
        results[position] = run_experiment(*run, splits=splits)
        if args.process_index == 0:
            _report([result for result in results if result is not None], Path(args.output_dir))
    if args.process_index == 0:
        _report(results, Path(args.output_dir))
    return results


# Flags of one run that a sweep replaces, and by what.
REPLACED_FLAGS = {
    "loss": "--losses",
    "noise": "--noises",
    "model": "--models",
    "seed": "--seeds",
    "noise_seed": "--seeds",
    "resume_from_checkpoint": "the same command again",
}


def refuse_replaced_flags(parser: ArgumentParser, run: Run, flags: Iterable[str] = tuple(REPLACED_FLAGS)) -> None:
    """End with the parser's error where the arguments of one run say what the lists of a sweep are for."""
    for flag in flags:
        holder = next(part for part in run if flag in part.__dataclass_fields__)
        # A loss that is not given has been filled in since.
        given = flag in holder.not_default if holder is run.args else getattr(holder, flag) != parser.get_default(flag)
        if given:
            parser.error(f"--{flag}: a sweep takes {REPLACED_FLAGS[flag]}")


def _results_of(run: Run) -> dict | None:
    """The results of a finished run; None if there are none yet. A `ValueError` if they are of another run."""
    path = Path(run.args.output_dir) / RESULTS
    if not path.exists():
        return None
    results = read_json(path)
    if difference := settings_difference(run_settings(*run), results["settings"]):
        raise ValueError(f"{str(path)!r} is the result of another run: {difference}; choose another output_dir")
    return results


def _report(results: list[dict], output_dir: Path) -> None:
    write_json(output_dir / "sweep.json", results)
    replace_text(output_dir / "results.md", results_table(results) + "\n")
    save_figure(plot_accuracy_vs_noise(results), output_dir / "accuracy_vs_noise.png")
    save_figure(plot_runs(results), output_dir / "training_curves.png")
