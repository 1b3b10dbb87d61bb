"""How often the interval of the share of wrong labels holds the truth, on photographs and labels of people."""

import os

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_robust.noise.bounds import noise_bounds
from hf_robust.noise.draw import make_noisy_labels
from hf_robust.studies.frozen import linear_probabilities

TRIALS, SIZE, CLASSES = 50, 600, 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not {"CIFAR10_DIR", "RESNET20_DIR", "CIFAR10N_FILE"} <= set(os.environ), reason="needs the real data"
    ),
]


@pytest.fixture(scope="module")
def features():
    """split -> features (4000, 64) of a network that was trained on the train split, and clean labels."""
    from scripts.resnet20_encoder import encode

    found = {}
    for split in ("train", "test"):
        rows = datasets.load_dataset(os.environ["CIFAR10_DIR"], split=f"{split}[:4000]")
        vectors = [encode(rows[start : start + 250]["img"]).numpy() for start in range(0, len(rows), 250)]
        found[split] = np.concatenate(vectors), np.asarray(rows["label"])
    return found


def bounds_of_trials(vectors, clean, make, dimensions=64):
    """Bounds and true share of so many draws of 600 images."""
    for trial in range(TRIALS):
        places = np.random.default_rng(trial).choice(len(clean), SIZE, replace=False)
        given = make(places, trial)
        probabilities = np.zeros((SIZE, CLASSES))
        found = linear_probabilities(vectors[places, :dimensions], given, 5, trial)
        probabilities[:, : found.shape[1]] = found
        yield noise_bounds(probabilities, given), np.mean(given != clean[places])


@pytest.mark.parametrize("rate", [10, 20, 30, 40])
def test_synthetic_noise(features, rate):
    vectors, clean = features["test"]

    def make(places, trial):
        return make_noisy_labels(clean[places], f"symmetric_{rate}", num_classes=CLASSES, seed=trial)

    told = [(b["rate_interval"], truth) for b, truth in bounds_of_trials(vectors, clean, make) if b["verdict"] == "ok"]
    assert len(told) >= 0.8 * TRIALS
    assert sum(low <= truth <= high for (low, high), truth in told) >= 0.9 * len(told)


@pytest.mark.parametrize("labels", ["human_aggregate", "human_worst"])
def test_labels_of_people(features, labels):
    vectors, clean = features["train"]
    given = pq.read_table(os.environ["CIFAR10N_FILE"])[labels].to_numpy().astype(np.int64)[: len(clean)]
    told = [
        (b["rate_interval"], truth)
        for b, truth in bounds_of_trials(vectors, clean, lambda places, _: given[places])
        if b["verdict"] == "ok"
    ]
    assert len(told) >= 0.8 * TRIALS
    assert sum(low <= truth <= high for (low, high), truth in told) >= 0.9 * len(told)


def test_of_one_feature_nothing_is_told(features):
    """A classifier that is right on a quarter of the images."""
    vectors, clean = features["test"]
    noisy = make_noisy_labels(clean, "symmetric_20", num_classes=CLASSES, seed=0)
    verdicts = [b["verdict"] for b, _ in bounds_of_trials(vectors, clean, lambda places, _: noisy[places], 1)]
    assert set(verdicts) == {"cannot tell"}
