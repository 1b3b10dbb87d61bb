"""Experiments over losses x noises x models x seeds: run what is missing, gather the results, draw them."""

import copy
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from .experiment import (
    DataArguments,
    ExperimentArguments,
    ModelArguments,
    load_splits,
    run_experiment,
    run_settings,
)
from .files import replace_text, write_json
from .losses import get_loss
from .plots import plot_accuracy_vs_noise, plot_runs, results_table, save_figure
from .trainer import complete_checkpoints


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
        losses, noises, models, seeds: what is combined; a run's folder is `<noise>/<model>/<loss>/seed<seed>`.
        data, model, args: everything else; `args.output_dir` is the folder of the whole sweep.
    """
    for name, values in (("losses", losses), ("noises", noises), ("models", models), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    losses = [get_loss(loss).spec for loss in losses]
    output_dir, is_main = Path(args.output_dir), args.process_index == 0
    runs = []
    for noise, model_name, seed, loss in itertools.product(noises, models, seeds, losses):
        run_args = copy.copy(args)  # `replace` would run TrainingArguments' set-up of devices and defaults twice
        run_args.loss, run_args.seed = loss, seed
        run_args.output_dir = str(output_dir / noise / _slug(model_name) / _slug(loss) / f"seed{seed}")
        runs.append((replace(data, noise=noise, noise_seed=seed), replace(model, model=model_name), run_args))

    finished = {run_args.output_dir: _finished(*run) for run in runs for run_args in [run[-1]]}
    splits = None
    results = []
    for run in tqdm(runs, desc="runs", disable=not is_main):
        run_args = run[-1]
        result = finished[run_args.output_dir]
        if result is None:
            splits = load_splits(data) if splits is None else splits
            run_args.resume_from_checkpoint = "last" if complete_checkpoints(run_args.output_dir) else None
            result = run_experiment(*run, splits=splits)
        results.append(result)
        if is_main:
            _write(results, output_dir)
    return results


def _finished(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict | None:
    """The results of a finished run; None if there are none yet. A `ValueError` if they are of another run."""
    path = Path(args.output_dir) / "results.json"
    if not path.exists():
        return None
    results = json.loads(path.read_text())
    wanted = run_settings(data, model, args)
    if results["settings"] != wanted:
        changed = {key: results["settings"].get(key) for key in wanted if results["settings"].get(key) != wanted[key]}
        raise ValueError(
            f"{str(path)!r} is the result of another run: it has {changed}, asked for is "
            f"{ {key: wanted[key] for key in changed} }; choose another output_dir"
        )
    return results


def _write(results: list[dict], output_dir: Path) -> None:
    write_json(output_dir / "sweep.json", results)
    replace_text(output_dir / "results.md", results_table(results) + "\n")
    save_figure(plot_accuracy_vs_noise(results), output_dir / "accuracy_vs_noise.png")
    save_figure(plot_runs(results), output_dir / "training_curves.png")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", name).strip("_")
