import json

import datasets
import pytest
from PIL import Image

from hf_robust.data.load import load_image_splits
from hf_robust.models import load_model
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.run import run_experiment
from hf_robust.studies.sweep import run_sweep
from tests import ROOT
from tests.processes import run_process

SCRIPTS = ROOT / "scripts"


def sweep(folder, losses=("ce", "nce+rce"), noises=("symmetric_40",), seeds=(0, 1), models=("cnn_small",), **changes):
    defaults = {"num_train_epochs": 1, "per_device_train_batch_size": 64, "use_cpu": True, "disable_tqdm": True}
    return run_sweep(
        losses, noises, models, seeds,
        DataArguments(max_train_samples=150, max_test_samples=40), ModelArguments(),
        ExperimentArguments(output_dir=str(folder), **(defaults | changes)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(folder)


def test_every_combination_is_run_with_its_own_seed_and_noise(finished):
    folder, results = finished
    ran = [(r["settings"]["loss"], r["settings"]["seed"], r["settings"]["noise_seed"]) for r in results]
    assert ran == [("ce", 0, 0), ("nce + rce", 0, 0), ("ce", 1, 1), ("nce + rce", 1, 1)]
    assert json.loads((folder / "sweep.json").read_text()) == results
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "sweep.json", "results.md", "accuracy_vs_noise.png", "training_curves.png",
    }  # fmt: skip
    matrices = [r["noise"]["matrix"] for r in results]
    assert matrices[0] == matrices[1] != matrices[2] == matrices[3]  # losses meet the same noise, seeds do not


def test_finished_runs_are_skipped_and_missing_ones_made_again(finished):
    folder, results = finished
    weights = {
        path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors") if path.parent.name[0] == "s"
    }
    assert len(weights) == 4
    (unfinished,) = [path for path in weights if "nce_+_rce/seed1" in path.as_posix()]
    (unfinished.parent / "results.json").unlink()  # as if killed just before the end
    again = sweep(folder)
    changed = {path for path, time in weights.items() if path.stat().st_mtime_ns != time}
    assert changed == {unfinished}
    for before, after in zip(results, again, strict=True):
        assert before["accuracy"] == after["accuracy"] and before["history"] == after["history"]


def test_results_of_other_settings_are_not_mixed_in(finished):
    folder, _ = finished
    with pytest.raises(ValueError, match="result of another run.*learning_rate"):
        sweep(folder, learning_rate=0.5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"losses": []}, "losses"),
        ({"seeds": (1, 1)}, r"seeds.*\[1, 1\]"),
        ({"losses": ["ce", "nosuch"]}, "nosuch"),
        ({"losses": ["nce+rce", "nce + 1.0*rce"]}, "losses.*nce"),
        ({"noises": ["symmetric_40", "symmetric_40.0"]}, "noises.*symmetric_40"),
        ({"models": ["cnn_small", "cnn9"]}, "cnn9.*cnn_small"),
        ({"noises": ["symmetric_200"]}, "200"),
        ({"losses": ["ce", "gjs"]}, "loss='gjs' compares two augmented views"),
        ({"losses": ["ce", "forward"]}, "transition_matrix=None with loss='forward'"),
        ({"losses": ["ce", "forward"], "transition_matrix": "symetric_40"}, "symetric"),
        ({"losses": ["ce"], "transition_matrix": "true"}, "transition_matrix='true': none of the losses"),
    ],
)
def test_bad_lists_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_script_runs_a_sweep_and_refuses_the_flags_of_one_run(tmp_path):
    small = ["--max_train_samples", "100", "--max_test_samples", "30", "--num_train_epochs", "1", "--use_cpu"]
    done = run_process(
        SCRIPTS / "sweep_robust.py", "--losses", "ce", "gce(q=0.5)", *small, "--output_dir", str(tmp_path / "s")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| gce(q=0.5) |" in done.stdout and str(tmp_path / "s") in done.stdout
    refused = run_process(SCRIPTS / "sweep_robust.py", "--loss", "ce", "--output_dir", str(tmp_path / "t"))
    assert refused.returncode == 2 and "--losses" in refused.stderr and not (tmp_path / "t").exists()


def test_benchmark_script_prints_and_writes_its_figures(tmp_path):
    report = tmp_path / "speed.json"
    small = ["--images", "64", "--batch_size", "16", "--epochs", "1", "--repeats", "1"]
    done = run_process(SCRIPTS / "benchmark_trainer.py", *small, "--json", str(report))
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(report.read_text())
    stock = {"stock Trainer, batch transform", "stock Trainer, per-image PIL"}
    assert set(content["images_per_second"]) == {"loop by hand", "RobustTrainer"} | stock
    for name, speeds in content["images_per_second"].items():
        assert len(speeds) == 1 and speeds[0] > 0
        assert f"| {name} | {speeds[0]:.0f} |" in done.stdout


def small_sweep(folder, losses, noises, models=("cnn_small",), **data):
    args = ExperimentArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, num_train_epochs=1)
    images = DataArguments(max_train_samples=64, max_test_samples=32, **data)
    return run_sweep(losses, noises, models, [0], images, ModelArguments(), args)


def test_runs_that_would_share_a_folder_are_refused(tmp_path):
    load_model("cnn_small", num_labels=10).save_pretrained(tmp_path / "a" / "b")
    load_model("cnn_small", num_labels=10).save_pretrained(tmp_path / "a_b")
    for noises, models in ((["given", "clean"], ["cnn_small"]), (["clean"], [f"{tmp_path}/a/b", f"{tmp_path}/a_b"])):
        with pytest.raises(ValueError, match="two runs would share the folder"):
            small_sweep(tmp_path / "sweep", ["ce"], noises, models)
    assert not (tmp_path / "sweep").exists()


def test_labels_of_no_known_rate_are_swept_without_a_picture_of_rates(tmp_path):
    images, labels = load_digits_rows(96)
    for split, part in (("train", slice(0, 64)), ("test", slice(64, 96))):
        rows = datasets.Dataset.from_dict(
            {"image": images[part], "label": labels[part]},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(k) for k in range(10)])}
            ),
        )
        rows.to_parquet(tmp_path / "data" / "human_x" / f"{split}.parquet")
    card = "---\nconfigs:\n- config_name: human_x\n  data_files:\n"
    card += "".join(f"  - split: {s}\n    path: human_x/{s}.parquet\n" for s in ("train", "test"))
    (tmp_path / "data" / "README.md").write_text(card + "---\n")
    source = {"dataset": str(tmp_path / "data"), "dataset_config": "human_x"}
    results = small_sweep(tmp_path / "sweep", ["ce", "gce"], ["given"], **source)
    assert len(results) == 2 and (tmp_path / "sweep" / "training_curves.png").exists()
    assert not (tmp_path / "sweep" / "accuracy_vs_noise.png").exists()
    with pytest.raises(ValueError, match="noise='symmetric_40' with dataset_config='human_x'.*noise on noise"):
        small_sweep(tmp_path / "other", ["ce"], ["symmetric_40"], **source)


def load_digits_rows(count):
    splits = load_image_splits("digits", max_train_samples=count)
    images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in splits.train.images]
    return images, splits.train.labels.tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be 1 or more"),
        ({"num_train_epochs": 0}, "num_train_epochs must be larger than 0"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs must be larger than 0"),
        ({"max_steps": 0}, "or max_steps 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"save_only_model": True}, "save_only_model=True"),
    ],
)
def test_numbers_with_which_nothing_can_be_trained_are_named(changes, said, tmp_path):
    args = ExperimentArguments(**{"output_dir": str(tmp_path / "run"), "use_cpu": True} | changes)
    with pytest.raises(ValueError, match=said):
        run_experiment(DataArguments(max_train_samples=64, max_test_samples=32), ModelArguments(), args)
    assert not (tmp_path / "run").exists()
