"""Cross-validation on noisy labels: each training sample is judged by a network that has not seen it."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from tqdm.auto import tqdm

from hf_common.files import replace_bytes, write_json
from hf_common.foreign import read_tensors
from hf_common.processes import from_first_process
from hf_common.run_folder import SETTINGS, HeldFolder, check_same_run

from ..data.labelled import LabelledSplits
from ..training.diagnostics import first_array
from .arguments import DataArguments, ExperimentArguments, ModelArguments, check_arguments, run_settings
from .folder import claim_output_dir
from .images import as_evaluated
from .prepare import check_last_batch, load_splits, make_trainer, noisy_train


def out_of_fold_probabilities(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, num_folds: int = 5
) -> tuple[LabelledSplits, np.ndarray]:
    """Class probabilities of every training image, by a network trained on the folds that it is not in.

    Writes `labels.npy` ((N,) int64, the given labels), `pred_probs.npy` ((N, K) float64) and `settings.json` to
    `args.output_dir`, and each finished fold to `fold-<i>.safetensors`. Called again, it trains the folds that are
    missing; one that was killed starts anew. Where several processes run, each calls this; the first one decides and
    writes.

    Args:
        data, model, args: as for [`~hf_robust.studies.run.run_experiment`], without a resume. What `args` say of
            evaluating and saving a network plays no part: the test images are not looked at, no network is kept.
        num_folds (`int`, defaults to 5): at least 2. Folds have the same share of each given label, drawn with
            `args.seed`, which is also the seed of each network.

    Returns:
        `tuple`: the images, with `splits.train.labels` the given labels of the N training images, and their
        probabilities (N, K) float64 (float32 would make ties of those next to 1), the same on every process.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run or other files, or that another process
            writes into; nothing is overwritten.
    """
    with HeldFolder(args.output_dir, args.process_index, args.world_size) as held:
        return cross_validate(data, model, args, num_folds, held.take)


def cross_validate(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    num_folds: int,
    take: Callable[[], None],
) -> tuple[LabelledSplits, np.ndarray]:
    """[`out_of_fold_probabilities`] for callers that hold the lock of the folder themselves, from `take()` on."""
    check_fold_arguments(data, args, num_folds)
    check_arguments(data, model, args)
    output_dir = Path(args.output_dir)
    settings = folds_settings(data, model, args, num_folds)
    from_first_process(lambda: claim_folds(output_dir, settings), args.process_index, args.world_size)

    splits = load_splits(data, test=False)
    splits = replace(splits, train=noisy_train(data, splits))
    given = splits.train.labels.numpy()
    folds = assign_folds(given, num_folds, args.seed)
    parts = from_first_process(
        lambda: [
            _read_fold(output_dir, fold, np.flatnonzero(folds == fold), given, len(splits.label_names))
            for fold in range(num_folds)
        ],
        args.process_index,
        args.world_size,
    )
    take()
    probabilities = np.empty((len(given), len(splits.label_names)))
    for fold in tqdm(range(num_folds), desc="folds", disable=args.process_index != 0):
        if parts[fold] is None:
            parts[fold] = _train_fold(fold, folds, splits, data, model, args, settings)
        probabilities[folds == fold] = parts[fold]
    if args.process_index == 0:
        write_probabilities(output_dir, given, probabilities)
    return splits, probabilities


def write_probabilities(output_dir: Path, given: np.ndarray, probabilities: np.ndarray) -> None:
    """`labels.npy` and `pred_probs.npy`, as cleanlab reads them."""
    for name, array in (("labels.npy", given), ("pred_probs.npy", probabilities)):
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        replace_bytes(output_dir / name, content.getvalue())


def assign_folds(given: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold of each image, (N,) int64 in 0..num_folds-1, every fold with the same share of each given label.

    Args:
        given (`np.ndarray`): (N,) int64, labels of two classes or more.
        num_folds (`int`): from 2 to the number of labels of the most frequent class. A class with fewer labels is
            missing in some folds, which scikit-learn warns of.
        seed (`int`): of the shuffle.
    """
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(given)
    if np.count_nonzero(counts) < 2:
        raise ValueError(f"the training images must be labelled as two classes or more; all are of class {given[0]}")
    if num_folds > counts.max():
        raise ValueError(f"num_folds must be at most {counts.max()}, the labels of the largest class; got {num_folds}")
    folds = np.empty(len(given), np.int64)
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(given, given)):  # the images themselves play no part
        folds[held_out] = fold
    return folds


def folds_settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments, num_folds: int) -> dict:
    """Those of the runs of all folds, and their number."""
    return run_settings(data, model, args) | {"num_folds": num_folds}


def check_fold_arguments(data: DataArguments, args: ExperimentArguments, num_folds: int) -> None:
    if data.streaming:
        raise ValueError("streaming=True: each image is judged by what was learned from others; allowed: False")
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2; got {num_folds}")
    for name, allowed, why in (
        ("do_train", True, "a network is trained for each fold"),
        ("resume_from_checkpoint", None, "finished folds are skipped without it: run the same command again"),
        ("push_to_hub", False, "no network is kept"),
    ):
        if getattr(args, name) != allowed:
            raise ValueError(f"{name} must be {allowed}: {why}; got {getattr(args, name)!r}")


def claim_folds(output_dir: Path, settings: dict) -> None:
    """A `ValueError` unless the folder is new, empty, or of this very run, finished or not."""
    if (output_dir / SETTINGS).exists():
        check_same_run(output_dir, settings)
    else:
        claim_output_dir(output_dir, settings)


def _fold_file(output_dir: Path, fold: int) -> Path:
    return output_dir / f"fold-{fold}.safetensors"


def _read_fold(
    output_dir: Path, fold: int, held_out: np.ndarray, given: np.ndarray, num_classes: int
) -> np.ndarray | None:
    """(n, K) float64 probabilities of the held-out images; None if they have not been written yet, or are damaged."""
    path = _fold_file(output_dir, fold)
    if not path.exists():
        return None
    try:
        content = {name: tensor.numpy() for name, tensor in read_tensors(path)[0].items()}
    except ValueError:
        return None  # damaged: it is made again
    if set(content) != {"index", "given", "probabilities"} or not _are_probabilities(content["probabilities"]):
        return None
    expected = {"index": held_out, "given": given[held_out]}
    same = all(np.array_equal(content[name], array) for name, array in expected.items())
    if not same or content["probabilities"].shape != (len(held_out), num_classes):
        raise ValueError(
            f"{str(path)!r} is of other images or labels: the data set has changed; choose another folder"
        )
    return content["probabilities"]


def _are_probabilities(array: np.ndarray) -> bool:
    rows = array.ndim == 2 and array.dtype == np.float64 and ((array >= 0) & (array <= 1)).all()
    return bool(rows and np.allclose(array.sum(axis=1), 1, rtol=0, atol=1e-9))


def _train_fold(
    fold: int,
    folds: np.ndarray,
    splits: LabelledSplits,
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    settings: dict,
) -> np.ndarray:
    """Train on the images of the other folds and write the probabilities of this one's, (n, K) float64, to its file.

    Args:
        folds: (N,) int64, the fold of each training image.
    """
    output_dir, held_out = Path(args.output_dir), folds == fold
    trainer_args = copy.copy(args)  # `replace` would run TrainingArguments' set-up of devices and defaults twice
    trainer_args.eval_strategy = trainer_args.save_strategy = "no"
    rest = replace(splits, train=splits.train.subset(~held_out))
    trainer = make_trainer(data, model, trainer_args, rest, evaluates=False)
    for size in np.bincount(folds):  # of all folds, whose sizes may differ by one, before the first is trained
        check_last_batch(trainer.model, len(folds) - int(size), args)
    if args.process_index == 0:
        write_json(output_dir / SETTINGS, settings)
    trainer.train()
    trained_on: Any = trainer.train_dataset
    shown = as_evaluated(splits.train.subset(held_out), trained_on)
    logits = first_array(trainer.predict(shown).predictions)
    probabilities = trainer.loss.probabilities(torch.as_tensor(logits).double()).numpy()
    if args.process_index == 0:
        content = {"index": np.flatnonzero(held_out), "given": splits.train.labels.numpy()[held_out]}
        replace_bytes(_fold_file(output_dir, fold), save(content | {"probabilities": probabilities}))
    return probabilities
