"""Label errors: cleanlab reads the given labels and the probabilities of a cross-validation, see `folds`."""

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from hf_common.environment import hardware, versions
from hf_common.files import replace_text, save_figure, write_json
from hf_common.plugins import plugins_field
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS, HeldFolder
from hf_common.tables import markdown_table

from .. import LIBRARIES
from ..data.features import image_encoder, image_features
from ..data.labelled import LabelledSplits
from ..data.load import ImageSplits
from ..noise.bounds import OK
from ..noise.summary import estimate_in_words, noise_summary
from ..reports.contact_sheet import sheet_of_suspects
from ..reports.matrix_plot import plot_transition_matrices
from .arguments import DataArguments, ExperimentArguments, ModelArguments
from .findings import CLEANED, found_rows, rows_csv, save_cleaned_samples, suspects
from .folds import check_fold_arguments, claim_folds, cross_validate, folds_settings, write_probabilities
from .frozen import linear_probabilities
from .prepare import load_splits, noisy_train

MOST_PICTURES = 24  # of the contact sheet


def find_label_errors(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    num_folds: int = 5,
    *,
    features: str | None = None,
    save_cleaned: str | None = None,
    cleaned: str = "drop",
) -> dict:
    """Find the training samples whose labels look wrong and return what it writes to `results.json`.

    Writes `labels.npy` and `pred_probs.npy`, as [`out_of_fold_probabilities`] does; `label_errors.csv` and
    `label_errors.json`, the most suspicious label first, in the order and number that
    `cleanlab.filter.find_label_issues(labels, pred_probs, return_indices_ranked_by="self_confidence")` gives;
    `label_errors.png`, of images, the worst of them; `noise.png`, the transition matrix; and `results.json` with the
    number found, intervals for the share of wrong labels and each entry of the transition matrix (see `bounds.py`),
    both by confident learning besides (see `estimate.py`; `transition_matrix="<folder>/results.json"` takes it), and
    where the clean labels are known the true ones, precision and recall of what was found, and the accuracy of the
    out-of-fold predictions. No test split is needed.

    Args:
        data, model, args, num_folds: as for [`out_of_fold_probabilities`].
        features: instead of training networks, an encoder (see [`image_encoder`]) whose features a linear classifier
            reads: minutes in place of hours. `model`, and of `args` all that trains, play no part.
        save_cleaned: a new folder for the training images without those that were found, as a data set.
        cleaned: `"drop"` them, or `"relabel"` them with what was suggested.

    Raises:
        ImportError: cleanlab is missing.
        ValueError: as [`out_of_fold_probabilities`], and `save_cleaned` is there already.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise ImportError("finding label errors needs cleanlab: pip install 'cleanlab>=2.9'") from error
    if cleaned not in CLEANED:
        raise ValueError(f"cleaned must be one of {', '.join(CLEANED)}; got {cleaned!r:.80}")
    if save_cleaned is not None and Path(save_cleaned).exists():
        raise ValueError(f"save_cleaned must be a new folder; {save_cleaned!r:.120} is there")

    if features is not None and data.text_column_name is not None:
        raise ValueError(f"features={features!r:.120} are of images; texts are judged by networks, without it")

    def report(splits: LabelledSplits, probabilities: np.ndarray) -> dict:
        # One job: it would fork this process, whose threads of torch (and CUDA) do not survive that.
        issues = find_label_issues(
            splits.train.labels.numpy(), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        if save_cleaned is not None:
            save_cleaned_samples(splits, probabilities, issues, Path(save_cleaned), cleaned)
        settings = folds_settings(data, model, args, num_folds) | ({"features": features} if features else {})
        return _write_findings(Path(args.output_dir), settings, splits, probabilities, issues, args.device)

    with HeldFolder(args.output_dir, args.process_index, args.world_size) as held:
        if features is None:
            found = cross_validate(data, model, args, num_folds, held.take)
        else:
            found = _judge_features(data, model, args, num_folds, features, held.take)
        return from_first_process(lambda: report(*found), args.process_index, args.world_size)


def _write_findings(
    output_dir: Path,
    settings: dict,
    splits: LabelledSplits,
    probabilities: np.ndarray,
    issues: np.ndarray,
    device: torch.device,
) -> dict:
    """Write what was found, `results.json` at the end."""
    rows = found_rows(splits, probabilities, issues)
    replace_text(output_dir / "label_errors.csv", rows_csv(rows))
    write_json(output_dir / "label_errors.json", rows)
    if rows and isinstance(splits, ImageSplits):
        save_figure(sheet_of_suspects(suspects(splits, rows[:MOST_PICTURES])), output_dir / "label_errors.png")
    results = {
        "settings": settings,
        **_findings(splits, probabilities, issues),
        "hardware": hardware(device),
        "versions": versions(LIBRARIES) | {"cleanlab": version("cleanlab")},
        **plugins_field(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    save_figure(plot_transition_matrices(results), output_dir / "noise.png")
    write_json(output_dir / RESULTS, results)
    return results


def _judge_features(
    data: DataArguments,
    model: ModelArguments,
    args: ExperimentArguments,
    num_folds: int,
    features: str,
    take: Callable,
) -> tuple[LabelledSplits, np.ndarray]:
    """The images, and their probabilities by a linear classifier on features, on every process."""
    check_fold_arguments(data, args, num_folds)
    settings = folds_settings(data, model, args, num_folds) | {"features": features}
    process = args.process_index, args.world_size
    from_first_process(lambda: claim_folds(Path(args.output_dir), settings), *process)
    encode = image_encoder(features, args.device, model.trust_remote_code)
    splits = load_splits(data, test=False)
    splits = replace(splits, train=noisy_train(data, splits))
    take()

    def judge() -> np.ndarray:
        given = splits.train.labels.numpy()
        assert isinstance(splits, ImageSplits)
        found = linear_probabilities(image_features(splits.train, encode), given, num_folds, args.seed)
        probabilities = np.zeros((len(given), len(splits.label_names)))
        probabilities[:, : found.shape[1]] = found
        write_json(Path(args.output_dir) / SETTINGS, settings)
        write_probabilities(Path(args.output_dir), given, probabilities)
        return probabilities

    return splits, from_first_process(judge, *process)


def label_errors_table(results: dict) -> str:
    """What [`find_label_errors`] returned, as a Markdown table of one row; what is unknown is a dash."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f}"

    found, noise = results["label_errors"], results["noise"]
    columns = {
        _samples(results): results["train_images"],
        "label errors found": found["found"],
        "known": "-" if found["known"] is None else found["known"],
        "precision": percent(found["precision"]),
        "recall": percent(found["recall"]),
        "AUC": percent(found["auc"]),
        "wrong labels, 95 % interval": estimate_in_words(noise),
        "by confident learning": percent(noise["estimated_rate"]),
        "true": percent(noise["rate"]),
        "out-of-fold accuracy": percent(results["accuracy"]["clean"]),
    }
    return f"Shares in percent.\n\n{markdown_table(list(columns), [[str(value) for value in columns.values()]])}"


def _samples(results: dict) -> str:
    return "texts" if results["settings"].get("text_column_name") else "images"


def cleaned_in_words(results: dict, folder: Path, how: str) -> str:
    """What became of the cleaned data set in `folder`, with a warning where nothing can be told of the noise."""
    found, total = results["label_errors"]["found"], results["train_images"]
    what = _samples(results)
    kept = f"{total - found} of {total} {what} kept, {found} dropped"
    counts = kept if how == "drop" else f"{total} {what}, {found} of them relabelled"
    line = f"cleaned data set: {folder} ({counts})"
    if results["noise"]["estimate"]["verdict"] != OK:
        line += (
            f"\nwarning: {estimate_in_words(results['noise'])}. Of what was found, much may be labelled rightly: look "
            "at label_errors.csv before you train on the cleaned data set"
        )
    return line


def _findings(splits: LabelledSplits, probabilities: np.ndarray, issues: np.ndarray) -> dict:
    """What `results.json` says of `issues`, (n,) indices of labels that look wrong, and of the probabilities."""
    train = splits.train
    given, clean = train.given_and_clean()
    predicted = probabilities.argmax(axis=1)
    known, right, clean_accuracy, auc = None, 0, None, None
    if clean is not None:
        flipped = given != clean
        known, right = int(flipped.sum()), int(flipped[issues].sum())
        clean_accuracy = float(np.mean(predicted == clean))
        if 0 < known < len(given):
            from sklearn.metrics import roc_auc_score  # half a second to import

            auc = float(roc_auc_score(flipped, -probabilities[np.arange(len(given)), given]))
    return {
        "train_images": len(train),
        "label_errors": {
            "found": len(issues),
            "known": known,
            "precision": right / len(issues) if known is not None and len(issues) else None,
            "recall": right / known if known else None,
            "auc": auc,  # that a wrong label has less of its own probability than a right one
        },
        "noise": noise_summary(probabilities, given, clean, held_out=True),
        "accuracy": {"clean": clean_accuracy, "given": float(np.mean(predicted == given))},
        "label_names": splits.label_names,
    }
