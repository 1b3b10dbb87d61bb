"""One experiment from arguments to `results.json`: data, noise, model, training, what was learned and memorised."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerState

from hf_common.environment import hardware, versions
from hf_common.files import readable, save_figure, write_json
from hf_common.plugins import plugins_field
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS, HeldFolder

from .. import LIBRARIES
from ..data.labelled import LabelledSamples, LabelledSplits
from ..data.load_stream import StreamedSplits
from ..noise.labels import realised_matrix, realised_rate
from ..noise.summary import noise_summary
from ..reports.card import FIGURES
from ..reports.results import GIVEN, accuracy_summary, epoch_history, last_row
from ..training.checkpoints import load_loss_state, train_until_stopped
from ..training.diagnostics import MemorisationCallback, ThroughputCallback, first_array
from ..training.push import check_hub_repo
from ..training.trainer import RobustTrainer
from .arguments import (
    DataArguments,
    ExperimentArguments,
    ModelArguments,
    check_arguments,
    run_settings,
    with_trained_loss,
)
from .folder import claim_output_dir, finished_results
from .prepare import check_last_batch, load_splits, make_trainer, noisy_train
from .publish import draw_figures, push_run

MOST_JUDGED = 50_000  # training images that are predicted to see what is memorised: all of CIFAR-10's


def run_experiment(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    splits: LabelledSplits | StreamedSplits | None = None,
) -> dict:
    """Run one experiment in `args.output_dir` and return what it writes to `results.json`.

    Writes `settings.json` and `results.json`, and if it trains the model (safetensors), its image processor or
    tokenizer, checkpoints, and if it evaluates the figures `curves.png`, `noise.png` and, where wrong labels are
    known, `loss_histograms.png`. Where several processes run, each calls this; the first one decides and writes.

    With `args.push_to_hub` the run is uploaded at the end, see [`push_run`]; what would make that fail is said before
    anything else. A run that is finished already is then uploaded as it is, so that a failed upload is made good by
    the same call.

    Args:
        splits (*optional*): what `load_splits(data)` gives, for callers that run several experiments.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run, a finished one, or other files, or that
            another process writes into; nothing is overwritten.
        Stopped: a signal came while it trained (see `hf_common.signals`); a checkpoint holds its state.
        PermissionError, ConnectionError: `args.push_to_hub`, and the token may not, or the Hub can't be reached.
    """
    args = with_trained_loss(model, args)
    check_arguments(data, model, args)
    with HeldFolder(args.output_dir, args.process_index, args.world_size) as held:
        results = _finished_before(data, model, args)
        if results is None:
            claim_run(data, model, args)  # a refusal comes before the images are read, and leaves no file
            # Of a stream that is not scored, no test split is asked for.
            test = args.do_eval or not data.streaming
            splits = load_splits(data, train=args.do_train, test=test) if splits is None else splits
            if isinstance(splits, LabelledSplits):
                splits = replace(splits, train=noisy_train(data, splits))
            held.take()
            results = run_claimed(data, model, args, splits)
        if args.push_to_hub and args.process_index == 0:
            push_run(args)
    return results


def _finished_before(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> dict | None:
    """The results of a run that is only to be pushed, if it is."""
    if not args.push_to_hub:
        return None
    processes = args.process_index, args.world_size
    from_first_process(lambda: check_hub_repo(args), *processes)
    settings = run_settings(data, model, args)
    return from_first_process(lambda: finished_results(Path(args.output_dir), settings), *processes)


def claim_run(data: DataArguments, model: ModelArguments, args: ExperimentArguments) -> str | None:
    """[`claim_output_dir`] for this run, by the first process for all."""
    settings, resume = run_settings(data, model, args), args.resume_from_checkpoint
    return from_first_process(
        lambda: claim_output_dir(Path(args.output_dir), settings, resume), args.process_index, args.world_size
    )


def run_claimed(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    splits: LabelledSplits | StreamedSplits,
    begin: Callable[[], None] | None = None,
) -> dict:
    """Train, evaluate, summarise and write, for callers that hold the folder's lock.

    Args:
        splits: `train` has its noise.
        begin: writes the `settings.json`, and what belongs with it; called when all that may be refused was looked at.
    """
    output_dir, settings = Path(args.output_dir), run_settings(data, model, args)
    train = (
        splits.train if isinstance(splits, LabelledSplits) else None
    )  # of a stream, nothing is looked at afterwards
    checkpoint = claim_run(data, model, args)
    if checkpoint is None and args.resume_from_checkpoint is not None and args.process_index == 0:
        print(f"{output_dir} has no complete checkpoint yet: starting at step 0")
    state = None if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    # Trainer would make one step more where the last checkpoint was written at the very end.
    trained = state is not None and _at_end(state, args)
    skipped = 0 if state is None else state.global_step * args.gradient_accumulation_steps
    trainer = make_trainer(data, model, args, splits, weights=checkpoint if trained else None, skipped=skipped)
    if args.do_train and train is not None:
        check_last_batch(trainer.model, len(train), args)
    begin = begin or (lambda: write_json(output_dir / SETTINGS, settings))
    from_first_process(begin, args.process_index, args.world_size)

    if args.do_train and train is not None:
        shown: Any = trainer.train_dataset
        train = shown.still()
    looked_at = train
    if train is not None and len(train) > MOST_JUDGED:
        looked_at = train.subset(evenly_spaced(len(train), MOST_JUDGED))
    throughput, memorised = _watch(trainer, train, looked_at)
    if args.do_train:
        if state is not None and checkpoint is not None and trained:
            trainer.state = state
            load_loss_state(trainer.loss, checkpoint)
        else:
            train_until_stopped(trainer, checkpoint)
        trainer.save_model(_internal_call=True)  # else it is pushed, without its results
        readable(output_dir.glob("*.safetensors"))
    evaluated = {entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry}
    if args.do_eval and trainer.state.global_step not in evaluated:
        trainer.evaluate()
    noise: dict[str, Any] = {"rate": None}
    if args.do_train and train is not None and looked_at is not None:
        noise = _noise(trainer, train, looked_at, memorised, len(splits.test))
    if splits.test.clean_labels is None and data.noise is None:
        noise |= {"test_labels": GIVEN}
    results = _summarise(trainer, settings, splits, noise, throughput)
    if args.process_index == 0:
        for name, figure in draw_figures([results]).items():
            save_figure(figure, output_dir / FIGURES[name])
        write_json(output_dir / RESULTS, results)  # last: its presence says that the run is finished
    trainer.accelerator.wait_for_everyone()
    return results


def _at_end(state: TrainerState, args: ExperimentArguments) -> bool:
    """Whether a state is that of a training that made all steps that are asked for."""
    if args.max_steps > 0:
        return state.global_step >= args.max_steps
    return state.global_step >= state.max_steps and (state.epoch or 0) >= args.num_train_epochs


def evenly_spaced(size: int, count: int) -> np.ndarray:
    """`count` places of 0..size-1, int64."""
    return np.linspace(0, size - 1, count).round().astype(np.int64)


def _watch(
    trainer: RobustTrainer, train: LabelledSamples | None, looked_at: LabelledSamples | None
) -> tuple[ThroughputCallback, MemorisationCallback | None]:
    """What looks on while it trains; what is memorised can be told where the clean labels are known."""
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    size = batch if train is None else len(train)  # a stream has as many in each step
    throughput = ThroughputCallback(size, -(-size // batch))
    memorised = None
    if looked_at is not None and looked_at.clean_labels is not None:
        memorised = MemorisationCallback(trainer, looked_at)
    if args.do_train:
        for callback in (throughput, memorised):
            if callback is not None:
                trainer.add_callback(callback)
    return throughput, memorised


def _noise(
    trainer: RobustTrainer,
    train: LabelledSamples,
    looked_at: LabelledSamples,
    memorised: MemorisationCallback | None,
    held_out: int,
) -> dict:
    logits = None if memorised is None else memorised.logits
    if logits is None:  # unknown clean labels, or a run that was resumed at its very end
        logits = first_array(trainer.predict(looked_at, metric_key_prefix="train").predictions)
    probabilities = trainer.loss.probabilities(torch.as_tensor(logits).double()).numpy()
    scores = accuracy_summary(epoch_history(trainer.state.log_history))
    given, clean = looked_at.given_and_clean()
    noise = noise_summary(
        probabilities,
        given,
        clean,
        held_out=False,
        held_out_accuracy=scores.get("last"),
        held_out_images=held_out,
    )
    given, clean = train.given_and_clean()
    if clean is not None:  # of all images
        matrix = realised_matrix(clean, given, probabilities.shape[1]).tolist()
        noise |= {"rate": realised_rate(clean, given), "matrix": matrix}
    return noise


def _count(splits: LabelledSplits | StreamedSplits) -> int | None:
    return len(splits.train) if isinstance(splits, LabelledSplits) else None  # no one counts a stream


def _summarise(
    trainer: RobustTrainer,
    settings: dict,
    splits: LabelledSplits | StreamedSplits,
    noise: dict,
    throughput: ThroughputCallback,
) -> dict:
    """What `results.json` says."""
    history = epoch_history(trainer.state.log_history)
    return {
        "settings": settings,
        "accuracy": accuracy_summary(history),
        "noise": noise,
        "memorisation": {key: value for key, value in last_row(history).items() if key.startswith("train_")},
        "history": history,
        "images_per_second": throughput.images_per_second,  # of this call; None if it trained nothing
        "train_images": _count(splits) if trainer.args.do_train else 0,
        "test_images": len(splits.test),
        "label_names": splits.label_names,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "remote_code": trainer.model.is_remote_code(),
        "hardware": hardware(trainer.args.device),
        "versions": versions(LIBRARIES),
        **plugins_field(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
