"""Label errors: cleanlab reads the given labels and the probabilities of a cross-validation, see `folds`."""

import csv
import io
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hf_common.environment import hardware, versions
from hf_common.files import replace_text, write_json
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, HeldFolder
from hf_common.tables import markdown_table

from .. import LIBRARIES
from ..data.load import ImageSplits
from ..noise.estimate import noise_summary
from .arguments import DataArguments, ExperimentArguments, ModelArguments
from .folds import cross_validate, folds_settings


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

    def report(splits: ImageSplits, probabilities: np.ndarray) -> dict:
        # One job: it would fork this process, whose threads of torch (and CUDA) do not survive that.
        issues = find_label_issues(
            splits.train.labels.numpy(), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
        results = {
            "settings": folds_settings(data, model, args, num_folds),
            **_findings(splits, probabilities, issues),
            "hardware": hardware(args.device),
            "versions": versions(LIBRARIES) | {"cleanlab": version("cleanlab")},
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        output_dir = Path(args.output_dir)
        replace_text(output_dir / "label_errors.csv", _label_errors_csv(splits, probabilities, issues))
        write_json(output_dir / RESULTS, results)
        return results

    with HeldFolder(args.output_dir, args.process_index, args.world_size) as held:
        found = cross_validate(data, model, args, num_folds, held.take)
        return from_first_process(lambda: report(*found), args.process_index, args.world_size)


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
    return f"Shares in percent.\n\n{markdown_table(list(columns), [[str(value) for value in columns.values()]])}"


def _findings(splits: ImageSplits, probabilities: np.ndarray, issues: np.ndarray) -> dict:
    """What `results.json` says of `issues`, (n,) indices of labels that look wrong, and of the probabilities."""
    train = splits.train
    given, clean = train.given_and_clean()
    predicted = probabilities.argmax(axis=1)
    known, right, clean_accuracy = None, 0, None
    if clean is not None:
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
        "noise": noise_summary(probabilities, given, clean),
        "accuracy": {"clean": clean_accuracy, "given": float(np.mean(predicted == given))},
        "label_names": splits.label_names,
    }


def _label_errors_csv(splits: ImageSplits, probabilities: np.ndarray, issues: np.ndarray) -> str:
    """One line an issue; `is_flipped` is there where the clean labels are known."""
    train, names = splits.train, splits.label_names
    given, clean = train.given_and_clean()
    columns = {
        "index": issues.tolist(),
        "given_label": [names[label] for label in given[issues]],
        "suggested_label": [names[label] for label in probabilities[issues].argmax(axis=1)],
        "self_confidence": probabilities[issues, given[issues]].tolist(),
    }
    if clean is not None:
        flipped = given != clean
        columns["is_flipped"] = ["true" if wrong else "false" for wrong in flipped[issues]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()
