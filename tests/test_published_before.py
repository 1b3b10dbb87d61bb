"""What version 0.1.0 published goes on loading, with this package and without it, and gives what it gave.

`fixtures/published_0_1` holds one small artefact of each kind: the files that a Hub repository had after a push by
that version, but for the pictures of the cards. `expected.json` beside them is what that version computed from them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

PUBLISHED = Path(__file__).parent / "fixtures" / "published_0_1"
KINDS = ("classifier", "pipeline", "dataset", "cmmd")
CONFIGS = (None, "clean", "symmetric_40")
OWN_PACKAGES = ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics", "model_cards")
# Runs first in a process that shall not have this repository's packages.
WITHOUT_OWN_PACKAGES = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OWN_PACKAGES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def formula(*shape, step=7919):  # numbers in [0, 1)
    """Numbers that are the same on every machine, which those of a random generator need not be."""
    return (np.arange(np.prod(shape)) * step % 251 / 251).reshape(shape).astype(np.float32)


def classifier_results(model, processor):
    images = (formula(6, 5, 5, 3, step=104729) * 256).astype(np.uint8)
    with torch.no_grad():
        return {
            "logits": model(torch.from_numpy(4 * formula(8, 3, 5, 5) - 2)).logits.tolist(),
            "logits_of_images": model(**processor(list(images), return_tensors="pt")).logits.tolist(),
            "label_names": [model.config.id2label[i] for i in range(10)],
            "loss": model.config.robust_loss,
        }


def pipeline_results(pipeline):
    """Pixels in 0 to 255: as published, then with another scheduler, from given noise, with each attention."""
    pipeline.set_progress_bar_config(disable=True)
    labels = ["blue", "red", "green"]
    common = {"num_inference_steps": 5, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    images = {"published": pipeline(labels, guidance_scale=[3.0, 1.0, 0.0], generator=generator, **common).images}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = torch.from_numpy(formula(3, 3, 8, 8) - 0.5) * 12**0.5  # of variance 1
    for attention in ("na3", "full"):
        pipeline.transformer.set_attn_processor(attention)
        images[attention] = pipeline(labels, guidance_scale=2.5, latents=noise, **common).images
    return {name: (255 * pixels).round().astype(int).tolist() for name, pixels in images.items()}


def dataset_results(folder):
    results = {}
    for config in CONFIGS:
        for split, rows in datasets.load_dataset(str(folder), config).items():
            encoded, pixels = hashlib.sha256(), hashlib.sha256()
            for row in rows.cast_column("img", datasets.Image(decode=False)):
                encoded.update(row["img"]["bytes"])
            for row in rows:
                pixels.update(np.asarray(row["img"]).tobytes())
            results[f"{config or 'default'} {split}"] = {
                "label": rows["label"][:],
                "clean_label": rows["clean_label"][:],
                "label_names": rows.features["label"].names,
                "encoded": encoded.hexdigest(),
                "pixels": pixels.hexdigest(),
            }
    return results


def average_pooling(images):
    """An encoder without weights: the mean colours of the quarters, and a constant."""
    means = np.stack([np.asarray(image.resize((2, 2), Image.Resampling.BOX)).ravel() for image in images]) / 255
    return torch.from_numpy(np.pad(means, ((0, 0), (0, 1)), constant_values=0.5)).float()


def cmmd_results(folder):
    colours = {"predictions": formula(40, 2, 2, 3) ** 2, "references": formula(50, 2, 2, 3, step=104729)}
    sets = {side: (np.kron(c, np.ones((1, 8, 8, 1))) * 256).astype(np.uint8) for side, c in colours.items()}
    metric = evaluate.load(str(folder / "cmmd.py"), "clip", encoder=average_pooling)
    result = metric.compute(predictions=list(sets["predictions"]), references=list(sets["references"]))
    moments = metric.moments(sets["references"])
    again = metric.compute(predictions=list(sets["predictions"]), reference_moments=moments)
    assert again == result
    told = ("encoder", "preprocessing", "digest")  # 0.1 told the first alone
    return {name: value for name, value in result.items() if name not in told}


def remote_results(root):
    """Of all artefacts, by the ordinary clients, with the code that was published.

    Runs where this repository's packages can't be imported: nothing at the top of this file may need them.
    """
    folders = {kind: Path(root) / kind for kind in KINDS}
    model = AutoModelForImageClassification.from_pretrained(folders["classifier"], trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(folders["classifier"])
    pipeline = DiffusionPipeline.from_pretrained(folders["pipeline"], trust_remote_code=True)
    return {
        "code": [type(part).__module__.split(".")[0] for part in (model, pipeline, pipeline.transformer)],
        "classifier": classifier_results(model.eval(), processor),
        "pipeline": pipeline_results(pipeline),
        "dataset": dataset_results(folders["dataset"]),
        "cmmd": cmmd_results(folders["cmmd"]),
    }


@pytest.fixture(scope="module")
def expected():
    return json.loads((PUBLISHED / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def published(tmp_path):
    """A copy: nothing is written beside what was published."""
    return shutil.copytree(PUBLISHED, tmp_path / "published")


@pytest.fixture
def fresh_code():
    """diffusers runs the code of every local folder in one module: no other test's names are in it, and none stay."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]:
            del sys.modules[name]

    forget()
    yield
    forget()


def check_classifier(found, expected):
    for name in ("label_names", "loss"):
        assert found[name] == expected[name]
    for name in ("logits", "logits_of_images"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


def check_pipeline(found, expected):
    assert found.keys() == expected.keys()
    for name, pixels in found.items():
        np.testing.assert_allclose(pixels, expected[name], rtol=0, atol=2, err_msg=name)


def check_cmmd(found, expected):
    assert found == {
        name: pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
        for name, value in expected.items()
    }


def test_the_artefacts_are_as_they_were_published(expected):
    """A formatter that rewrites them would leave nothing to test."""
    files = [path for kind in KINDS for path in sorted((PUBLISHED / kind).rglob("*")) if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    digests = {path.relative_to(PUBLISHED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert digests == expected["files"]


def test_everything_loads_where_these_packages_are_not_installed(published, expected, tmp_path):
    code = f"""
import json, runpy
for package in {OWN_PACKAGES}:
    try:
        __import__(package)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{{package}} can be imported")
results = runpy.run_path({__file__!r})["remote_results"]({str(published)!r})
with open("results.json", "w") as file:
    json.dump(results, file)
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OWN_PACKAGES + code],
        cwd=tmp_path,
        env=env | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert found["code"] == ["transformers_modules", "diffusers_modules", "diffusers_modules"]
    check_classifier(found["classifier"], expected["classifier"])
    check_pipeline(found["pipeline"], expected["pipeline"])
    assert found["dataset"] == expected["dataset"]
    check_cmmd(found["cmmd"], expected["cmmd"])


def test_the_classifier_loads_with_this_packages_classes(published, expected):
    from hf_robust import get_loss
    from hf_robust.models import CnnSmallForImageClassification, load_model

    folder = published / "classifier"
    processor = AutoImageProcessor.from_pretrained(folder)
    models = [
        CnnSmallForImageClassification.from_pretrained(folder),
        AutoModelForImageClassification.from_pretrained(folder),
        AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True),
        load_model(folder, num_labels=10),
    ]
    for model in models:
        assert type(model) is CnnSmallForImageClassification
        check_classifier(classifier_results(model.eval(), processor), expected["classifier"])
    # The loss that the config names is known and gives the same numbers.
    logits = torch.tensor(expected["classifier"]["logits"])
    value = get_loss(models[0].config.robust_loss)(logits, torch.arange(8)).item()
    assert value == pytest.approx(expected["loss_of_logits"], rel=1e-4)


def test_the_pipeline_loads_beside_this_package(published, expected, fresh_code):
    from hf_dit import DiTImagePipeline

    for cls in (DiffusionPipeline, DiTImagePipeline):
        with pytest.raises(ValueError, match="trust_remote_code"):
            cls.from_pretrained(published / "pipeline")
        pipeline = cls.from_pretrained(published / "pipeline", trust_remote_code=True)
        assert type(pipeline).__module__.startswith("diffusers_modules.")
        check_pipeline(pipeline_results(pipeline), expected["pipeline"])


def test_the_model_of_the_pipeline_loads_with_this_packages_classes(published, expected):
    from hf_dit import DiTImagePipeline, DiTModel

    folder = published / "pipeline"
    model = DiTModel.from_pretrained(folder, subfolder="transformer")
    assert type(model) is DiTModel and model.config.attention == "na3"
    names = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["id2label"]
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipeline = DiTImagePipeline(model.eval(), scheduler, id2label=names)
    check_pipeline(pipeline_results(pipeline), expected["pipeline"])


def test_the_data_set_loads(published, expected):
    assert dataset_results(published / "dataset") == expected["dataset"]


def test_the_metric_loads(published, expected):
    check_cmmd(cmmd_results(published / "cmmd"), expected["cmmd"])
