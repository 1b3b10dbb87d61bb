"""Label errors by cross-validation: each training image is judged by a network that has not seen it.

The training images are split into folds; for each, a network is trained on the others' noisy labels, as by
`run_experiment`, and gives the class probabilities of the images held out. cleanlab reads labels and probabilities.
"""

import copy
import csv
import io
import json
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from sklearn.model_selection import StratifiedKFold
from tqdm.auto import tqdm
from transformers import set_seed

from hf_common.environment import hardware, versions
from hf_common.files import replace_bytes, replace_text, write_json
from hf_common.processes import from_first_process
from hf_common.run_folder import settings_difference

from .. import LIBRARIES
from ..data.load import ImageSplits
from ..data.memory import ImageTensorDataset
from ..training.diagnostics import first_array
from ..training.trainer import RobustTrainer
from .run import (
    AUGMENTATIONS,
    DataArguments,
    ExperimentArguments,
    ModelArguments,
    check_arguments,
    check_last_batch,
    claim_output_dir,
    image_transform,
    load_network,
    load_processor,
    load_splits,
    make_loss,
    noise_summary,
    noisy_train,
    run_settings,
)


def find_label_errors(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, num_folds: int = 5
) -> dict:
    """Find the training images whose labels look wrong and return what it writes to `results.json`.

    Beside what [`out_of_fold_probabilities`] writes to `args.output_dir`: `label_errors.csv`, the most suspicious
    label first, in the order and number that `cleanlab.filter.find_label_issues(labels, pred_probs,
    return_indices_ranked_by="self_confidence")` gives; and `results.json` with the number found, the estimated noise
    rate and transition matrix (see `estimate.py`; `transition_matrix="<folder>/results.json"` takes it), and where
    the clean labels are known the true ones, precision and recall of what was found, and the accuracy of the
    out-of-fold predictions.

    Arguments and errors are those of [`out_of_fold_probabilities`]. Raises `ImportError` where cleanlab is missing,
    before anything else.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise ImportError("finding label errors needs cleanlab: pip install 'cleanlab>=2.9'") from error
    splits, probabilities = out_of_fold_probabilities(data, model, args, num_folds)

    def report() -> dict:
        # One job: it would fork this process, whose threads of torch (and CUDA) do not survive that.
        issues = find_label_issues(
            splits.train.labels.numpy(), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        results = {
            "settings": _settings(data, model, args, num_folds),
            **_summary(splits, probabilities, issues),
            "hardware": hardware(args.device),
            "versions": versions(LIBRARIES) | {"cleanlab": version("cleanlab")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        output_dir = Path(args.output_dir)
        replace_text(output_dir / "label_errors.csv", _label_errors_csv(splits, probabilities, issues))
        write_json(output_dir / "results.json", results)
        return results

    return from_first_process(report, args.process_index, args.world_size)


def out_of_fold_probabilities(
    data: DataArguments, model: ModelArguments, args: ExperimentArguments, num_folds: int = 5
) -> tuple[ImageSplits, np.ndarray]:
    """Class probabilities of every training image, by a network trained on the folds that it is not in.

    Writes `labels.npy` ((N,) int64, the given labels), `pred_probs.npy` ((N, K) float64) and `settings.json` to
    `args.output_dir`, and each finished fold to `fold-<i>.safetensors`. Called again, it trains the folds that are
    missing; one that was killed starts anew. Where several processes run, each calls this; the first one decides and
    writes.

    Args:
        data, model, args: as for [`~hf_robust.experiment.run_experiment`], without a resume. What `args` say of
            evaluating and saving a network plays no part: the test images are not looked at, no network is kept.
        num_folds (`int`, defaults to 5): at least 2. Folds have the same share of each given label, drawn with
            `args.seed`, which is also the seed of each network.

    Returns:
        `tuple`: the images, with `splits.train.labels` the given labels of the N training images, and their
        probabilities (N, K) float64 (float32 would make ties of those next to 1), the same on every process.

    Raises:
        ValueError: bad arguments, or an output folder that holds another run or other files; nothing is overwritten.
    """
    _check_arguments(args, num_folds)
    check_arguments(data, model, args)
    output_dir = Path(args.output_dir)
    settings = _settings(data, model, args, num_folds)
    from_first_process(lambda: _claim(output_dir, settings), args.process_index, args.world_size)

    splits = load_splits(replace(data, max_test_samples=1))
    train = noisy_train(data, splits)
    splits = replace(splits, train=train)
    given, num_classes = train.labels.numpy(), len(splits.label_names)
    folds = assign_folds(given, num_folds, args.seed)
    held_out = [np.flatnonzero(folds == fold) for fold in range(num_folds)]
    files = [output_dir / f"fold-{fold}.safetensors" for fold in range(num_folds)]
    parts = from_first_process(
        lambda: [_read_fold(*fold, given, num_classes) for fold in zip(files, held_out, strict=True)],
        args.process_index,
        args.world_size,
    )
    probabilities = np.empty((len(train), num_classes))
    for fold in tqdm(range(num_folds), desc="folds", disable=args.process_index != 0):
        if parts[fold] is None:
            trainer = _fold_trainer(splits, folds != fold, data, model, args)
            for index in held_out:  # of all folds, whose sizes may differ by one, before the first is trained
                check_last_batch(trainer.model, len(train) - len(index), args)
            if args.process_index == 0:
                write_json(output_dir / "settings.json", settings)
            trainer.train()
            parts[fold] = _predict(trainer, _subset(train, folds == fold))
            if args.process_index == 0:
                content = {"index": held_out[fold], "given": given[held_out[fold]], "probabilities": parts[fold]}
                replace_bytes(files[fold], save(content))
        probabilities[held_out[fold]] = parts[fold]
    if args.process_index == 0:
        for name, array in (("labels.npy", given), ("pred_probs.npy", probabilities)):
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            replace_bytes(output_dir / name, content.getvalue())
    return splits, probabilities


def assign_folds(given: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold of each image, (N,) int64 in 0..num_folds-1, every fold with the same share of each given label.

    Args:
        given (`np.ndarray`): (N,) int64, labels of two classes or more.
        num_folds (`int`): from 2 to the number of labels of the most frequent class. A class with fewer labels is
            missing in some folds, which scikit-learn warns of.
        seed (`int`): of the shuffle.
    """
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


def label_errors_table(results: dict) -> str:
    """What [`find_label_errors`] returned, as a Markdown table of one row; what is unknown is a dash."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    found, noise = results["label_errors"], results["noise"]
    columns = {
        "images": results["train_images"],
        "label errors found": found["found"],
        "known": "-" if found["known"] is None else found["known"],
        "precision": percent(found["precision"]),
        "recall": percent(found["recall"]),
        "noise rate, estimated (true)": f"{percent(noise['estimated_rate'])} ({percent(noise['rate'])})",
        "out-of-fold accuracy": percent(results["accuracy"]["clean"]),
    }
    rows = (columns, ["---"] * len(columns), map(str, columns.values()))
    return "Shares in percent.\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _settings(data: DataArguments, model: ModelArguments, args: ExperimentArguments, num_folds: int) -> dict:
    return run_settings(data, model, args) | {"num_folds": num_folds}


def _check_arguments(args: ExperimentArguments, num_folds: int) -> None:
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2; got {num_folds}")
    for name, allowed, why in (
        ("do_train", True, "a network is trained for each fold"),
        ("resume_from_checkpoint", None, "finished folds are skipped without it: run the same command again"),
        ("push_to_hub", False, "no network is kept"),
    ):
        if getattr(args, name) != allowed:
            raise ValueError(f"{name} must be {allowed}: {why}; got {getattr(args, name)!r}")


def _claim(output_dir: Path, settings: dict) -> None:
    """A `ValueError` unless the folder is new, empty, or of this very run, finished or not."""
    path = output_dir / "settings.json"
    if not path.exists():
        claim_output_dir(output_dir, settings)
        return
    difference = settings_difference(settings, json.loads(path.read_text()))
    if difference:
        raise ValueError(f"output_dir {str(output_dir)!r} holds another run: {difference}; choose another")


def _read_fold(path: Path, held_out: np.ndarray, given: np.ndarray, num_classes: int) -> np.ndarray | None:
    """(n, K) float64 probabilities of the held-out images; None if they have not been written yet."""
    if not path.exists():
        return None
    content = load_file(path)
    expected = {"index": held_out, "given": given[held_out]}
    same = all(np.array_equal(content[name], array) for name, array in expected.items())
    if not same or content["probabilities"].shape != (len(held_out), num_classes):
        raise ValueError(
            f"{str(path)!r} is of other images or labels: the data set has changed; choose another folder"
        )
    return content["probabilities"]


def _fold_trainer(
    splits: ImageSplits, kept: np.ndarray, data: DataArguments, model: ModelArguments, args: ExperimentArguments
) -> RobustTrainer:
    """A trainer on the training images where `kept`, (N,) bool, that neither evaluates nor saves."""
    args = copy.copy(args)  # `replace` would run TrainingArguments' set-up of devices and defaults twice
    args.eval_strategy = args.save_strategy = "no"
    train = _subset(splits.train, kept)
    set_seed(args.seed)  # the initial weights' seed
    network = load_network(model, splits, do_train=True)
    processor = load_processor(model, train)
    return RobustTrainer(
        model=network,
        args=args,
        train_dataset=train,
        processing_class=processor,
        image_transform=image_transform(processor, seed=args.seed, **AUGMENTATIONS[data.augmentation]),
        loss=make_loss(args, network, train),
    )


def _predict(trainer: RobustTrainer, images: ImageTensorDataset) -> np.ndarray:
    """Class probabilities, (n, K) float64."""
    logits = first_array(trainer.predict(images).predictions)
    return torch.as_tensor(logits).double().softmax(dim=-1).numpy()


def _subset(images: ImageTensorDataset, kept: np.ndarray) -> ImageTensorDataset:
    kept = torch.from_numpy(kept)
    # The clean labels are those of `--transition_matrix true`.
    clean = None if images.clean_labels is None else images.clean_labels[kept]
    return ImageTensorDataset(images.images[kept], images.labels[kept], clean)


def _summary(splits: ImageSplits, probabilities: np.ndarray, issues: np.ndarray) -> dict:
    """What `results.json` says of `issues`, (n,) indices of labels that look wrong, and of the probabilities."""
    train = splits.train
    given, predicted = train.labels.numpy(), probabilities.argmax(axis=1)
    known = right = clean_accuracy = None
    if train.clean_labels is not None:
        clean = train.clean_labels.numpy()
        flipped = given != clean
        known, right = int(flipped.sum()), int(flipped[issues].sum())
        clean_accuracy = float(np.mean(predicted == clean))
    return {
        "train_images": len(train),
        "label_errors": {
            "found": len(issues),
            "known": known,
            "precision": right / len(issues) if known is not None and len(issues) else None,
            "recall": right / known if known else None,
        },
        "noise": noise_summary(train, probabilities),
        "accuracy": {"clean": clean_accuracy, "given": float(np.mean(predicted == given))},
        "label_names": splits.label_names,
    }


def _label_errors_csv(splits: ImageSplits, probabilities: np.ndarray, issues: np.ndarray) -> str:
    """One line an issue; `is_flipped` is there where the clean labels are known."""
    train, names = splits.train, splits.label_names
    given = train.labels.numpy()
    columns = {
        "index": issues.tolist(),
        "given_label": [names[label] for label in given[issues]],
        "suggested_label": [names[label] for label in probabilities[issues].argmax(axis=1)],
        "self_confidence": probabilities[issues, given[issues]].tolist(),
    }
    if train.clean_labels is not None:
        flipped = given != train.clean_labels.numpy()
        columns["is_flipped"] = ["true" if wrong else "false" for wrong in flipped[issues]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()
