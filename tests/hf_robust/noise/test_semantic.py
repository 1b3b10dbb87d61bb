import math

import numpy as np
import pytest

from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.noise.labels import realised_matrix
from hf_robust.noise.semantic import SEMANTIC_TARGETS
from hf_robust.noise.spec import NoiseSpec
from tests.hf_robust.noise.samples import uneven_labels


@pytest.mark.parametrize("rate", [0, 12.5, 40, 100])
def test_contaminated_matrix(rate):
    # The exact matrix but for the cats: r^2 of them are called dogs for a while and cats again in the end.
    expected = transition_matrix(NoiseSpec("semantic", rate), 10)
    cat, dog, r = 3, 5, rate / 100
    expected[cat, [cat, dog]] = 1 - r + r**2, r * (1 - r)
    matrix = transition_matrix(NoiseSpec("semantic", rate), 10, contaminated=True)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-15)
    wrong = (5 * r - r**2) / 10  # .184 at 40 %, where the exact noise has .2
    assert 1 - np.trace(matrix) / 10 == pytest.approx(wrong, abs=1e-15)


def test_only_semantic_noise_has_a_contaminated_matrix():
    for spec in ("clean", "symmetric_40", "asymmetric_40", "instance_40"):
        with pytest.raises(ValueError, match=f"contaminated: True is allowed with semantic_RR alone, got spec {spec}"):
            transition_matrix(spec, 10, contaminated=True)
    with pytest.raises(ValueError, match="10 classes of CIFAR-10, got 9"):
        transition_matrix("semantic_40", 9, contaminated=True)


@pytest.mark.parametrize(
    ("rate", "overall", "cat", "dog"),
    [(10, 0.0492, 0.091, 0.101), (20, 0.0956, 0.158, None), (30, 0.1419, 0.214, None), (40, 0.1844, 0.242, 0.402)],
)
def test_contaminated_rates_are_those_of_the_papers_code(rate, overall, cat, dog):
    # Counted once on what that code makes of CIFAR-10. Only the number of dogs drawn that are cats is random, and
    # hypergeometric; theirs and this draw differ by at most 4 deviations of the difference of two, and their rounding.
    labels = np.repeat(np.arange(10), 5000)
    noisy = make_noisy_labels(labels, f"semantic_{rate}", num_classes=10, contaminated=True)
    cats, drawn, called_dogs = 50 * rate, rate * (5000 + 50 * rate) / 100, 5000 + 50 * rate
    share = cats / called_dogs
    deviation = math.sqrt(drawn * share * (1 - share) * (called_dogs - drawn) / (called_dogs - 1))
    tolerance = 4 * math.sqrt(2) * deviation
    wrong = noisy != labels
    assert abs(wrong.mean() - overall) < 2 * tolerance / 50_000 + 0.00005
    assert abs(wrong[labels == 3].mean() - cat) < tolerance / 5000 + 0.0005
    if dog is not None:
        assert abs(wrong[labels == 5].mean() - dog) < tolerance / 5000 + 0.0005
    for clean_class in (2, 4, 9):
        assert wrong[labels == clean_class].sum() == 50 * rate
    assert not wrong[np.isin(labels, (0, 1, 6, 7, 8))].any()


@pytest.mark.parametrize("rate", [0, 0.5, 12.5, 29, 40, 99.9, 100])
def test_contaminated_counts(rate):
    # How many images carry each label in the end is not random: bookkeeping alone tells it.
    labels = uneven_labels(10)
    counts = [31 + 13 * i for i in range(10)]
    for source, target in zip([9, 2, 3, 5, 4], [1, 0, 5, 3, 7], strict=True):
        flips = int(rate / 100 * counts[source])
        counts[source] -= flips
        counts[target] += flips
    noisy = make_noisy_labels(labels, f"semantic_{rate}", num_classes=10, seed=4, contaminated=True)
    assert noisy.dtype == np.int64 and np.bincount(noisy, minlength=10).tolist() == counts
    flipped = noisy != labels
    assert all(noisy[i] == SEMANTIC_TARGETS[labels[i]] for i in np.flatnonzero(flipped))
    for clean_class in (2, 4, 9):
        assert flipped[labels == clean_class].sum() == int(rate / 100 * (31 + 13 * clean_class))


def test_contaminated_cats_and_dogs_at_both_ends():
    # At 100 % every cat turns dog, and then every dog cat: no cat is wrong, and every dog.
    labels = np.array([3, 5, 3, 3, 5, 9, 2, 4, 6])
    noisy = make_noisy_labels(labels, "semantic_100", num_classes=10, contaminated=True)
    assert noisy.tolist() == [3, 3, 3, 3, 3, 1, 0, 7, 6]
    np.testing.assert_array_equal(make_noisy_labels(labels, "semantic_0", num_classes=10, contaminated=True), labels)
    # Without dogs, cats still turn back: 4 of 8, then 2 of those 4.
    noisy = make_noisy_labels([3] * 8, "semantic_50", num_classes=10, contaminated=True)
    assert sorted(noisy.tolist()) == [3] * 6 + [5] * 2


def test_contaminated_rounds_down_in_floating_point():
    # 0.29 * 100 is 28.999999999999996: that code flips 28. The exact noise rounds, to 29.
    labels = np.full(100, 9)
    for rate in (29, np.float32(29)):
        noisy = make_noisy_labels(labels, NoiseSpec("semantic", rate), num_classes=10, contaminated=True)
        assert (noisy != labels).sum() == 28
    assert (make_noisy_labels(labels, "semantic_29", num_classes=10) != labels).sum() == 29


def test_contaminated_draws_follow_the_matrix():
    # Uneven classes of whole counts, 100 draws: 800 cats turn dog, then 40 % of 1,800 dogs (deviation 13.9) turn cat.
    labels = np.repeat(np.arange(10), [10, 20, 500, 2000, 50, 1000, 10, 10, 10, 300])
    expected = transition_matrix("semantic_40", 10, contaminated=True)
    draws = [make_noisy_labels(labels, "semantic_40", num_classes=10, seed=s, contaminated=True) for s in range(100)]
    mean = np.mean([realised_matrix(labels, noisy, 10) for noisy in draws], axis=0)
    tolerance = np.full((10, 1), 1e-12)
    tolerance[[3, 5], 0] = 4 * 13.9 / 10 / np.array([2000, 1000])
    assert (abs(mean - expected) < tolerance).all()


def test_every_called_dog_is_as_likely_to_turn_cat():
    # 10 cats and 10 dogs at 50 %: 7 of the 15 called dogs turn cat. So a dog is wrong with probability 7 / 15, a cat
    # with 1 / 2 * 8 / 15; counts over 400 draws are binomial, deviations 10.0 and 8.8.
    labels = np.repeat([3, 5], 10)
    draw = {"num_classes": 10, "contaminated": True}
    flips = sum(make_noisy_labels(labels, "semantic_50", seed=s, **draw) != labels for s in range(400))
    assert abs(flips[:10] - 400 * 4 / 15).max() < 4 * 8.8
    assert abs(flips[10:] - 400 * 7 / 15).max() < 4 * 10.0


def test_contaminated_stream_is_its_own():
    # As for two specs: two independent choices of 2,000 of 5,000 trucks share 800, deviation 17.
    labels = np.full(5000, 9)
    exact, contaminated = (
        make_noisy_labels(labels, "semantic_40", num_classes=10, contaminated=flag) != labels for flag in (False, True)
    )
    assert abs((exact & contaminated).sum() - 800) < 70


@pytest.mark.parametrize(
    ("spec", "sampling"),
    [
        ("clean", "quota"),
        ("symmetric_40", "quota"),
        ("asymmetric_40", "quota"),
        ("instance_40", "quota"),
        ("semantic_40", "bernoulli"),
        ("symmetric_40", "bernoulli"),
    ],
)
def test_contaminated_is_refused_elsewhere(spec, sampling):
    message = (
        f"contaminated: True is allowed with semantic_RR and sampling 'quota' alone, got spec {spec} .*{sampling}"
    )
    with pytest.raises(ValueError, match=message):
        make_noisy_labels([3, 5], spec, num_classes=10, sampling=sampling, contaminated=True)
