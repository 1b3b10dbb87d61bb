import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest

from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.noise.semantic import SEMANTIC_TARGETS
from tests.hf_robust.noise.samples import pictures, uneven_labels

# ----------------------------------------------------------------------------------------------- transition matrices


def test_symmetric_matrix():
    np.testing.assert_allclose(transition_matrix("symmetric_30", 4), np.eye(4) * 0.6 + 0.1, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(transition_matrix("symmetric_100", 2), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(transition_matrix("symmetric_0", 3), np.eye(3))


def test_asymmetric_matrix():
    expected = [[0.875, 0.125, 0], [0, 0.875, 0.125], [0.125, 0, 0.875]]
    np.testing.assert_array_equal(transition_matrix("asymmetric_12.5", 3), expected)


def test_semantic_matrix():
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    moves = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    expected = np.eye(10)
    for clean, noisy in moves.items():
        expected[names.index(clean)] = 0.75 * np.eye(10)[names.index(clean)] + 0.25 * np.eye(10)[names.index(noisy)]
    np.testing.assert_array_equal(transition_matrix("semantic_25", 10), expected)


@pytest.mark.parametrize("spec", ["clean", "symmetric_33.3", "asymmetric_100", "semantic_7"])
def test_rows_sum_to_one(spec):
    matrix = transition_matrix(spec, 10)
    assert matrix.dtype == np.float64 and matrix.shape == (10, 10) and (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-15)


def test_matrices_that_do_not_exist():
    with pytest.raises(ValueError, match="realised_matrix"):
        transition_matrix("instance_40", 10)
    with pytest.raises(ValueError, match="10 classes of CIFAR-10, got 9"):
        transition_matrix("semantic_40", 9)
    with pytest.raises(ValueError, match="num_classes: expected an int >= 2, got 1"):
        transition_matrix("symmetric_40", 1)
    with pytest.raises(TypeError, match="num_classes"):
        transition_matrix("symmetric_40", 10.0)


# -------------------------------------------------------------------------------------------------------------- quota


@pytest.mark.parametrize("rate", [0, 0.5, 12.5, 40, 99.9, 100])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "semantic", "instance"])
def test_quota_is_exact_in_all_and_in_every_class_to_one_image(kind, rate):
    labels = uneven_labels(10)
    noisy = make_noisy_labels(labels, f"{kind}_{rate}", num_classes=10, seed=3, images=pictures(len(labels)))
    assert noisy.dtype == np.int64 and noisy.shape == labels.shape
    sources = list(SEMANTIC_TARGETS) if kind == "semantic" else range(10)
    share = Fraction(str(rate)) / 100
    assert (noisy != labels).sum() == round(share * int(np.isin(labels, sources).sum()))
    remainders = {}
    for clean_class in range(10):
        of_class = noisy[labels == clean_class]
        counts = np.bincount(of_class, minlength=10)
        flips = len(of_class) - counts[clean_class]
        exact = share * len(of_class) if clean_class in sources else Fraction(0)
        assert flips in (math.floor(exact), math.ceil(exact))
        remainders.setdefault(bool(flips > exact), []).append(exact - math.floor(exact))
        if kind == "symmetric":
            others = np.delete(counts, clean_class)
            assert others.max() - others.min() <= 1
        if kind == "asymmetric":
            assert counts[(clean_class + 1) % 10] == flips
        if kind == "semantic" and flips:
            assert counts[SEMANTIC_TARGETS[clean_class]] == flips
    # Rounded up are those that lose most by rounding down.
    assert min(remainders.get(True, [1])) >= max((r for r in remainders.get(False, []) if r > 0), default=0)


@pytest.mark.parametrize(
    ("per_class", "spec", "flips"),
    [(1, "symmetric_40", 40), (2, "symmetric_30", 60), (1, "asymmetric_12.5", 12), (3, "instance_33.3", 100)],
)
def test_many_small_classes_have_the_rate_together(per_class, spec, flips):
    labels = np.tile(np.arange(100), per_class)
    draw = {"num_classes": 100, "images": pictures(len(labels), shape=(2,))}
    drawn = [make_noisy_labels(labels, spec, **draw, seed=seed) != labels for seed in range(150)]
    assert {int(wrong.sum()) for wrong in drawn} == {flips}
    # Which of the classes that lose the same are rounded up is drawn: over seeds all are.
    assert np.isin(np.arange(100), np.concatenate([labels[wrong] for wrong in drawn])).all()
    again = make_noisy_labels(labels, spec, **draw, seed=7) != labels
    np.testing.assert_array_equal(again, drawn[7])


def test_quota_rounds_as_python_does():
    # Half an image: 2.5 of 5 rounds to 2, 3.5 of 7 to 4.
    for count, flips in ((5, 2), (7, 4)):
        labels = np.zeros(count, int)
        assert (make_noisy_labels(labels, "symmetric_50", num_classes=2) != labels).sum() == flips


def test_which_remainder_class_is_not_always_the_same():
    # One flip per class and nine targets: over seeds every target turns up.
    labels = np.zeros(10, int)
    drawn = {int(make_noisy_labels(labels, "symmetric_10", num_classes=10, seed=s).max()) for s in range(100)}
    assert drawn == set(range(1, 10))


def test_every_image_of_a_class_is_as_likely_to_flip():
    # 400 draws of 3 out of 10: each count is binomial(400, 0.3), standard deviation 9.2, here within 4 of them.
    labels = np.zeros(10, int)
    flips = sum(make_noisy_labels(labels, "symmetric_30", num_classes=3, seed=s) != 0 for s in range(400))
    assert flips.sum() == 1200 and abs(flips - 120).max() < 37


def test_missing_and_single_image_classes():
    labels = [7, 2, 2, 2]  # a list; eight classes have no image
    noisy = make_noisy_labels(labels, "asymmetric_100", num_classes=10)
    assert noisy.tolist() == [8, 3, 3, 3]
    assert make_noisy_labels([4], "clean", num_classes=5).tolist() == [4]


def test_input_is_left_alone():
    labels = uneven_labels(10)
    kept = labels.copy()
    for sampling in ("quota", "bernoulli"):
        make_noisy_labels(labels, "symmetric_90", num_classes=10, sampling=sampling)
        make_noisy_labels(labels, "instance_90", num_classes=10, sampling=sampling, images=pictures(len(labels)))
    make_noisy_labels(labels, "semantic_90", num_classes=10, contaminated=True)
    np.testing.assert_array_equal(labels, kept)


# ---------------------------------------------------------------------------------------------------------- bernoulli


def test_bernoulli_follows_the_matrix():
    # Pearson's statistic of each row's counts, K - 1 = 4 degrees of freedom: 23.5 is exceeded once in 10,000 rows.
    num_classes, per_class = 5, 20_000
    labels = np.repeat(np.arange(num_classes), per_class)
    noisy = make_noisy_labels(labels, "symmetric_30", num_classes=num_classes, seed=1, sampling="bernoulli")
    expected = per_class * (np.eye(num_classes) * 0.625 + 0.075)
    observed = np.array([np.bincount(noisy[labels == i], minlength=num_classes) for i in range(num_classes)])
    statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
    assert statistic.max() < 23.5
    assert statistic.max() > 0.05  # a draw, not a quota


def test_bernoulli_on_sparse_rows():
    labels = np.repeat(np.arange(10), 4000)
    noisy = make_noisy_labels(labels, "semantic_20", num_classes=10, sampling="bernoulli")
    for clean_class in range(10):
        counts = np.bincount(noisy[labels == clean_class], minlength=10)
        target = SEMANTIC_TARGETS.get(clean_class, clean_class)
        assert counts[clean_class] + (counts[target] if target != clean_class else 0) == 4000
        if target != clean_class:
            assert abs(counts[target] - 800) < 4 * math.sqrt(4000 * 0.2 * 0.8)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_bernoulli_at_both_ends(kind):
    labels = uneven_labels(7)
    images = pictures(len(labels))
    draw = {"num_classes": 7, "images": images, "sampling": "bernoulli"}
    np.testing.assert_array_equal(make_noisy_labels(labels, f"{kind}_0", **draw), labels)
    assert (make_noisy_labels(labels, f"{kind}_100", **draw) != labels).all()


# -------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize(
    ("spec", "contaminated", "digest"),
    [
        ("symmetric_40", False, "575e4434744cab12"),
        ("asymmetric_12.5", False, "ea90fc94477c4cab"),
        ("semantic_30", False, "983e123f47685aa2"),
        ("semantic_30", True, "aa954deebb6533ff"),
        ("instance_60", False, "94ee4982b7d20506"),
    ],
)
def test_labels_are_the_same_everywhere(spec, contaminated, digest):
    # Published data sets rest on these draws: a change of the stream must not pass unseen.
    labels = uneven_labels(10, seed=1)
    draw = {"images": pictures(len(labels), seed=1), "contaminated": contaminated}
    noisy = make_noisy_labels(labels, spec, num_classes=10, seed=2, **draw)
    assert hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        ("symmetric_40", "9a82919cb948bfa9"),
        ("symmetric_12.5", "95fe12b7bd18e649"),
        ("asymmetric_30", "eacccfc4550a1f0d"),
        ("semantic_33.5", "8bfee1210225df3f"),
        ("instance_60", "90755b27af7b997b"),
    ],
)
def test_where_nothing_is_rounded_the_labels_are_those_of_version_1(spec, digest):
    # As 0.1 drew them. On CIFAR-10, 5,000 images a class, that holds for all published rates.
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10), 200))
    images = generator.integers(0, 256, (2000, 4, 4, 3), dtype=np.uint8)
    noisy = make_noisy_labels(labels, spec, num_classes=10, seed=2, images=images)
    assert hashlib.sha256(noisy.astype("<i8").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("symmetric_40", {"sampling": "quota"}),
        ("symmetric_40", {"sampling": "bernoulli"}),
        ("instance_40", {"sampling": "quota"}),
        ("instance_40", {"sampling": "bernoulli"}),
        ("semantic_40", {"contaminated": True}),
    ],
)
def test_draws_depend_on_spec_and_seed_alone(spec, options):
    labels = uneven_labels(10)
    draw = {"num_classes": 10, "images": pictures(len(labels))} | options
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first = make_noisy_labels(labels, spec, seed=0, **draw)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(1)
    np.testing.assert_array_equal(make_noisy_labels(labels.astype(np.uint8), spec, seed=np.int64(0), **draw), first)
    assert (make_noisy_labels(labels, spec, seed=1, **draw) != first).any()
    assert (make_noisy_labels(labels, spec, seed=2**80, **draw) != first).any()


def test_specs_are_independent_under_one_seed():
    # Two independent choices of 40 % of 5,000 share 800 images, standard deviation 24 (hypergeometric).
    labels = np.zeros(5000, int)
    flips = [make_noisy_labels(labels, spec, num_classes=3) != 0 for spec in ("symmetric_40", "asymmetric_40")]
    assert abs((flips[0] & flips[1]).sum() - 800) < 100


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, r"labels: expected values in 0\.\.9, got 10 at position 2 \(1 of 3", {"labels": [0, 9, 10]}),
        (ValueError, "got -1 at position 0", {"labels": [-1, 0]}),
        (ValueError, r"labels: expected shape \(N,\)", {"labels": [[0, 1]]}),
        (ValueError, "N >= 1", {"labels": []}),
        (TypeError, "labels: expected integers, got dtype float64", {"labels": [0.0, 1.0]}),
        (TypeError, "labels: expected integers, got dtype bool", {"labels": [True]}),
        (ValueError, "sampling: unknown 'exact'; allowed are quota, bernoulli", {"sampling": "exact"}),
        (ValueError, "seed: expected an int >= 0, got -1", {"seed": -1}),
        (TypeError, "seed: expected an int >= 0, got None", {"seed": None}),
        (TypeError, "seed", {"seed": 1.0}),
        (ValueError, "num_classes", {"num_classes": 1}),
        (ValueError, "spec: unknown noise 'uniform_40'", {"spec": "uniform_40"}),
        (ValueError, "10 classes of CIFAR-10", {"spec": "semantic_40", "num_classes": 11}),
        (ValueError, "images: instance noise .* got None", {"spec": "instance_40"}),
        (TypeError, "images: .*uint8.*float64", {"spec": "instance_40", "images": np.zeros((3, 4))}),
        (ValueError, r"images: expected shape \(3, \.\.\.\)", {"spec": "instance_40", "images": pictures(2)}),
        (ValueError, "images: ", {"spec": "instance_40", "images": np.zeros(3, np.uint8)}),
    ],
)
def test_bad_arguments(error, match, arguments):
    arguments = {"labels": [0, 1, 2], "spec": "symmetric_40", "num_classes": 10} | arguments
    with pytest.raises(error, match=match):
        make_noisy_labels(**arguments)
