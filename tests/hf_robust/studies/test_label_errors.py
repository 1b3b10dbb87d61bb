import csv
import json
import sys

import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hf_common.locks import LOCK
from hf_robust.data.load import load_image_splits
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.data.transform import ImageTransform
from hf_robust.models import load_model
from hf_robust.noise.bounds import noise_bounds
from hf_robust.noise.draw import make_noisy_labels
from hf_robust.noise.estimate import estimate_noise_rate, estimate_transition_matrix
from hf_robust.noise.labels import realised_matrix
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.folds import assign_folds, out_of_fold_probabilities
from hf_robust.studies.label_errors import cleaned_in_words, find_label_errors, label_errors_table
from hf_robust.studies.prepare import resolve_transition_matrix
from hf_robust.training.arguments import RobustTrainingArguments
from hf_robust.training.trainer import RobustTrainer
from tests import ROOT
from tests.processes import run_process

cleanlab_filter = pytest.importorskip("cleanlab.filter")

SCRIPT = ROOT / "scripts" / "find_label_errors.py"
SAMPLES, FOLDS = 150, 3
TRAINING = {"num_train_epochs": 4, "per_device_train_batch_size": 16, "use_cpu": True, "disable_tqdm": True}


def run(folder, data=None, model=None, num_folds=FOLDS, function=find_label_errors, **changes):
    return function(
        DataArguments(**({"max_train_samples": SAMPLES, "noise": "symmetric_40"} | (data or {}))),
        ModelArguments(**(model or {})),
        ExperimentArguments(output_dir=str(folder), **(TRAINING | changes)),
        num_folds,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder, seed=3)


def arrays(folder):
    return np.load(folder / "labels.npy"), np.load(folder / "pred_probs.npy")


def rows(folder):
    with (folder / "label_errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def fold_files(folder):
    return sorted(folder.glob("fold-*.safetensors"))


def clean_labels():
    return load_image_splits("digits", max_train_samples=SAMPLES).train.labels.numpy()


def test_cleanlab_reads_the_files_as_they_are(finished):
    folder, results = finished
    given, probabilities = arrays(folder)
    np.testing.assert_array_equal(given, make_noisy_labels(clean_labels(), "symmetric_40", num_classes=10, seed=0))
    assert probabilities.shape == (SAMPLES, 10) and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
    issues = cleanlab_filter.find_label_issues(
        given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    assert [int(row["index"]) for row in rows(folder)] == issues.tolist()
    assert results["label_errors"]["found"] == len(issues) > 0


def test_lines_say_what_is_given_suggested_and_true(finished):
    folder, _ = finished
    given, probabilities = arrays(folder)
    for row in rows(folder):
        index = int(row["index"])
        assert row["given_label"] == str(given[index])
        assert row["suggested_label"] == str(probabilities[index].argmax()) != row["given_label"]
        assert float(row["self_confidence"]) == probabilities[index, given[index]]
        assert row["is_flipped"] == ("true" if given[index] != clean_labels()[index] else "false")
    confidences = [float(row["self_confidence"]) for row in rows(folder)]
    assert confidences == sorted(confidences)


def separation(flipped, confidence):
    """The share of pairs of a flipped and an unflipped image whose flipped one has less confidence, ties half."""
    wrong, right = confidence[flipped][:, None], confidence[~flipped][None]
    return np.mean((wrong < right) + 0.5 * (wrong == right))


def test_results_are_those_of_the_csv_and_the_arrays(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    given, probabilities = arrays(folder)
    clean = clean_labels()
    flips = set(np.flatnonzero(given != clean).tolist())
    found = {int(row["index"]) for row in rows(folder)}
    assert 0 < len(found & flips) < len(found) and found & flips != flips  # neither share is 0 or 1
    assert results["label_errors"] == {
        "found": len(found),
        "known": len(flips),
        "precision": len(found & flips) / len(found),
        "recall": len(found & flips) / len(flips),
        "auc": pytest.approx(separation(given != clean, probabilities[np.arange(SAMPLES), given])),
    }
    assert results["noise"] == {
        "rate": len(flips) / SAMPLES,
        "matrix": realised_matrix(clean, given, 10).tolist(),
        "estimated_rate": estimate_noise_rate(probabilities, given),
        "estimated_matrix": estimate_transition_matrix(probabilities, given).tolist(),
        "estimate": noise_bounds(probabilities, given),
    }
    right = probabilities.argmax(axis=1) == clean
    assert results["accuracy"]["clean"] == pytest.approx(right.mean())
    assert results["settings"]["num_folds"] == FOLDS and results["settings"]["loss"] == "nce + rce"
    assert results["versions"]["cleanlab"] and results["train_images"] == SAMPLES


def test_each_image_is_predicted_by_a_network_trained_on_the_other_folds(finished):
    """Each fold by hand: a network trained on the images that its file does not name gives the same probabilities."""
    folder, _ = finished
    given, probabilities = arrays(folder)
    images = load_image_splits("digits", max_train_samples=SAMPLES).train.images
    held_out = [load_file(path)["index"] for path in fold_files(folder)]
    assert sorted(np.concatenate(held_out).tolist()) == list(range(SAMPLES))
    for index in held_out:
        kept = np.setdiff1d(np.arange(SAMPLES), index)
        train = ImageTensorDataset(images[kept], torch.from_numpy(given[kept]))
        torch.manual_seed(3)
        network = load_model("cnn_small", num_labels=10, image_size=32)
        args = RobustTrainingArguments(output_dir=str(folder / "by-hand"), seed=3, **TRAINING)
        transform = ImageTransform(*train.channel_statistics())
        trainer = RobustTrainer(network, args, train_dataset=train, image_transform=transform)
        trainer.train()
        with torch.no_grad():
            logits = network.eval()(transform(images[index])).logits
        np.testing.assert_allclose(probabilities[index], logits.double().softmax(-1), atol=1e-6)


def test_probabilities_are_those_of_the_loss(tmp_path):
    """The softmax of logits clipped to the norm 2.5, which softmax alone would not give: see their bound."""
    run(tmp_path, function=out_of_fold_probabilities, loss="logit_clip(tau=0.4, delta=2.5)", num_folds=2)
    probabilities = np.load(tmp_path / "pred_probs.npy")
    # Of ten logits of that norm, one of them far from the mean of the others: by 2.5 sqrt(10 / 9).
    most = np.exp(2.5 * np.sqrt(10 / 9))
    assert probabilities.max() <= most / (most + 9) + 1e-9
    # Centred, the logarithms are the clipped logits less their mean: no norm between 0.4 and 2.5 but for that mean.
    centred = np.log(probabilities) - np.log(probabilities).mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    assert (norms > 1.5).mean() > 0.9 and norms.max() <= 2.5 + 1e-9


def test_the_estimate_is_what_a_corrected_loss_takes(finished):
    folder, results = finished
    train = load_image_splits("digits", max_train_samples=SAMPLES).train
    matrix = resolve_transition_matrix(str(folder / "results.json"), train, 10)
    np.testing.assert_array_equal(matrix, results["noise"]["estimated_matrix"])


def test_folds_have_the_same_share_of_each_given_label(finished):
    folder, _ = finished
    given, _ = arrays(folder)
    counts = np.array([np.bincount(load_file(path)["given"], minlength=10) for path in fold_files(folder)])
    np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(given, minlength=10))
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_finished_folds_are_skipped_and_a_missing_one_is_made_again(finished):
    folder, results = finished
    probabilities, table = (folder / "pred_probs.npy").read_bytes(), (folder / "label_errors.csv").read_bytes()
    missing = fold_files(folder)[1]
    content = missing.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in fold_files(folder)}
    missing.unlink()  # as if killed in the middle of that fold
    again = run(folder, seed=3)
    assert {path for path in fold_files(folder) if path.stat().st_mtime_ns != times[path]} == {missing}
    assert missing.read_bytes() == content
    assert (folder / "pred_probs.npy").read_bytes() == probabilities
    assert (folder / "label_errors.csv").read_bytes() == table
    assert {**again, "finished": None} == {**results, "finished": None}


def test_a_finished_run_is_read_again_without_training(finished, monkeypatch):
    folder, results = finished
    monkeypatch.setattr("hf_robust.studies.folds.make_trainer", None)
    again = run(folder, seed=3)
    assert {**again, "finished": None} == {**results, "finished": None}
    monkeypatch.setattr("hf_common.plugins._loaded", ["own_kinds"])
    assert run(folder, seed=3)["plugins"] == ["own_kinds"]


def test_same_seed_same_bytes_other_seed_other_folds(finished, tmp_path):
    folder, _ = finished
    run(tmp_path / "again", function=out_of_fold_probabilities, seed=3)
    run(tmp_path / "other", function=out_of_fold_probabilities, seed=4, num_train_epochs=1)
    for name in ("pred_probs.npy", "labels.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other" / "labels.npy").read_bytes() == (folder / "labels.npy").read_bytes()
    first, other = (load_file(fold_files(path)[0])["index"] for path in (folder, tmp_path / "other"))
    assert not np.array_equal(first, other)


def test_a_folder_of_another_run_or_of_other_files_is_left_alone(finished, tmp_path):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for changes, message in (
        ({"loss": "ce"}, r"another run: loss='ce' \(it has 'nce \+ rce'\)"),
        ({"num_folds": 5}, r"another run: num_folds=5 \(it has 3\)"),
        ({"data": {"noise_seed": 1}}, "another run: noise_seed=1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(folder, **({"seed": 3} | changes))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no run of this script"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_fold_of_other_labels_is_not_mixed_in(finished, tmp_path):
    folder, _ = finished
    content = load_file(fold_files(folder)[0])
    content["given"] = (content["given"] + 1) % 10
    save_file(content, tmp_path / "fold-0.safetensors")
    (tmp_path / "settings.json").write_text((folder / "settings.json").read_text())
    with pytest.raises(ValueError, match="fold-0.*other images or labels"):
        run(tmp_path, seed=3)


@pytest.mark.parametrize(
    "data, model, changes, message",
    [
        ({}, {}, {"num_folds": 1}, "num_folds.*2.*1"),
        ({}, {}, {"num_folds": 140}, r"num_folds must be at most \d+.*140"),
        ({}, {}, {"do_train": False}, "do_train must be True.*False"),
        ({}, {}, {"resume_from_checkpoint": "last"}, "resume_from_checkpoint.*same command"),
        ({}, {}, {"push_to_hub": True}, "push_to_hub must be False"),
        ({}, {}, {"per_device_train_batch_size": 33}, "per_device_train_batch_size=33 .*one of the 100"),
        ({}, {"model": "cnn9"}, {}, "cnn9.*cnn_small"),
        ({}, {"config_overrides": "depth=3"}, {}, "depth"),
        ({"noise": "semantic_40"}, {}, {}, "semantic_40.*airplane"),
        ({"max_train_samples": 1}, {}, {}, "two classes.*class 0"),
        ({}, {}, {"loss": "gjs"}, "gjs.*views"),
        ({}, {}, {"loss": "forward", "transition_matrix": "nowhere.npy"}, "nowhere.npy"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path, data, model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", data=data, model=model, **changes)
    left = [path for path in tmp_path.rglob("*") if path.name != LOCK]
    assert left in ([], [tmp_path / "run"])  # an empty folder at most


def test_without_cleanlab_the_way_to_get_it_is_said_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ImportError, match="pip install 'cleanlab"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folds_of_bad_labels_or_numbers():
    with pytest.raises(ValueError, match="class 4"):
        assign_folds(np.array([4, 4, 4]), 2, seed=0)
    with pytest.raises(ValueError, match="at most 3.*got 4"):
        assign_folds(np.array([0, 0, 0, 1]), 4, seed=0)


def test_drop_last_drops_nothing_of_the_predictions(tmp_path):
    _, probabilities = run(
        tmp_path, function=out_of_fold_probabilities, num_folds=2, data={"max_train_samples": 65},
        num_train_epochs=1, dataloader_drop_last=True, per_device_eval_batch_size=16,
    )  # fmt: skip
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


def save_two_colours(folder, wrong, with_clean_label):
    """Dark and bright 8x8 images in turn, as Parquet; the labels of those at `wrong` are flipped."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 2)):
        clean = np.arange(count) % 2
        pixels = (clean[:, None, None, None] * 160 + generator.integers(0, 90, (count, 8, 8, 3))).astype(np.uint8)
        given = clean.copy()
        if split == "train":
            given[wrong] = 1 - given[wrong]
        columns = {"img": list(pixels), "label": given} | ({"clean_label": clean} if with_clean_label else {})
        label = datasets.ClassLabel(names=["dark", "bright"])
        features = {"img": datasets.Image(), "label": label} | ({"clean_label": label} if with_clean_label else {})
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def run_on(dataset, folder):
    data = {"dataset": dataset, "noise": None, "max_train_samples": None, "augmentation": "none"}
    return run(folder, data=data, num_train_epochs=8, learning_rate=0.05)


def test_where_the_clean_labels_are_unknown_nothing_is_said_of_them(tmp_path):
    results = run_on(save_two_colours(tmp_path, [7], with_clean_label=False), tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    confidence = float(row.pop("self_confidence"))
    assert 0.5 < float(row.pop("suggested_confidence")) <= 1
    assert row == {"rank": "1", "index": "7", "given_label": "dark", "suggested_label": "bright"}
    assert confidence < 0.1
    assert results["label_errors"] == {
        "found": 1, "known": None, "precision": None, "recall": None, "auc": None,
    }  # fmt: skip
    assert results["noise"]["rate"] is results["noise"]["matrix"] is results["accuracy"]["clean"] is None
    assert results["noise"]["estimated_rate"] == pytest.approx(1 / 60)
    assert "| 60 | 1 | - | - | - | - | too few images (60) | 1.7 | - | - |" in label_errors_table(results)


def test_where_nothing_is_found_there_is_no_precision(tmp_path):
    results = run_on(save_two_colours(tmp_path, [], with_clean_label=True), tmp_path / "run")
    assert rows(tmp_path / "run") == []
    assert results["label_errors"] == {
        "found": 0, "known": 0, "precision": None, "recall": None, "auc": None,
    }  # fmt: skip
    assert results["noise"]["rate"] == results["noise"]["estimated_rate"] == 0
    assert "| 60 | 0 | 0 | - | - | - | too few images (60) | 0.0 | 0.0 | 100.0 |" in label_errors_table(results)


@pytest.mark.parametrize(
    ("how", "counts"), [("drop", "59 of 60 images kept, 1 dropped"), ("relabel", "60 images, 1 of")]
)
def test_what_became_of_the_cleaned_data_set_is_said(tmp_path, how, counts):
    noise = {"estimated_rate": 0.1, "estimate": {"verdict": "cannot tell", "kappa": 0.1}}
    results = {"settings": {}, "label_errors": {"found": 1}, "train_images": 60, "noise": noise}
    first, warning = cleaned_in_words(results, tmp_path, how).splitlines()
    assert counts in first and str(tmp_path) in first
    assert warning.startswith("warning: cannot tell: predictions and labels agree too little (kappa 0.100)")
    noise["estimate"] = {"verdict": "ok", "rate_interval": [0.1, 0.2]}
    assert cleaned_in_words(results, tmp_path, how) == first


def script(folder, *flags, processes=1):
    words = [
        "--noise", "symmetric_40", "--max_train_samples", "100",
        "--num_folds", "3", "--num_train_epochs", "2", "--use_cpu", "--disable_tqdm", "true",
        "--config_overrides", "batch_norm=false", "--output_dir", str(folder), *flags,
    ]  # fmt: skip
    done = run_process(SCRIPT, *words, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_script_in_one_process_and_in_two(tmp_path):
    """100 images in three folds, which two processes share unevenly; without batch norm they make the same steps."""
    one = script(tmp_path / "one", "--per_device_train_batch_size", "32")
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert label_errors_table(results) in one and str(tmp_path / "one") in one
    two = script(tmp_path / "two", "--per_device_train_batch_size", "16", "--ddp_backend", "gloo", processes=2)
    assert two.count("Shares in percent.") == 1
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["settings"]["processes"] == 2
    (labels, expected), (given, probabilities) = arrays(tmp_path / "one"), arrays(tmp_path / "two")
    np.testing.assert_array_equal(given, labels)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert not list(tmp_path.rglob("*.tmp"))
