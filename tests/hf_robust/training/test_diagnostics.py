import numpy as np
import pytest
import scipy.special
from transformers import EvalPrediction

from hf_robust.training.diagnostics import (
    MemorisationCallback,
    ThroughputCallback,
    classification_metrics,
    loss_separation,
    memorisation,
)


def test_classification_metrics_match_numpy_and_skip_ignored_labels():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(11, 4)).astype(np.float32), rng.integers(0, 4, 11)
    labels[[2, 7]] = -100
    kept = labels != -100
    log_probs = scipy.special.log_softmax(logits.astype(np.float64), axis=1)[kept, labels[kept]]
    metrics = classification_metrics(EvalPrediction(logits, labels))
    assert metrics["accuracy"] == pytest.approx(np.mean(logits[kept].argmax(1) == labels[kept]))
    assert metrics["cross_entropy"] == pytest.approx(-log_probs.mean(), rel=1e-12)
    assert classification_metrics(EvalPrediction((logits, "hidden"), labels)) == metrics


def test_classification_metrics_refuse_other_shapes():
    with pytest.raises(ValueError, match="N, K"):
        classification_metrics(EvalPrediction(np.zeros((3, 4, 2)), np.zeros((3, 4))))


def test_memorisation_by_hand():
    clean = np.array([0, 0, 1, 1, 2, 2])
    given = np.array([0, 1, 1, 2, 2, 0])
    predicted = np.array([0, 1, 1, 1, 0, 1])  # of the flipped 1, 3, 5: memorised, recovered, neither
    assert memorisation(predicted, given, clean) == pytest.approx(
        {"clean_accuracy": 3 / 6, "given_accuracy": 3 / 6, "memorised": 1 / 3, "recovered": 1 / 3}
    )


def test_memorisation_without_flips_has_no_shares_of_them():
    labels = np.array([0, 1, 2])
    assert memorisation(labels, labels, labels) == {"clean_accuracy": 1.0, "given_accuracy": 1.0}


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_separation_counts_pairs_and_every_image(scale):
    rng = np.random.default_rng(0)
    losses = scale * rng.integers(0, 7, 61).astype(float)  # with ties
    flipped = rng.random(61) < 0.4
    losses[flipped] += scale
    separation = loss_separation(losses, flipped, bins=5)
    pairs = [(a > b) + 0.5 * (a == b) for a in losses[flipped] for b in losses[~flipped]]
    assert separation["separation_auc"] == pytest.approx(np.mean(pairs), rel=1e-12)
    histogram = separation["loss_histogram"]
    assert np.diff(histogram["edges"]) == pytest.approx(np.diff(histogram["edges"]).mean())
    assert (sum(histogram["clean"]), sum(histogram["flipped"])) == ((~flipped).sum(), flipped.sum())
    first_edge = histogram["edges"][1]
    assert histogram["flipped"][0] == (losses[flipped] < first_edge).sum()


def test_separation_of_equal_losses_is_a_half():
    separation = loss_separation(np.ones(4), np.array([True, False, False, True]))
    assert separation["separation_auc"] == 0.5
    assert sum(separation["loss_histogram"]["clean"]) == sum(separation["loss_histogram"]["flipped"]) == 2


def test_callback_needs_clean_labels():
    class Unlabelled:
        clean_labels = None

    with pytest.raises(ValueError, match="clean_labels"):
        MemorisationCallback(None, Unlabelled())


def test_throughput_counts_plain_steps_only(monkeypatch):
    clock = iter([0.0, 2.0, 4.0, 100.0, 102.0])
    monkeypatch.setattr("hf_robust.training.diagnostics.time.perf_counter", lambda: next(clock))
    throughput = ThroughputCallback(images_per_epoch=100, steps_per_epoch=10)
    assert throughput.images_per_second is None
    for _ in range(3):
        throughput.on_step_end(None, None, None)
    throughput.on_evaluate(None, None, None)
    for _ in range(2):
        throughput.on_step_end(None, None, None)
    assert throughput.images_per_second == pytest.approx(10 / 2)  # three steps of 10 images, 2 s each
