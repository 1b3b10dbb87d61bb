"""Someone's own sentences by commands alone: wrong labels are found, a classifier is trained, and loaded."""

import json

import numpy as np
import pytest
from transformers import pipeline

from tests import ROOT
from tests.hf_robust.texts import TOPICS, save_bert, sentences, with_wrong, write_csv
from tests.processes import run_process

COUNT = 400

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of sentences with string labels, 30 % of them wrong and nothing that says which; a model with words."""
    folder = tmp_path_factory.mktemp("job")
    texts, topics = sentences(COUNT)
    write_csv(folder / "sentences.csv", {"sentence": texts, "topic": with_wrong(topics, 0.3)})
    save_bert(folder / "bert", texts)
    return folder


def run(folder, script, *flags):
    common = [
        "--dataset", "sentences.csv", "--text_column_name", "sentence", "--label_column_name", "topic",
        "--model", "bert", "--loss", "gce", "--optim", "adamw_torch", "--learning_rate", "1e-3",
        "--num_train_epochs", "15", "--per_device_train_batch_size", "32", "--report_to", "none", "--use_cpu",
    ]  # fmt: skip
    done = run_process(ROOT / "scripts" / script, *common, *flags, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_wrong_labels_are_found(folder):
    from cleanlab.filter import find_label_issues

    done = run(folder, "find_label_errors.py", "--num_folds", "5", "--output_dir", "found")
    assert "label_errors.csv and .json, labels" in done.stdout
    texts, topics = sentences(COUNT)
    wrong = [given != topic for given, topic in zip(with_wrong(topics, 0.3), topics, strict=True)]
    rows = json.loads((folder / "found/label_errors.json").read_text())
    right = [wrong[row["index"]] for row in rows]
    assert np.mean(right) >= 0.6  # twice the share of wrong labels
    assert sum(right) / sum(wrong) > 0.5
    assert all(row["text"] == texts[row["index"]] and row["given_label"] in TOPICS for row in rows)
    given, probabilities = (np.load(folder / f"found/{name}.npy") for name in ("labels", "pred_probs"))
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    assert [row["index"] for row in rows] == ranked.tolist()


def test_a_classifier_is_trained_and_loaded(folder):
    run(folder, "train_robust.py", "--validation_split", "0.2", "--output_dir", "trained")
    results = json.loads((folder / "trained/results.json").read_text())
    assert results["noise"]["test_labels"] == "given"
    assert results["train_images"] + results["test_images"] == COUNT
    classify = pipeline("text-classification", model=str(folder / "trained"))
    texts, topics = sentences(200, seed=9)  # of which no label was ever wrong
    assert np.mean([found["label"] == topic for found, topic in zip(classify(texts), topics, strict=True)]) > 0.75
