import numpy as np
import pytest
import torch

from hf_dit.generation.plan import batch_starts, class_counts_of, image_labels
from hf_dit.studies.cells import image_generators, image_seeds


@pytest.mark.parametrize("sampling", ["balanced", "drawn"])
@pytest.mark.parametrize("counts", [None, [5, 0, 2]])
def test_a_label_does_not_depend_on_how_many_there_are(sampling, counts):
    whole = image_labels(1000, [7, 3, 9], sampling, counts, seed=4)
    assert whole.dtype == np.int64 and set(whole) == ({7, 3, 9} if counts is None else {7, 9})
    for count in (1, 2, 999):
        assert np.array_equal(image_labels(count, [7, 3, 9], sampling, counts, seed=4), whole[:count])


def test_balanced_labels_come_in_turn_and_differ_by_one_at_most():
    assert image_labels(7, [4, 0, 2], "balanced", None, seed=1).tolist() == [4, 0, 2, 4, 0, 2, 4]
    labels = image_labels(50_000, range(1000), "balanced", None, seed=0)
    assert class_counts_of(labels, 1000) == [50] * 1000
    # Equal counts are no counts.
    assert np.array_equal(image_labels(5000, range(1000), "balanced", [7] * 1000, 0), labels[:5000])


def test_balanced_labels_keep_to_given_proportions_all_along():
    shares = np.random.default_rng(0).integers(0, 1000, 30)
    labels = image_labels(5000, range(30), "balanced", shares.tolist(), seed=0)
    seen = np.cumsum(np.eye(30)[labels], axis=0)
    due = np.arange(1, 5001)[:, None] * shares / shares.sum()
    # Greedy by what lags most: never more than one image too many; a rare class may wait a little longer.
    assert (seen - due).max() < 1 and np.abs(seen - due).max() < 2


def test_drawn_labels_have_the_frequencies_that_were_asked_for():
    labels = image_labels(60_000, range(3), "drawn", [1, 2, 3], seed=0)
    expected = np.array([10_000, 20_000, 30_000])
    deviation = np.sqrt(expected * (1 - expected / 60_000))
    assert (np.abs(class_counts_of(labels, 3) - expected) < 4 * deviation).all()
    # Independent of each other: pairs have the product of the frequencies.
    pairs = np.bincount(3 * labels[::2] + labels[1::2], minlength=9) / 30_000
    assert np.abs(pairs - np.outer(expected, expected).ravel() / 60_000**2).max() < 0.01
    assert not np.array_equal(labels, image_labels(60_000, range(3), "drawn", [1, 2, 3], seed=1))


def test_wrong_numbers_of_counts():
    with pytest.raises(ValueError, match="class_counts must be one for each of the 3 classes; got 2"):
        image_labels(4, range(3), "balanced", [1, 2], seed=0)


def test_batches_are_cut_from_the_numbers():
    assert list(batch_starts(10, 4)) == [0, 4, 8] and list(batch_starts(1, 4)) == [0]


def test_seeds_are_those_of_a_study():
    for generator, seed in zip(image_generators(3, 5), image_seeds(3, 9), strict=False):
        assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=seeded(seed)))


def seeded(seed):
    return torch.Generator().manual_seed(seed)
