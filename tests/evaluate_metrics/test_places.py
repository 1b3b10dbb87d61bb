"""One number wherever a metric is loaded from: the clone, a wheel, the Space that is published."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

import evaluate_metrics
import hf_common
from evaluate_metrics.publishing import write_space
from tests import ROOT
from tests.hub.client import WITHOUT_OWN_PACKAGES

# Prints the results of all metrics, of which `paths` names the folders.
SCORE = """
import json, sys, warnings
import evaluate
warnings.simplefilter("ignore")
sets, encoder = json.loads({given!r})
results = []
for path, config in zip(paths, ("clip", "clean", "fd-dinov2")):
    metric = evaluate.load(path, config, encoder=encoder, device="cpu")
    results.append(metric.compute(**sets))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two sets of images, and a tiny CLIP as their encoder, as JSON."""
    place, draw = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    paths = [str(place / f"{i}.png") for i in range(16)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (24, 20, 3), dtype=np.uint8)).resize((40, 50)).save(path)
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        projection_dim=6,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(place / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 28}).save_pretrained(place / "clip")
    return json.dumps([{"predictions": paths[:7], "references": paths[7:]}, str(place / "clip")])


@pytest.fixture
def scores(given, tmp_path):
    """Runs `code`, which sets `paths`, and what scores them in a fresh process; the results."""

    def call(code, cwd, **environment):
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", code + SCORE.format(given=given)],
            cwd=cwd,
            env=kept | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture(scope="module")
def clone(given, tmp_path_factory):
    """What the clone gives, in its root."""
    code = 'paths = ["evaluate_metrics/" + name for name in ("cmmd", "fid", "image_quality")]\n' + SCORE.format(
        given=given
    )
    environment = {"HF_HOME": str(tmp_path_factory.mktemp("home")), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[0]["cmmd"] > 0 and found[1]["frechet_distance"] > 0 and 0 <= found[2]["precision"] <= 1
    return found


def test_a_wheel_gives_what_the_clone_gives(clone, scores, tmp_path):
    """Its metrics can be published as well."""
    pytest.importorskip("setuptools", minversion="77")
    wheel = built_wheel(tmp_path)
    code = f"""
import evaluate_metrics
from evaluate_metrics.publishing import check_space
assert evaluate_metrics.__file__.startswith({str(wheel)!r})
paths = [evaluate_metrics.path(name) for name in evaluate_metrics.METRICS]
for name, path in zip(evaluate_metrics.METRICS, paths):
    assert path.startswith({str(wheel)!r})
    check_space(path, f"user/{{name}}")
"""
    assert scores(code, tmp_path, PYTHONPATH=str(wheel)) == clone


def built_wheel(place):
    """The folder of an unpacked wheel of the clone."""
    source, wheel = place / "source", place / "wheel"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    for name in ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics", "model_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys\nfrom setuptools import build_meta\nbuild_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(place)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = place.glob("*.whl")
    zipfile.ZipFile(file).extractall(wheel)
    return wheel


@pytest.mark.slow
def test_a_wheel_has_the_commands_and_trains_without_the_clone(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    wheel = built_wheel(tmp_path)
    (entries,) = wheel.glob("*.dist-info/entry_points.txt")
    assert entries.parent.name == f"hf_robust_dit-{hf_common.__version__}.dist-info"
    assert {path.parent.name for path in wheel.glob("*/py.typed")} == {
        "evaluate_metrics", "hf_common", "hf_dit", "hf_robust",
    }  # fmt: skip
    found = dict(line.split(" = ") for line in entries.read_text().splitlines() if " = " in line)
    assert found == {
        "hf-robust": "hf_robust.__main__:main", "hf-dit": "hf_dit.__main__:main",
        "evaluate-images": "evaluate_metrics.commands.evaluate_images:run",
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "work").mkdir()
    for words in (
        "-m hf_robust train --noise symmetric_40 --loss nce+rce --max_train_samples 64 --num_train_epochs 1 "
        "--use_cpu true --output_dir runs/x",
        "-m evaluate_metrics.commands.evaluate_images --help",
    ):
        code = (
            f"import runpy, sys; sys.argv = {words.split()[1:]!r}; runpy.run_module(sys.argv[0], run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", code],
            cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "runs" / "x" / "results.json").exists()


def test_a_space_gives_what_the_clone_gives(clone, scores, tmp_path):
    """Where these packages can't be imported."""
    paths = []
    for name in evaluate_metrics.METRICS:
        (tmp_path / name).mkdir()
        write_space(evaluate_metrics.path(name), f"user/{name}", tmp_path / name)
        paths.append(str(tmp_path / name))
    assert scores(f"{WITHOUT_OWN_PACKAGES}\npaths = {paths}\n", tmp_path) == clone


def test_path_names_the_folder_of_a_metric():
    for name in ("cmmd", "fid", "image_quality"):
        assert evaluate_metrics.path(name) == str(ROOT / "evaluate_metrics" / name)
    with pytest.raises(ValueError, match=r"name must be one of \('cmmd', 'fid', 'image_quality'\); got 'kid'"):
        evaluate_metrics.path("kid")
