import warnings

import numpy as np
import pytest

from hf_robust.noise.draw import transition_matrix
from hf_robust.noise.estimate import (
    anchor_transition_matrix,
    confident_joint,
    estimate_joint,
    estimate_noise_rate,
    estimate_transition_matrix,
)

UNEVEN = np.array([[0.9, 0.1, 0.0], [0.05, 0.75, 0.2], [0.3, 0.1, 0.6]])


def simulate(matrix, count=20_000, sharpness=8.0, seed=0):
    """Probabilities (N, K) of a classifier with a higher logit for the clean class, given and clean labels."""
    generator = np.random.default_rng(seed)
    clean = generator.integers(len(matrix), size=count)
    given = (generator.random(count)[:, None] > matrix[clean].cumsum(axis=1)).sum(axis=1)
    logits = generator.normal(size=(count, len(matrix))) + sharpness * np.eye(len(matrix))[clean]
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probabilities / probabilities.sum(axis=1, keepdims=True), given, clean


# Given 0: mean p_0 is 0.5, given 1: mean p_1 is 0.6, given 2: mean p_2 is 0.4.
PROBABILITIES = np.array(
    [
        [0.8, 0.2, 0.0],  # confident in 0
        [0.5, 0.1, 0.4],  # in 0 (exactly at its mean) and 2: the more probable one is 0
        [0.2, 0.7, 0.1],  # in 1
        [0.4, 0.6, 0.0],  # in 1 (exactly at its mean)
        [0.3, 0.6, 0.1],  # in 1
        [0.1, 0.2, 0.7],  # in 2
        [0.45, 0.45, 0.1],  # in none
    ]
)
GIVEN = np.array([0, 0, 0, 1, 1, 2, 2])


def test_the_joint_counts_what_is_at_least_as_probable_as_the_mean_of_its_class():
    joint = confident_joint(PROBABILITIES, GIVEN)
    assert joint.dtype == np.int64
    np.testing.assert_array_equal(joint, [[2, 1, 0], [0, 2, 0], [0, 0, 1]])


def test_estimates_from_that_joint_by_hand():
    expected = np.array([[2 / 7, 1 / 7, 0], [0, 2 / 7, 0], [0, 0, 2 / 7]])  # 3, 2 and 2 labels of 7; one not counted
    np.testing.assert_allclose(estimate_joint(PROBABILITIES, GIVEN), expected, rtol=1e-15)
    assert estimate_noise_rate(PROBABILITIES, GIVEN) == pytest.approx(1 / 7, rel=1e-15)
    matrix = estimate_transition_matrix(PROBABILITIES, GIVEN)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, [[1, 0, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]], rtol=1e-15)


def test_a_perfect_classifier_gives_the_counts_of_clean_and_given_labels():
    _, given, clean = simulate(UNEVEN, count=500)
    exact = np.zeros((3, 3))
    np.add.at(exact, (given, clean), 1)
    one_hot = np.eye(3)[clean]
    np.testing.assert_array_equal(confident_joint(one_hot, given), exact)
    np.testing.assert_allclose(estimate_joint(one_hot, given), exact / 500)
    np.testing.assert_allclose(estimate_transition_matrix(one_hot, given), (exact / exact.sum(axis=0)).T)
    assert estimate_noise_rate(one_hot, given) == pytest.approx(np.mean(given != clean))


def test_constant_probabilities_are_at_their_own_mean_whatever_its_rounding():
    for value in np.linspace(0.51, 0.99, 25):
        probabilities = np.tile([value, 1 - value], (7, 1))
        given = np.array([0, 0, 0, 0, 0, 0, 1])
        np.testing.assert_array_equal(confident_joint(probabilities, given), [[6, 0], [1, 0]])


@pytest.mark.parametrize(
    "matrix",
    [UNEVEN, transition_matrix("symmetric_40", 10), transition_matrix("asymmetric_30", 5), np.eye(4)],
    ids=["uneven", "symmetric", "asymmetric", "clean"],
)
def test_a_known_matrix_is_recovered_within_sampling_error(matrix):
    num_classes, count = len(matrix), 20_000
    probabilities, given, clean = simulate(matrix, count)
    # Five standard errors of a share among the N / K samples of a class, plus what the classifier itself gets wrong.
    wrong = np.mean(probabilities.argmax(axis=1) != clean)
    tolerance = 5 * 0.5 / np.sqrt(count / num_classes) + wrong
    assert wrong < 0.001
    np.testing.assert_allclose(estimate_transition_matrix(probabilities, given), matrix, atol=tolerance)
    assert estimate_noise_rate(probabilities, given) == pytest.approx(1 - np.trace(matrix) / num_classes, abs=0.02)


def test_classes_that_nothing_is_known_of_are_the_identitys():
    """No sample is labelled as 2; 3 is labelled, but every sample of it is confidently a 0."""
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0], [0.9, 0.05, 0, 0.05], [0.95, 0, 0, 0.05]])
    given = np.array([0, 1, 3, 3])
    np.testing.assert_array_equal(
        confident_joint(probabilities, given), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]
    )
    np.testing.assert_allclose(
        estimate_transition_matrix(probabilities, given),
        [[1 / 3, 0, 0, 2 / 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    )
    assert estimate_noise_rate(probabilities, given) == pytest.approx(1 / 2)


def test_labels_without_any_confident_sample_are_taken_to_be_right():
    """All labelled 0 with p_0 = 0: class 0 has no confident samples, class 1 no labels."""
    probabilities, given = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([0, 0])
    np.testing.assert_array_equal(confident_joint(probabilities, given), np.zeros((2, 2)))
    np.testing.assert_array_equal(estimate_joint(probabilities, given), [[1, 0], [0, 0]])
    np.testing.assert_array_equal(estimate_transition_matrix(probabilities, given), np.eye(2))
    assert estimate_noise_rate(probabilities, given) == 0


def test_anchors_are_the_largest_probability_up_to_the_quantile():
    first = np.linspace(0.1, 0.9, 101)
    probabilities = np.stack([first, 0.95 - first, np.full(101, 0.05)], axis=1)
    for quantile, best, worst in ((1.0, 0.9, 0.05), (0.97, first[97], 0.95 - first[3]), (0.965, first[96], None)):
        matrix = anchor_transition_matrix(probabilities, quantile)
        np.testing.assert_allclose(matrix[0], [best, 0.95 - best, 0.05])
        if worst == 0.95 - first[3]:
            np.testing.assert_allclose(matrix[1], [first[3], worst, 0.05])
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(matrix[2], probabilities[0])  # all equal: the first


def test_anchors_are_those_of_the_authors_rule():
    """Largest p_i strictly below the 97th percentile, taken up to the next sample; 0.97 * 499 is not whole."""
    probabilities, *_ = simulate(np.eye(4), count=500, sharpness=2.0)
    expected = []
    for column in probabilities.T:
        below = np.where(column < np.percentile(column, 97, method="higher"), column, 0)
        expected.append(probabilities[below.argmax()])
    np.testing.assert_allclose(anchor_transition_matrix(probabilities), expected, rtol=1e-12)


def test_anchors_recover_the_matrix_of_a_classifier_of_the_given_labels():
    clean_probabilities, *_ = simulate(UNEVEN)
    of_given_labels = clean_probabilities @ UNEVEN
    np.testing.assert_allclose(anchor_transition_matrix(of_given_labels), UNEVEN, atol=0.001)


def test_rows_that_sum_to_one_only_roughly_give_rows_that_do():
    probabilities = np.array([[0.9, 0.1005], [0.2, 0.7995]], dtype=np.float32)
    np.testing.assert_allclose(anchor_transition_matrix(probabilities, 1).sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(estimate_transition_matrix(probabilities, [0, 1]), np.eye(2))


@pytest.mark.parametrize(
    "probabilities, given, error, message",
    [
        ([0.5, 0.5], [0, 1], ValueError, r"probabilities.*\(N, K\).*\(2,\)"),
        ([[1.0], [1.0]], [0, 0], ValueError, r"K >= 2.*\(2, 1\)"),
        (np.empty((0, 2)), np.empty(0, int), ValueError, r"N >= 1.*\(0, 2\)"),
        ([[1.5, -0.5]], [0], ValueError, r"\[0, 1\].*-0.5 to 1.5"),
        ([[np.nan, 1.0]], [0], ValueError, r"\[0, 1\].*nan"),
        ([[0.5, 0.5], [0.5, 0.498]], [0, 1], ValueError, "0.998 in row 1"),
        ([[0.5, 0.5]], [2], ValueError, r"given.*0\.\.1.*2 at position 0"),
        ([[0.5, 0.5]], [-1], ValueError, r"given.*0\.\.1.*-1"),
        ([[0.5, 0.5]], [0, 1], ValueError, "given.*1 rows, got 2"),
        ([[0.5, 0.5]], [[0]], ValueError, r"given.*\(1, 1\)"),
        ([[0.5, 0.5]], [0.0], TypeError, "given.*integers"),
    ],
)
def test_bad_arguments_are_named(probabilities, given, error, message):
    for function in (confident_joint, estimate_joint, estimate_noise_rate, estimate_transition_matrix):
        with pytest.raises(error, match=message):
            function(probabilities, given)
    if "given" not in message:
        with pytest.raises(error, match=message):
            anchor_transition_matrix(probabilities)


@pytest.mark.parametrize("quantile", [0, -0.1, 1.01, float("nan")])
def test_a_quantile_outside_its_range_is_named(quantile):
    with pytest.raises(ValueError, match="quantile"):
        anchor_transition_matrix(PROBABILITIES, quantile)


def test_arguments_are_left_as_they_are():
    probabilities, given = PROBABILITIES.copy(), GIVEN.copy()
    estimate_transition_matrix(probabilities, given)
    anchor_transition_matrix(probabilities)
    np.testing.assert_array_equal(probabilities, PROBABILITIES)
    np.testing.assert_array_equal(given, GIVEN)


def several_confident_but_not_the_best(probabilities, given):
    """Samples where cleanlab takes a class that it is not confident in: the most probable of all."""
    means = [probabilities[given == label, label].mean() for label in range(probabilities.shape[1])]
    confident = probabilities >= np.array(means) - 1e-6
    best = probabilities.argmax(axis=1)
    return (confident.sum(axis=1) > 1) & ~confident[np.arange(len(best)), best]


@pytest.mark.parametrize("sharpness", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("spec", ["symmetric_40", "asymmetric_30"])
def test_estimates_are_cleanlabs(spec, sharpness):
    count = pytest.importorskip("cleanlab.count")
    probabilities, given, _ = simulate(transition_matrix(spec, 6), count=3000, sharpness=sharpness)
    keep = ~several_confident_but_not_the_best(probabilities, given)
    probabilities, given = probabilities[keep], given[keep]
    assert not several_confident_but_not_the_best(probabilities, given).any()

    joint = confident_joint(probabilities, given)
    assert joint.diagonal().min() > 0
    np.testing.assert_array_equal(joint, count.compute_confident_joint(given, probabilities, calibrate=False))

    # cleanlab's calibrated counts are whole numbers with the same row sums.
    calibrated = estimate_joint(probabilities, given)
    theirs = count.compute_confident_joint(given, probabilities, calibrate=True)
    np.testing.assert_allclose(calibrated.sum(axis=1), theirs.sum(axis=1) / len(given), rtol=1e-12)
    np.testing.assert_allclose(calibrated * len(given), theirs, atol=1)
    np.testing.assert_allclose(calibrated, count.estimate_joint(given, probabilities), atol=1 / len(given))
    issues = count.num_label_issues(given, probabilities, estimation_method="off_diagonal_calibrated")
    assert estimate_noise_rate(probabilities, given) * len(given) == pytest.approx(issues, abs=6)  # a unit a row

    # From one joint, before rounding, the matrices are the same; theirs has a column a clean class.
    _, noise_matrix, _ = count.estimate_latent(calibrated * len(given), given)
    np.testing.assert_allclose(estimate_transition_matrix(probabilities, given), noise_matrix.T, atol=1e-12)


def test_where_cleanlab_differs_from_the_paper():
    """The last sample reaches the means of classes 1 and 2 (0.3), not that of class 0 (0.675), its most probable."""
    count = pytest.importorskip("cleanlab.count")
    probabilities = np.array([[0.99, 0.005, 0.005], [0.1, 0.3, 0.6], [0.1, 0.6, 0.3], [0.36, 0.33, 0.31]])
    given = np.array([0, 1, 2, 0])
    np.testing.assert_array_equal(
        several_confident_but_not_the_best(probabilities, given), [False, False, False, True]
    )
    np.testing.assert_array_equal(confident_joint(probabilities, given), [[1, 1, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(
        # The sample in question at (0, 0), and ones for the zeros of the diagonal.
        count.compute_confident_joint(given, probabilities, calibrate=False),
        [[2, 0, 0], [0, 1, 1], [0, 1, 1]],
    )


def test_missing_classes_as_in_cleanlab_but_for_its_ones_on_the_diagonal():
    count = pytest.importorskip("cleanlab.count")
    probabilities, given, _ = simulate(transition_matrix("symmetric_20", 4), count=400)
    probabilities, given = probabilities[given != 2], given[given != 2]
    joint = confident_joint(probabilities, given)
    assert joint[2].sum() == joint[:, 2].sum() == 0
    joint[2, 2] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(joint, count.compute_confident_joint(given, probabilities, calibrate=False))
    matrix = estimate_transition_matrix(probabilities, given)
    np.testing.assert_array_equal(matrix[2], np.eye(4)[2])
    assert np.isfinite(matrix).all()
