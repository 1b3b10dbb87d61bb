"""One command publishes what the studies made; what it publishes is loaded by the lines that it prints."""

import json
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from PIL import Image

from hf_dit.training.arguments import DataArguments as Photographs
from hf_dit.training.arguments import DiTTrainingArguments
from hf_dit.training.arguments import ModelArguments as DiTArguments
from hf_dit.training.run import train_dit
from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.noisy_dataset.build import build_noisy_cifar10
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.run import run_experiment
from tests import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from release import release_parts

sys.path.remove(str(ROOT / "scripts"))

REPOSITORIES = {
    ("dataset", "user/noisy-cifar10"), ("model", "user/robust-cifar10"), ("model", "user/dit-landscapes"),
    ("space", "user/cmmd"), ("space", "user/fid"), ("space", "user/image_quality"),
}  # fmt: skip


def cifar10(folder):
    draw = np.random.default_rng(0)
    names = list(CIFAR10_CLASSES)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, count in {"train": 60, "test": 20}.items():
        pixels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        content = {"img": list(map(Image.fromarray, pixels)), "label": [k % 10 for k in range(count)]}
        rows = datasets.Dataset.from_dict(content, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def classifier(folder, noise, **changes):
    args = ExperimentArguments(output_dir=str(folder), num_train_epochs=1, use_cpu=True, disable_tqdm=True, **changes)
    data = DataArguments(noise=noise, max_train_samples=80, max_test_samples=40)
    return run_experiment(data, ModelArguments(), args)


def pipeline(folder, photographs):
    args = DiTTrainingArguments(
        output_dir=str(folder / "train"), train_batch_size=4, max_train_steps=2, num_sample_images=2, sample_steps=2,
        use_cpu=True,
    )  # fmt: skip
    train_dit(Photographs(dataset_name=photographs, resolution=8), DiTArguments(model="dit-micro-2"), args)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data set and runs of a tiny size, as the scripts leave them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "cifar10").mkdir()
    source = cifar10(folder / "cifar10")
    build_noisy_cifar10(source, folder / "noisy", configs=["clean", "symmetric_40"])
    runs = folder / "work" / "noise" / "symmetric_40" / "cnn_small"
    for seed in (0, 1):
        classifier(runs / "ce" / f"seed{seed}", "symmetric_40", seed=seed)
    classifier(folder / "work" / "noise" / "clean" / "cnn_small" / "ce" / "seed0", "clean")  # better, but not noisy
    pipeline(folder / "work" / "guidance", source)
    return folder


def release(made, *words, env=None):
    command = [sys.executable, ROOT / "scripts" / "release.py", "--namespace", "user", *map(str, words)]
    command += ["--noisy_dataset", made / "noisy", "--work_dir", made / "work"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)


def published(hub):
    api = HfApi(endpoint=hub.url, token=hub.token)
    return {(kind, repo) for kind, repo in REPOSITORIES if api.repo_exists(repo, repo_type=kind)}


def test_a_dry_run_tells_and_sends_nothing(made, hub):
    done = release(made, "--dry_run", env=hub.env(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert all(repo in done.stdout for _, repo in REPOSITORIES) and "nothing was sent" in done.stdout
    assert hub.server.requests == []


@pytest.mark.slow
def test_everything_is_published_and_loads_by_the_lines_that_are_printed(made, hub):
    done = release(made, env=hub.env(PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr
    assert published(hub) == REPOSITORIES
    *_, data_set, model, pipe, cmmd, fid, quality = done.stdout.strip().splitlines()
    results = json.loads(hub.server.repo("model", "user/robust-cifar10").find("main").files["results.json"])
    best = max((run(made, seed) for seed in (0, 1)), key=lambda found: found["accuracy"]["last"])
    assert results["accuracy"] == best["accuracy"] and results["settings"]["noise"] == "symmetric_40"
    printed = hub.run(
        f"import datasets, transformers, diffusers, evaluate\nprint({data_set}['train'].num_rows)\n"
        f"print(type({model}).__name__)\nprint(type({pipe}).__name__)\nprint({cmmd}.name, {fid}.name, {quality}.name)",
        HF_UPDATE_DOWNLOAD_COUNTS="0",
    )
    names = ["CnnSmallForImageClassification", "DiTImagePipeline", "cmmd", "fid", "image_quality"]
    assert printed.split() == ["60", *names]
    again = release(made, env=hub.env(PYTHONPATH=str(ROOT)))
    assert again.returncode == 0, again.stderr


def run(made, seed):
    folder = made / "work" / "noise" / "symmetric_40" / "cnn_small" / "ce" / f"seed{seed}"
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("gone", "said"), [("work/guidance", "--run guidance"), ("work/noise", "--run noise"), ("noisy", "noisy")]
)
def test_what_is_missing_is_told(made, tmp_path, gone, said):
    shutil.copytree(made, tmp_path / "made")
    shutil.rmtree(tmp_path / "made" / gone)
    with pytest.raises((ValueError, OSError), match=said):
        release_parts("user", tmp_path / "made" / "noisy", tmp_path / "made" / "work")


def test_a_token_that_may_not_write_is_told_before_anything_is_sent(made, hub):
    for part in release_parts("user", made / "noisy", made / "work", token="hf_read"):
        with pytest.raises(PermissionError, match="token"):
            part.check()
    assert published(hub) == set()
