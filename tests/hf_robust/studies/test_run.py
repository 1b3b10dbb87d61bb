import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_common.arguments import parse_overrides
from hf_common.files import write_json
from hf_robust.data.load import load_image_splits
from hf_robust.models import convert_resnet20, make_image_processor
from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.run import run_experiment
from tests import ROOT
from tests.processes import run_process, start_process

TRAIN = ROOT / "scripts" / "train_robust.py"
SMALL = {"max_train_samples": 200, "max_test_samples": 60}


def arguments(folder, **changes):
    defaults = {"num_train_epochs": 2, "per_device_train_batch_size": 64, "use_cpu": True, "disable_tqdm": True}
    return ExperimentArguments(output_dir=str(folder), **(defaults | changes))


def run(folder, data=None, model=None, **changes):
    return run_experiment(
        DataArguments(**(SMALL | {"noise": "symmetric_40"} | (data or {}))),
        ModelArguments(**(model or {})),
        arguments(folder, **changes),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder, seed=3)


def test_results_say_what_was_run_and_what_came_out(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "model.safetensors").stat().st_mode == (folder / "results.json").stat().st_mode
    settings = results["settings"]
    assert (settings["loss"], settings["noise"], settings["model"], settings["seed"]) == (
        "nce + rce", "symmetric_40", "cnn_small", 3,
    )  # fmt: skip
    assert settings["per_device_train_batch_size"] == 64 and settings["processes"] == 1
    assert settings["augmentation"] == "none" and settings["other_arguments"] == {}
    history = results["history"]
    assert [row["epoch"] for row in history] == [1.0, 2.0]
    assert results["accuracy"]["last"] == history[-1]["test_accuracy"]
    assert results["accuracy"]["best"] == max(row["test_accuracy"] for row in history)
    assert results["train_images"] == 200 and results["test_images"] == 60
    assert results["images_per_second"] > 0 and results["parameters"] > 0
    assert results["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    for row in history:
        # The unflipped images that are predicted right, counted in two ways.
        rate = results["noise"]["rate"]
        by_given = row["train_given_accuracy"] - rate * row["train_memorised"]
        by_clean = row["train_clean_accuracy"] - rate * row["train_recovered"]
        assert by_given == pytest.approx(by_clean, abs=1e-6)


def test_results_hold_the_realised_noise(finished):
    _, results = finished
    train = load_image_splits("digits", max_train_samples=200).train
    noisy = make_noisy_labels(train.labels.numpy(), "symmetric_40", num_classes=10, seed=0)
    assert results["noise"]["rate"] == pytest.approx((noisy != train.labels.numpy()).mean())
    counts = np.zeros((10, 10))
    np.add.at(counts, (train.labels.numpy(), noisy), 1)
    np.testing.assert_allclose(results["noise"]["matrix"], counts / counts.sum(1, keepdims=True))


def test_saved_model_and_processor_give_the_reported_accuracy(finished):
    folder, results = finished
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    test = load_image_splits("digits", **SMALL).test
    images = list(test.images.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        logits = model(**processor(images, return_tensors="pt")).logits
    accuracy = (logits.argmax(-1) == test.labels).double().mean().item()
    assert accuracy == pytest.approx(results["accuracy"]["last"])
    assert model.config.id2label == {i: str(i) for i in range(10)}


def test_a_saved_model_is_scored_without_training(finished, tmp_path):
    folder, results = finished
    scored = run(tmp_path / "score", data={"noise": None}, model={"model": str(folder)}, do_train=False)
    assert scored["accuracy"]["last"] == pytest.approx(results["accuracy"]["last"])
    assert scored["images_per_second"] is None and scored["noise"]["rate"] is None and scored["train_images"] == 0
    assert not (tmp_path / "score" / "model.safetensors").exists()


@pytest.mark.data
@pytest.mark.skipif(
    not {"CIFAR10_DIR", "RESNET20_DIR"} <= set(os.environ), reason="needs CIFAR10_DIR and RESNET20_DIR"
)
def test_resnet20_scores_its_published_91_73_percent_on_the_real_test_images(tmp_path):
    network = convert_resnet20(load_file(Path(os.environ["RESNET20_DIR"]) / "model.safetensors"))
    network.save_pretrained(tmp_path / "model")
    make_image_processor((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32).save_pretrained(tmp_path / "model")
    results = run_experiment(
        DataArguments(dataset=os.environ["CIFAR10_DIR"]),
        ModelArguments(model=str(tmp_path / "model")),
        arguments(tmp_path / "score", do_train=False),
    )
    assert results["test_images"] == 10_000 and results["accuracy"]["last"] == pytest.approx(0.9173, abs=1e-9)


@pytest.mark.parametrize(
    "id2label, message",
    [
        (["1", "0", *"23456789"], "another order"),
        (list("abc"), "3 classes, the data set 10"),
    ],
)
def test_a_model_of_other_classes_is_not_scored(finished, tmp_path, id2label, message):
    folder, _ = finished
    saved = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=len(id2label), id2label=dict(enumerate(id2label)), ignore_mismatched_sizes=True
    )
    saved.save_pretrained(tmp_path / "model")
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "score", data={"noise": None}, model={"model": str(tmp_path / "model")}, do_train=False)


def test_picture_is_a_png(finished):
    folder, _ = finished
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_same_seed_same_bytes_other_seed_other_weights(finished, tmp_path):
    folder, _ = finished
    run(tmp_path / "again", seed=3)
    run(tmp_path / "other", seed=4)
    weights = (folder / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != weights


def test_a_folder_with_another_run_or_other_files_is_left_alone(finished, tmp_path):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ValueError, match=r"another run: loss='ce' \(it has 'nce \+ rce'\)"):
        run(folder, seed=3, loss="ce")
    for resume in (None, "last"):
        with pytest.raises(ValueError, match="this very run, finished"):
            run(folder, seed=3, resume_from_checkpoint=resume)
    with pytest.raises(ValueError, match="another run: other_arguments={'adam_beta1': 0.5}"):
        run(folder, seed=3, adam_beta1=0.5)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no run of this script"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_trained_network_is_scored_with_the_loss_of_its_training(tmp_path):
    run(tmp_path / "trained", loss="gce", class_weights=[1.0] * 9 + [2.0])
    score = {"data": {"noise": None}, "model": {"model": str(tmp_path / "trained")}, "do_train": False}
    own = run(tmp_path / "own", **score)
    asked = run(tmp_path / "asked", loss="nce+rce", **score)  # the default, but asked for
    assert own["settings"]["loss"] == "gce" and asked["settings"]["loss"] == "nce + rce"
    trained = json.loads((tmp_path / "trained" / "results.json").read_text())
    assert own["history"][-1]["test_loss"] == pytest.approx(trained["history"][-1]["test_loss"], rel=1e-6)
    assert asked["history"][-1]["test_loss"] > 1.5 * own["history"][-1]["test_loss"]


def test_matrices_come_from_a_noise_a_file_or_a_run_and_a_changed_file_is_another_run(tmp_path):
    exact = transition_matrix("symmetric_40", 10)
    np.save(tmp_path / "matrix.npy", exact)
    first = run(tmp_path / "a", loss="forward", transition_matrix=str(tmp_path / "matrix.npy"), num_train_epochs=1)
    named = run(tmp_path / "b", loss="forward", transition_matrix="symmetric_40", num_train_epochs=1)
    assert first["history"][-1]["train_loss"] == named["history"][-1]["train_loss"]
    config = json.loads((tmp_path / "a" / "config.json").read_text())["robust_loss"]
    assert np.allclose(config["transition_matrix"], exact)
    np.save(tmp_path / "matrix.npy", transition_matrix("symmetric_20", 10))
    with pytest.raises(ValueError, match="another run: other_arguments=.*transition_matrix"):
        run(tmp_path / "a", loss="forward", transition_matrix=str(tmp_path / "matrix.npy"), num_train_epochs=1)
    # the results of a run, whose estimate is taken, and of the true noise
    assert first["noise"]["estimate"]["verdict"] == "cannot tell"  # after one epoch
    with pytest.raises(ValueError, match="transition_matrix: the estimate of this run says 'cannot tell'"):
        run(tmp_path / "c", loss="backward", transition_matrix=str(tmp_path / "a/results.json"), num_train_epochs=1)
    content = (tmp_path / "a/results.json").read_text().replace('"cannot tell"', '"in sample"')
    (tmp_path / "told.json").write_text(content)
    again = run(tmp_path / "c", loss="backward", transition_matrix=str(tmp_path / "told.json"), num_train_epochs=1)
    config = json.loads((tmp_path / "c" / "config.json").read_text())["robust_loss"]
    assert config["transition_matrix"] == first["noise"]["estimated_matrix"]
    assert again["noise"]["rate"] == first["noise"]["rate"] == pytest.approx(0.4, abs=0.03)
    run(tmp_path / "d", loss="forward", transition_matrix="true", num_train_epochs=1)
    config = json.loads((tmp_path / "d" / "config.json").read_text())["robust_loss"]
    assert config["transition_matrix"] == first["noise"]["matrix"]
    for content in ('{"noise": "symmetric_40"}', "[[1, 2], [3]]", '"x"'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="bad.json.*neither a matrix"):
            run(tmp_path / "e", loss="forward", transition_matrix=str(tmp_path / "bad.json"))


def test_what_the_loss_remembers_is_there_after_a_kill_at_the_very_end(tmp_path):
    changes = {"loss": "ogc_ce(queue=32, interval=1)", "eval_strategy": "no", "learning_rate": 0.05}
    whole = run(tmp_path / "whole", **changes)
    run(tmp_path / "cut", **changes)
    for name in ("results.json", "model.safetensors"):
        (tmp_path / "cut" / name).unlink()
    resumed = run(tmp_path / "cut", resume_from_checkpoint="last", **changes)
    assert resumed["history"][-1]["test_loss"] == pytest.approx(whole["history"][-1]["test_loss"], rel=1e-6)
    assert whole["history"][-1]["test_loss"] != pytest.approx(whole["history"][-1]["test_cross_entropy"], rel=1e-3)


def test_contaminated_noise_is_named_and_less():
    data = DataArguments(noise="semantic_40", noise_contaminated=True)
    assert data.noise_name == "contaminated_semantic_40"


@pytest.mark.parametrize(
    "data, model, changes, message",
    [
        ({"noise": "symetric_40"}, {}, {}, "symetric.*symmetric"),
        ({"noise": "symmetric_101"}, {}, {}, "101"),
        ({"augmentation": "rotate"}, {}, {}, "crop_flip.*rotate"),
        ({}, {"model": "cnn9"}, {}, "cnn9.*cnn_small"),
        ({}, {"config_overrides": "batch_norm"}, {}, "name=value.*batch_norm"),
        ({}, {"config_overrides": "depth=3"}, {}, "depth"),
        ({}, {"config_overrides": "image_size=16"}, {}, "image_size"),
        ({"noise": "semantic_40"}, {}, {}, "semantic_40.*airplane"),
        ({"noise_sampling": "exact"}, {}, {}, "exact"),
        ({"noise_seed": -1}, {}, {}, "noise_seed.*-1"),
        ({}, {}, {"do_train": False}, "do_train=False.*cnn_small"),
        ({}, {}, {"load_best_model_at_end": True}, "load_best_model_at_end"),
        ({}, {}, {"resume_from_checkpoint": "nosuch"}, "resume_from_checkpoint must be 'last'; got 'nosuch', but"),
        (
            {},
            {},
            {"resume_from_checkpoint": "nowhere"},
            r"must be 'last'; got 'nowhere', but .* holds no complete checkpoint",
        ),
        ({"dataset_config": "plain"}, {}, {}, "no configs"),
        ({"noise_contaminated": True}, {}, {}, "noise_contaminated=True.*symmetric_40"),
        ({"noise_contaminated": True, "noise_sampling": "bernoulli"}, {}, {}, "quota.*bernoulli"),
        ({}, {}, {"loss": "forward"}, "transition_matrix=None with loss='forward'"),
        ({}, {}, {"transition_matrix": "true"}, "transition_matrix='true' with loss='nce[+]rce'"),
        ({}, {}, {"loss": "forward", "transition_matrix": "symetric_40"}, "symetric"),
        ({}, {}, {"loss": "forward", "transition_matrix": "nowhere.json"}, "no file 'nowhere.json'"),
        ({}, {}, {"loss": "gjs"}, "two augmented views.*crop_flip"),
        ({}, {}, {"class_weights": [1.0, 2.0, 3.0]}, "class_weights.*3 for 10 classes"),
        ({}, {}, {"class_weights": [-1.0]}, "class_weights.*-1"),
        ({"max_train_samples": 65}, {}, {}, "per_device_train_batch_size=64 .*one of the 65"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, data, model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", data=data, model=model, **changes)
    assert not (tmp_path / "run" / "settings.json").exists()


def test_a_kill_after_the_last_checkpoint_ends_with_the_same_model(tmp_path):
    """max_steps=6 with 4 steps an epoch ends in mid-epoch, where Trainer would make a seventh."""
    changes = {"num_train_epochs": 120, "max_steps": 6, "save_strategy": "steps", "save_steps": 6}
    whole = run(tmp_path, **changes)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "results.json").unlink()
    (tmp_path / "model.safetensors").unlink()
    again = run(tmp_path, resume_from_checkpoint="last", **changes)
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    assert again["accuracy"]["last"] == whole["accuracy"]["last"]


def test_a_run_begun_is_not_begun_again_unasked(tmp_path):
    run(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match="begun; go on with --resume_from_checkpoint last"):
        run(tmp_path)
    with pytest.raises(ValueError, match="'last' or one of.*checkpoint-8.*nowhere"):
        run(tmp_path, resume_from_checkpoint="nowhere")


def test_overrides_are_read_as_json():
    text = "batch_norm=False, depths=[2, 2,1], shortcut=B,name='x', image_mean=0.5"
    assert parse_overrides(text) == {
        "batch_norm": False, "depths": [2, 2, 1], "shortcut": "B", "name": "'x'", "image_mean": 0.5,
    }  # fmt: skip
    assert parse_overrides(None) == parse_overrides(" ") == {}


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def words(folder, *flags):
    return [
        "--noise", "symmetric_40", "--max_train_samples", "160",
        "--output_dir", str(folder),
        "--num_train_epochs", "3", "--per_device_train_batch_size", "16", "--augmentation", "crop_flip", "--use_cpu",
        "--save_strategy", "steps", "--save_steps", "4", "--loss", "nce+rce", *flags,
    ]  # fmt: skip


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(tmp_path):
    """10 steps an epoch; killed once checkpoint-12 is there, which is in the second epoch."""
    whole = run_process(TRAIN, *words(tmp_path / "whole"), OMP_NUM_THREADS="2")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "| nce+rce |" in whole.stdout and str(tmp_path / "whole") in whole.stdout

    process = start_process(TRAIN, *words(tmp_path / "killed"), OMP_NUM_THREADS="2")
    deadline = time.monotonic() + 600
    while not (tmp_path / "killed" / "checkpoint-12" / "trainer_state.json").exists():
        assert process.returncode is None and time.monotonic() < deadline, "ended before the kill"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()

    again = run_process(TRAIN, *words(tmp_path / "killed", "--resume_from_checkpoint", "last"), OMP_NUM_THREADS="2")
    assert again.returncode == 0, again.stderr[-2000:]
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name
    histories = [json.loads((tmp_path / name / "results.json").read_text())["history"] for name in ("whole", "killed")]
    for history in histories:
        assert [row["epoch"] for row in history] == [1.0, 2.0, 3.0]
        for row in history:
            del row["train_loss"]  # Trainer averages that of the resumed epoch over the steps since the resume
    assert histories[0] == histories[1]


def test_two_processes_run_one_experiment(tmp_path):
    """Through the script, without batch norm: the same weights and scores as one process."""
    flags = [
        "--noise", "symmetric_40", "--max_train_samples", "150", "--max_test_samples", "41",
        "--num_train_epochs", "1", "--config_overrides", "batch_norm=false", "--augmentation", "crop_flip",
        "--use_cpu", "--ddp_backend", "gloo", "--per_device_train_batch_size", "32",
        "--output_dir", str(tmp_path / "two"),
    ]  # fmt: skip
    done = run_process(TRAIN, *flags, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one = run(
        tmp_path / "one",
        data={"max_train_samples": 150, "max_test_samples": 41, "augmentation": "crop_flip"},
        model={"config_overrides": "batch_norm=false"},
        num_train_epochs=1,
        per_device_train_batch_size=64,
    )
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["settings"]["processes"] == 2
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=0)
    histograms = [results["history"][-1].pop("loss_histogram") for results in (one, two)]
    assert histograms[0]["edges"] == pytest.approx(histograms[1]["edges"], abs=1e-5)
    for key, value in one["history"][-1].items():
        assert two["history"][-1][key] == pytest.approx(value, abs=1e-5), key
