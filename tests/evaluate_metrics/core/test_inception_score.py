"""Values of torch-fidelity 0.4.0, closed forms, and what the order of images does."""

import pytest
import torch

from evaluate_metrics.core.inception_score import inception_score

# seed, images, classes, scale of `randn`: the score in 1 part; in 10, shuffled; in 10, in order.
GOLDEN = [
    (0, 1000, 10, 1, (1.47592844, 0), (1.46712696, 0.02048171), (1.46836126, 0.02588732)),
    (1, 1000, 1008, 3, (32.08482397, 0), (21.91822754, 0.93547671), (21.96773585, 0.69050075)),
    (2, 103, 5, 2, (1.96154054, 0), (1.84332076, 0.16364617), (1.85656975, 0.22036518)),
]


@pytest.mark.parametrize(("seed", "n", "classes", "scale", "whole", "shuffled", "ordered"), GOLDEN)
def test_values_of_torch_fidelity(seed, n, classes, scale, whole, shuffled, ordered):
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed)) * scale
    for splits, shuffle, expected in ((1, True, whole), (10, True, shuffled), (10, False, ordered)):
        result = inception_score(logits, splits, shuffle)
        assert result[:2] == pytest.approx(expected, rel=1e-7, abs=1e-8)
        assert (result.splits, result.n) == (splits, n)


def test_sure_and_even_is_the_number_of_classes_and_unsure_is_1():
    sure = torch.eye(10).repeat(10, 1) * 1e4  # other classes have probability 0
    assert inception_score(sure, 1).mean == pytest.approx(10, rel=1e-12)
    assert inception_score(torch.zeros(100, 7), 5)[:2] == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(torch.zeros(1, 7), 1).mean == pytest.approx(1)
    # Two sure classes in a share of 1 : 3 have exp of their entropy.
    logits = torch.eye(2)[[0, 1, 1, 1]] * 1e4
    entropy = -(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log())
    assert inception_score(logits.repeat(5, 1), 1).mean == pytest.approx(float(entropy.exp()), rel=1e-6)


def test_samples_in_the_order_of_classes_are_shuffled():
    logits = torch.eye(20).repeat_interleave(50, 0) * 12
    assert inception_score(logits).mean > 5 * inception_score(logits, shuffle=False).mean


@pytest.mark.parametrize(
    ("splits", "n", "words"),
    [
        (10, 9, "in 10 splits needs 10 images or more, got 9"),
        (0, 9, "splits must be an integer of 1 or more, got 0"),
        (1, 0, "needs 1 images or more, got 0"),
    ],
)
def test_too_few(splits, n, words):
    with pytest.raises(ValueError, match=words):
        inception_score(torch.zeros(n, 3), splits)
