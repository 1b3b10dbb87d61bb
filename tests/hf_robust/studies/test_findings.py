"""Label errors by frozen features, and what is made of them."""

import csv
import json

import datasets
import numpy as np
import pytest
from cleanlab.filter import find_label_issues as cleanlabs
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_robust.data.load import load_image_splits
from hf_robust.studies.folds import assign_folds
from hf_robust.studies.frozen import VARIANCES, linear_probabilities
from tests import ROOT
from tests.processes import run_process

ENCODER = """
import numpy as np

def colours(images):
    return np.stack([np.asarray(image.resize((2, 2)), dtype=np.float32).reshape(-1) for image in images])

def broken(images):
    raise RuntimeError("no network")

def short(images):
    return np.zeros((1, 3))
"""


@pytest.mark.parametrize(("spread", "chosen"), [(2.0, 0.1), (0.0, 0.001)])
def test_probabilities_are_scikit_learns(spread, chosen):
    """Of the prior under which labels that were held out are likeliest; where features tell nothing, the narrowest."""
    draw = np.random.default_rng(0)
    given = draw.integers(0, 4, 200)
    features = draw.normal(size=(200, 30)) + spread * np.eye(4, 30)[given]
    found = linear_probabilities(features, given, 5, seed=3)
    split, scored = PredefinedSplit(assign_folds(given, 5, 3)), {}
    for variance in VARIANCES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=variance, max_iter=1000))
        scored[variance] = cross_val_predict(model, features, given, cv=split, method="predict_proba")
    losses = {variance: log_loss(given, each) for variance, each in scored.items()}
    best = min(losses, key=losses.get)
    assert best == chosen
    np.testing.assert_allclose(found, scored[best])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 images of three colours in class folders, every seventh in a wrong one, of several sizes; one is no image."""
    folder, draw = tmp_path_factory.mktemp("job"), np.random.default_rng(0)
    (folder / "encoder.py").write_text(ENCODER)
    names, wrong = ["blue", "green", "red"], []
    for place in range(60):
        truth = place % 3
        label = (truth + 1) % 3 if place % 7 == 0 else truth
        pixels = draw.integers(0, 120, (20 + place % 7, 24, 3), dtype=np.uint8)
        pixels[..., 2 - truth] += 130
        path = folder / "photos" / names[label] / f"{place:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        wrong += [path.name] if label != truth else []
    (folder / "photos/red/broken.png").write_bytes(b"no image")
    return folder, wrong


def find(folder, *flags, status=0):
    words = ["--dataset", "photos", "--skip_corrupt", *flags, "--report_to", "none", "--use_cpu"]
    done = run_process(ROOT / "scripts/find_label_errors.py", *words, cwd=folder)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def test_the_wrong_files_are_named_shown_and_left_out(photos):
    folder, wrong = photos
    done = find(folder, "--features", "encoder.py:colours", "--output_dir", "out", "--save_cleaned", "cleaned")
    assert "cleaned (51 of 60 images kept, 9 dropped)\nwarning: too few images (60)" in done.stdout
    assert "label_errors.csv, .json and .png, labels" in done.stdout
    out = folder / "out"
    rows = list(csv.DictReader((out / "label_errors.csv").open()))
    assert sorted(row["file"].rpartition("/")[2] for row in rows) == sorted(wrong)
    assert json.loads((out / "label_errors.json").read_text())[0]["rank"] == 1
    given, probabilities = np.load(out / "labels.npy"), np.load(out / "pred_probs.npy")
    expected = cleanlabs(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    assert [int(row["index"]) for row in rows] == expected.tolist()
    with Image.open(out / "label_errors.png") as sheet:
        assert sheet.width > 600
    cleaned = datasets.load_dataset(str(folder / "cleaned"), split="train")
    assert len(cleaned) == 51 and cleaned.features["label"].names == ["blue", "green", "red"]
    bytes_of = cleaned.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert bytes_of["bytes"] == next((folder / "photos").rglob(bytes_of["path"])).read_bytes()
    again = load_image_splits(str(folder / "cleaned"), validation_split=0.2)
    assert again.label_names == ["blue", "green", "red"] and len(again.train) == 40


def test_relabelled_images_have_what_was_suggested(photos):
    folder, wrong = photos
    flags = ["--features", "encoder.py:colours", "--save_cleaned", "relabelled", "--cleaned", "relabel"]
    find(folder, *flags, "--output_dir", "out2")
    rows = datasets.load_dataset(str(folder / "relabelled"), split="train")
    rows = rows.cast_column("image", datasets.Image(decode=False))
    truth = {f"{place:02d}.png": place % 3 for place in range(60)}
    assert len(rows) == 60 and all(row["label"] == truth[row["image"]["path"]] for row in rows)
    assert sum(row["label"] != row["given_label"] for row in rows) == len(wrong)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "encoder.py:nothing"], "can't be imported: AttributeError"),
        (["--features", "encoder.py:short"], "features must be finite numbers of the shape"),
        (["--features", "encoder.py:colours", "--save_cleaned", "photos"], "save_cleaned must be a new folder"),
        (["--features", "encoder.py:colours", "--num_folds", "1"], "num_folds must be at least 2"),
    ],
)
def test_bad_input_is_one_line(photos, flags, message):
    done = find(photos[0], *flags, "--output_dir", "bad", status=2)
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
