import hashlib
import math

import numpy as np
import pytest

from hf_robust.noise.spec import (
    SEMANTIC_TARGETS,
    NoiseSpec,
    _generator,
    _instance_targets,
    _instance_weights,
    make_noisy_labels,
    realised_matrix,
    realised_rate,
    transition_matrix,
)


def uneven_labels(num_classes, seed=0):
    # Classes of 31, 44, 57, ... images, shuffled: no count is a round number.
    labels = np.repeat(np.arange(num_classes), 31 + 13 * np.arange(num_classes))
    return np.random.default_rng(seed).permutation(labels)


def pictures(count, seed=0, shape=(5, 7, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("text", "kind", "rate", "canonical"),
    [
        ("clean", "clean", 0, "clean"),
        ("symmetric_40", "symmetric", 40, "symmetric_40"),
        ("symmetric_040.0", "symmetric", 40, "symmetric_40"),
        ("asymmetric_12.5", "asymmetric", 12.5, "asymmetric_12.5"),
        ("semantic_0", "semantic", 0, "semantic_0"),
        ("instance_100", "instance", 100, "instance_100"),
        ("symmetric_0.1", "symmetric", 0.1, "symmetric_0.1"),
        ("symmetric_1e-7", "symmetric", 1e-7, "symmetric_1e-07"),
    ],
)
def test_parse_and_canonical_name(text, kind, rate, canonical):
    spec = NoiseSpec.parse(text)
    assert (spec.kind, spec.rate, str(spec)) == (kind, rate, canonical)
    assert NoiseSpec.parse(canonical) == spec
    assert NoiseSpec.parse(spec) is spec


def test_integer_and_float_rates_are_one_spec():
    assert NoiseSpec("symmetric", 40) == NoiseSpec("symmetric", np.float32(40))
    assert str(NoiseSpec("symmetric", 40)) == str(NoiseSpec("symmetric", np.float64(40))) == "symmetric_40"


@pytest.mark.parametrize("text", ["pairflip_40", "symmetric", "symmetric_", "symmetric_x", "clean_0", "", "_40"])
def test_unknown_names_list_the_valid_ones(text):
    with pytest.raises(ValueError, match="clean, symmetric_RR, asymmetric_RR, semantic_RR, instance_RR"):
        NoiseSpec.parse(text)


@pytest.mark.parametrize("text", ["symmetric_100.1", "symmetric_-1", "instance_nan", "asymmetric_inf"])
def test_rates_outside_percent(text):
    with pytest.raises(ValueError, match=r"rate: expected percent in 0\.\.100"):
        NoiseSpec.parse(text)


def test_human_labels_are_not_a_noise_to_draw():
    with pytest.raises(ValueError, match="recorded human labels.*data set config"):
        NoiseSpec.parse("human_worst")


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda: NoiseSpec.parse(40)),
        (TypeError, lambda: NoiseSpec("symmetric", "40")),
        (TypeError, lambda: NoiseSpec("symmetric", True)),
        (ValueError, lambda: NoiseSpec("clean", 10)),
        (ValueError, lambda: NoiseSpec("human_worst", 40)),
    ],
)
def test_bad_specs(error, call):
    with pytest.raises(error):
        call()


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
def test_quota_is_exact_in_every_class(kind, rate):
    labels = uneven_labels(10)
    noisy = make_noisy_labels(labels, f"{kind}_{rate}", num_classes=10, seed=3, images=pictures(len(labels)))
    assert noisy.dtype == np.int64 and noisy.shape == labels.shape
    for clean_class in range(10):
        of_class = noisy[labels == clean_class]
        flips = round(rate / 100 * len(of_class)) if kind != "semantic" or clean_class in SEMANTIC_TARGETS else 0
        counts = np.bincount(of_class, minlength=10)
        assert counts[clean_class] == len(of_class) - flips
        if kind == "symmetric":
            others = np.delete(counts, clean_class)
            assert others.max() - others.min() <= 1
        if kind == "asymmetric":
            assert counts[(clean_class + 1) % 10] == flips
        if kind == "semantic" and flips:
            assert counts[SEMANTIC_TARGETS[clean_class]] == flips


def test_quota_rounds_as_python_does():
    # Half an image: 2.5 of 5 rounds to 2, 3.5 of 7 to 4.
    labels = np.array([0] * 5 + [1] * 7)
    noisy = make_noisy_labels(labels, "symmetric_50", num_classes=2)
    assert ((noisy != labels)[:5].sum(), (noisy != labels)[5:].sum()) == (2, 4)


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


# ------------------------------------------------------------------------------------------------- contaminated noise


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


# ----------------------------------------------------------------------------------------------------- instance noise


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.97])
def test_instance_flip_rate_is_the_mean_of_the_truncated_normal(rate):
    # E = m + s (pdf(a) - pdf(b)) / (cdf(b) - cdf(a)), a = -m / s, b = (1 - m) / s: 0.1009 at m = 0.05, not 0.05.
    def pdf(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def cdf(x):
        return (1 + math.erf(x / math.sqrt(2))) / 2

    low, high = -rate / 0.1, (1 - rate) / 0.1
    mean = rate + 0.1 * (pdf(low) - pdf(high)) / (cdf(high) - cdf(low))
    count = 30_000
    labels = np.arange(count) % 3
    noisy = make_noisy_labels(
        labels,
        NoiseSpec("instance", 100 * rate),
        num_classes=3,
        images=pictures(count, shape=(2,)),
        sampling="bernoulli",
    )
    assert abs(realised_rate(labels, noisy) - mean) < 4 * math.sqrt(mean * (1 - mean) / count)


def test_instance_quota_only_moves_the_threshold():
    # Both samplings rank the images of a class alike, so of the two sets of flips one contains the other.
    labels = uneven_labels(10)
    draw = {"num_classes": 10, "images": pictures(len(labels)), "seed": 5}
    quota = make_noisy_labels(labels, "instance_40", **draw)
    free = make_noisy_labels(labels, "instance_40", **draw, sampling="bernoulli")
    differ = 0
    for clean_class in range(10):
        members = np.flatnonzero(labels == clean_class)
        fewer, more = sorted((set(members[labels[members] != x[members]]) for x in (quota, free)), key=len)
        assert fewer <= more
        differ += len(more) - len(fewer)
    assert differ > 0
    both = (quota != labels) & (free != labels)
    np.testing.assert_array_equal(quota[both], free[both])


def test_instance_target_of_black_images_is_uniform():
    # x = 0 gives equal logits. Eight degrees of freedom: 31.8 is exceeded once in 10,000.
    labels = np.full(18_000, 4)
    images = np.zeros((len(labels), 6), np.uint8)
    noisy = make_noisy_labels(labels, "instance_100", num_classes=10, images=images)
    counts = np.delete(np.bincount(noisy, minlength=10), 4)
    assert counts.sum() == 18_000 and ((counts - 2000) ** 2 / 2000).sum() < 31.8


def test_instance_target_follows_the_pixels():
    # On raw pixels the softmax is nearly one-hot: the copies of a picture get one target, the pictures several.
    images = np.repeat(255 * np.random.default_rng(0).integers(0, 2, (20, 32, 32, 3), dtype=np.uint8), 15, axis=0)
    noisy = make_noisy_labels(np.full(300, 1), "instance_100", num_classes=10, images=images).reshape(20, 15)
    assert (noisy == noisy[:, :1]).all()
    assert len(np.unique(noisy)) > 2


def test_instance_targets_equal_integer_arithmetic():
    # Sums of integers do not depend on their order, so this is what every BLAS must give.
    labels = uneven_labels(4)
    images = pictures(len(labels)).reshape(len(labels), -1)
    twin = _generator("instance_40", 9)
    weights = np.round(twin.standard_normal((4, images.shape[1], 4)) * 2**24).astype(np.int64)
    gumbel = twin.gumbel(size=(len(labels), 4))
    expected = []
    for i, label in enumerate(labels):
        logits = [int(images[i].astype(np.int64) @ weights[label][:, k]) / 2**24 + gumbel[i, k] for k in range(4)]
        logits[label] = -math.inf
        expected.append(int(np.argmax(logits)))
    wrong = _instance_targets(labels, images, 4, _generator("instance_40", 9))
    assert wrong.tolist() == expected


def test_instance_logits_do_not_depend_on_the_order_of_addition():
    images = pictures(50, shape=(3072,)).astype(np.float64)
    weights = _instance_weights(3, 3072, _generator("instance_40", 0))[1]
    assert 0.98 < weights.std() < 1.02
    logits = images @ weights
    order = np.random.default_rng(0).permutation(3072)
    np.testing.assert_array_equal(images[:, order] @ weights[order], logits)
    np.testing.assert_array_equal((images[:, ::-1, None] * weights[None, ::-1]).cumsum(axis=1)[:, -1], logits)


# -------------------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize(
    ("spec", "contaminated", "digest"),
    [
        ("symmetric_40", False, "dfcdd1755028e412"),
        ("asymmetric_12.5", False, "db4e45c847391518"),
        ("semantic_30", False, "61c032a61d887c8a"),
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


# ----------------------------------------------------------------------------------------------------------- measures


def test_realised_rate_and_matrix():
    clean, noisy = [0, 0, 0, 0, 2, 2, 3], [0, 1, 0, 2, 2, 0, 3]
    assert realised_rate(clean, noisy) == 3 / 7
    expected = [[0.5, 0.25, 0.25, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]]  # no image of class 1
    np.testing.assert_array_equal(realised_matrix(clean, noisy, 4), expected)


@pytest.mark.parametrize("spec", ["symmetric_36", "asymmetric_20", "semantic_40", "clean"])
def test_realised_matrix_of_a_quota_is_the_matrix(spec):
    labels = np.arange(10).repeat(100)
    noisy = make_noisy_labels(labels, spec, num_classes=10)
    np.testing.assert_allclose(realised_matrix(labels, noisy, 10), transition_matrix(spec, 10), rtol=0, atol=1e-12)


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


def test_bad_pairs():
    with pytest.raises(ValueError, match="noisy: expected 2 labels, as many as clean, got 3"):
        realised_rate([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match=r"noisy: expected values in 0\.\.1, got 2"):
        realised_matrix([0, 1], [0, 2], 2)
