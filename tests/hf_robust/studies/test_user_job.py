"""Someone's own photographs by commands alone: wrong labels are found, a network is trained, and loaded."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from hf_robust.noise.draw import make_noisy_labels
from tests import ROOT
from tests.processes import run_process

COUNT, SIDE = 400, 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not {"LANDSCAPES_DIR", "RESNET20_DIR"} <= set(os.environ), reason="needs the real data"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """400 photographs of many sizes and shapes in class folders, 30 % in a wrong one, and two damaged files."""
    folder, draw = tmp_path_factory.mktemp("job"), np.random.default_rng(0)
    rows = datasets.load_dataset(os.environ["LANDSCAPES_DIR"], split="train")
    names, labels = rows.features["label"].names, np.asarray(rows["label"])
    places = np.concatenate([draw.choice(np.flatnonzero(labels == label), COUNT // 4, False) for label in range(4)])
    clean = labels[places]
    given = make_noisy_labels(clean, "symmetric_30", num_classes=4, seed=0)
    wrong = set()
    for number, (place, truth, label) in enumerate(zip(places.tolist(), clean, given, strict=True)):
        image = rows[place]["image"].convert("RGB")
        width, height = (int(side) for side in draw.integers(70, 97, 2))
        left, top = draw.integers(0, 97 - width), draw.integers(0, 97 - height)
        scale = draw.uniform(0.8, 3)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        path = folder / "photos" / names[label] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
        wrong |= {path.name} if truth != label else set()
    whole = (folder / "photos" / names[given[0]] / "000.jpg").read_bytes()
    (folder / "photos" / names[0] / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "photos" / names[1] / "empty.jpg").write_bytes(b"")
    return folder, wrong


def run(folder, script, *flags):
    words = ["--dataset", "photos", "--skip_corrupt", *flags, "--report_to", "none", "--use_cpu"]
    done = run_process(ROOT / "scripts" / script, *words, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_wrong_labels_are_found(photos):
    from cleanlab.filter import find_label_issues

    folder, wrong = photos
    done = run(folder, "find_label_errors.py", "--features", "resnet20_encoder:encode_layers", "--output_dir", "found")
    assert "2 of 402 train images are left out" in done.stderr
    rows = json.loads((folder / "found/label_errors.json").read_text())
    right = [Path(row["file"]).name in wrong for row in rows]
    assert np.mean(right) >= 0.6  # twice the share of wrong labels
    assert sum(right) / len(wrong) > 0.5
    given, probabilities = (np.load(folder / f"found/{name}.npy") for name in ("labels", "pred_probs"))
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    assert [row["index"] for row in rows] == ranked.tolist()


def test_a_vision_transformer_is_trained_published_and_loaded(photos):
    folder, _ = photos
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=SIDE, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder / "vit")
    run(
        folder, "train_robust.py", "--model", "vit", "--resolution", str(SIDE), "--validation_split", "0.2",
        "--loss", "gce", "--num_train_epochs", "12", "--optim", "adamw_torch", "--learning_rate", "1e-3",
        "--per_device_train_batch_size", "32", "--output_dir", "trained",
    )  # fmt: skip
    results = json.loads((folder / "trained/results.json").read_text())
    assert results["noise"]["test_labels"] == "given"
    assert results["accuracy"]["best"] > 0.3  # of 4 classes with 30 % wrong labels
    assert results["train_images"] + results["test_images"] == COUNT
    classify = pipeline("image-classification", model=str(folder / "trained"))
    file = next((folder / "photos").rglob("1*.jpg"))
    assert {each["label"] for each in classify(str(file))} == set(results["label_names"])
