"""Experiments over losses x noises x models x seeds: run what is missing, gather the results, draw them."""

import copy
import itertools
import os
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from tqdm.auto import tqdm

from hf_common.files import replace_text, save_figure, slug, write_json
from hf_common.locks import LOCK, claimed
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS, begun, check_same_run, settings_difference

from ..losses import format_loss_spec, loss_needs, parse_loss_spec
from ..noise.spec import NoiseSpec
from ..reports.order import kind_and_rate
from ..reports.results import read_results
from ..reports.tables import results_table
from ..training.arguments import default_weight_decay
from ..training.checkpoints import complete_checkpoints
from .arguments import DataArguments, ExperimentArguments, ModelArguments, check_arguments, run_settings
from .flags import REPLACED_FLAGS
from .front import GIVEN
from .prepare import load_splits, noisy_train
from .run import run_claimed


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

    Several workers may share a sweep, see [`run_missing`]: each calls this with the same arguments.

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
    specs = [noise if noise == GIVEN else NoiseSpec.parse(noise) for noise in noises]
    if data.noise_contaminated and not any(_is_semantic(noise) for noise in specs):
        raise ValueError(
            f"noise_contaminated=True is allowed with semantic noise alone; got noises={list(map(str, specs))}"
        )
    for name, values in (("losses", losses), ("noises", list(map(str, specs))), ("models", models), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    if args.transition_matrix is not None and not any("transition_matrix" in loss_needs(loss) for loss in losses):
        raise ValueError(f"transition_matrix={args.transition_matrix!r}: none of the losses {losses} takes one")
    runs = [
        _one_run(noise, model_name, seed, loss, Run(data, model, args))
        for noise, model_name, seed, loss in itertools.product(specs, models, seeds, losses)
    ]
    for run in runs:
        check_arguments(*run)
    _check_distinct(runs)
    output_dir, processes = Path(args.output_dir), (args.process_index, args.world_size)
    results = run_missing(runs, processes, each=lambda finished: _report(finished, output_dir))
    if args.process_index == 0:
        _report(results, output_dir)
    return results


def _check_distinct(runs: Sequence[Run]) -> None:
    """Raise a `ValueError` if two runs would share a folder, as noises or models of one name would."""
    by_folder: dict[str, Run] = {}
    for run in runs:
        other = by_folder.setdefault(run.args.output_dir, run)
        if other is not run:
            difference = settings_difference(run_settings(*run), run_settings(*other)) or "nothing tells them apart"
            raise ValueError(
                f"losses, noises, models, seeds: two runs would share the folder {run.args.output_dir!r}: "
                f"{difference.replace('it has', 'the other')}; sweep them one by one, into folders of their own"
            )


def _is_semantic(noise: NoiseSpec | str) -> bool:
    return isinstance(noise, NoiseSpec) and noise.kind == "semantic"


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
        noise_contaminated=common.data.noise_contaminated and _is_semantic(noise),
    )
    args.output_dir = str(Path(args.output_dir) / data.noise_name / slug(model) / slug(loss) / f"seed{seed}")
    return Run(data, replace(common.model, model=model), args)


def run_missing(
    runs: Sequence[Run], processes: tuple[int, int] = (0, 1), each: Callable[[list[dict]], None] = lambda results: None
) -> list[dict]:
    """The results of all runs, made where they are not there.

    Started several times at once, each worker takes the next run that is free; a run whose worker was killed is taken
    over, and goes on from its last checkpoint. Each worker ends when all runs are finished. One with other settings
    than those at work is refused before it trains anything: the first to begin puts the settings into all folders.

    Args:
        runs: of one data set.
        processes: the index of this process and the number of processes of this worker.
        each: called after each run of this worker with the results of all that are finished by then.

    Raises:
        ValueError: a folder holds another run.
    """
    results = from_first_process(lambda: [_results_of(run) for run in runs], *processes)
    missing = [position for position, result in enumerate(results) if result is None]
    splits = load_splits(runs[0].data) if missing else None
    bar = tqdm(desc="runs", total=len(runs), initial=len(runs) - len(missing), disable=processes[0] != 0)
    for position in claimed(missing, lambda position: Path(runs[position].args.output_dir), *processes):
        run = runs[position]
        results[position] = from_first_process(partial(_results_of, run), *processes)
        if results[position] is None and splits is not None:  # else another worker has made it meanwhile
            from_first_process(partial(_results_file(run).unlink, missing_ok=True), *processes)  # damaged
            started = from_first_process(partial(complete_checkpoints, run.args.output_dir), *processes)
            run.args.resume_from_checkpoint = "last" if started else None
            results[position] = run_claimed(
                *run, replace(splits, train=noisy_train(run.data, splits)), begin=lambda: _claim_all(runs)
            )
            if processes[0] == 0:
                each([result for result in map(_results_of, runs) if result is not None])
        bar.update()
    bar.close()
    return [result for result in results if result is not None]


def _claim_all(runs: Sequence[Run]) -> None:
    """Write the settings of every run that has none yet; a `ValueError`, and nothing written, if one has others."""
    folders = [Path(run.args.output_dir) for run in runs]
    common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    common.mkdir(parents=True, exist_ok=True)
    with FileLock(common / LOCK):  # for a moment: each worker finds all of them or none
        new = [(folder, run) for folder, run in zip(folders, runs, strict=True) if not begun(folder)]
        for folder, run in zip(folders, runs, strict=True):
            if begun(folder):
                check_same_run(folder, run_settings(*run))
        for folder, run in new:
            write_json(folder / SETTINGS, run_settings(*run))


def refuse_replaced_flags(parser: ArgumentParser, run: Run, flags: Iterable[str] = tuple(REPLACED_FLAGS)) -> None:
    """End with the parser's error where the arguments of one run say what the lists of a sweep are for.

    To resume from the last checkpoint is what a sweep does anyway.
    """
    for flag in flags:
        holder: Any = next(part for part in run if flag in part.__dataclass_fields__)
        # A loss that is not given has been filled in since.
        given = flag in holder.not_default if holder is run.args else getattr(holder, flag) != parser.get_default(flag)
        if given and not (flag == "resume_from_checkpoint" and holder.resume_from_checkpoint == "last"):
            parser.error(f"--{flag}: a sweep takes {REPLACED_FLAGS[flag]}")


def _results_file(run: Run) -> Path:
    return Path(run.args.output_dir) / RESULTS


def _results_of(run: Run) -> dict | None:
    """The results of a finished run; None if there are none yet, or damaged ones, which are to be made again.

    Raises:
        ValueError: they are of another run.
    """
    path, settings = _results_file(run), run_settings(*run)
    if not path.exists():
        return None
    try:
        results = read_results(path)
    except ValueError:
        check_same_run(path.parent, settings)
        return None
    if difference := settings_difference(settings, results["settings"]):
        raise ValueError(f"{str(path)!r} is the result of another run: {difference}; choose another output_dir")
    return results


def _report(results: list[dict], output_dir: Path) -> None:
    from ..reports.plots import plot_accuracy_vs_noise, plot_runs  # and with it matplotlib

    write_json(output_dir / "sweep.json", results)
    replace_text(output_dir / "results.md", results_table(results) + "\n")
    if any(result["accuracy"] and kind_and_rate(result) is not None for result in results):
        save_figure(plot_accuracy_vs_noise(results), output_dir / "accuracy_vs_noise.png")
    if any(result["history"] for result in results):
        save_figure(plot_runs(results), output_dir / "training_curves.png")
