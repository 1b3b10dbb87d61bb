"""A kind of noise of one's own."""

import numpy as np
import pytest

from hf_robust import make_noisy_labels, register_noise, transition_matrix
from hf_robust.noise import ClassNoise, NoiseKind, matrix_to
from hf_robust.noise.base import SAMPLINGS
from hf_robust.noise.kinds import KINDS, kind_of
from hf_robust.noise.spec import NoiseSpec, spec_patterns


class Swap(ClassNoise):
    name, colour = "swap", "#117733"
    words = "of each class {rate} % go to its partner"
    entry = "RR percent go to the partner."

    def matrix(self, rate, num_classes):
        return matrix_to({i: i ^ 1 for i in range(num_classes - num_classes % 2)}, rate, num_classes)


class Dark(NoiseKind):
    """Of the darkest images, all go to the last class."""

    name, colour, words, entry, needs_images = "dark", "#000000", "the darkest {rate} %", "The darkest.", True

    def draw(self, labels, rate, num_classes, generator, *, sampling, images):
        noisy = labels.copy()
        noisy[np.argsort(images.reshape(len(images), -1).mean(1))[: round(rate / 100 * len(labels))]] = num_classes - 1
        return noisy


@pytest.fixture(autouse=True)
def table():
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def test_a_registered_class_noise_is_drawn_by_its_matrix():
    register_noise(Swap())
    register_noise(Swap())  # of a module that is loaded again
    assert str(NoiseSpec.parse("swap_25")) == "swap_25" and "swap_RR" in spec_patterns()
    expected = np.eye(5)
    expected[:4, :4] = 0.75 * np.eye(4) + 0.25 * np.eye(4)[[1, 0, 3, 2]]
    np.testing.assert_allclose(transition_matrix("swap_25", 5), expected)
    labels = np.repeat(np.arange(5), 40)
    noisy = make_noisy_labels(labels, "swap_25", num_classes=5)
    assert [(noisy[labels == c] != c).sum() for c in range(5)] == [10, 10, 10, 10, 0]
    assert set(zip(labels[noisy != labels].tolist(), noisy[noisy != labels].tolist(), strict=True)) == {
        (0, 1), (1, 0), (2, 3), (3, 2),
    }  # fmt: skip
    assert kind_of("swap_25").colour == "#117733"


def test_a_registered_noise_may_look_at_the_images():
    register_noise(Dark())
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    noisy = make_noisy_labels(np.zeros(10, int), "dark_30", num_classes=3, images=images)
    assert noisy.tolist() == [2, 2, 2, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "Swap"}, ValueError, "name of Changed must be lower-case letters and digits; got 'Swap'"),
        ({"name": "pair_swap"}, ValueError, "name of Changed must be"),
        ({"name": "symmetric"}, ValueError, "there is a noise 'symmetric' already"),
        ({"name": "matrix"}, ValueError, "must be none of contaminated, .*; got 'matrix'"),
        ({"name": "true"}, ValueError, "must be none of contaminated, .*; got 'true'"),
        ({"name": None}, ValueError, "name of Changed must be .*; got None"),
        ({"colour": "green"}, ValueError, "colour of Changed must be such as '#0072B2'"),
        ({"colour": None}, ValueError, "colour of Changed must be such as '#0072B2'; got None"),
        *(
            ({name: value}, ValueError, f"{name} of Changed must be a text, .*; got")
            for name in ("words", "entry")
            for value in ("", " ", None, 3, "{oops}", "{", "{0}", "{rate.x}")
        ),
    ],
)
def test_what_names_and_figures_could_not_use_is_refused(changes, error, message):
    changed = type("Changed", (Swap,), changes)()
    with pytest.raises(error, match=message):
        register_noise(changed)
    assert "swap" not in KINDS


def test_a_kind_lacks_nothing():
    with pytest.raises(TypeError, match="kind must be an instance of a subclass of NoiseKind"):
        register_noise(Swap)
    with pytest.raises(TypeError, match="Bare lacks name, colour, words, entry, draw"):
        register_noise(type("Bare", (NoiseKind,), {})())


class Uneven(Swap):
    """Class 0 loses the rate, class 1 a quarter of it; of others three quarters of what is lost go to class 0."""

    name = "uneven"

    def matrix(self, rate, num_classes):
        matrix, share = np.eye(num_classes), rate / 100
        matrix[0, :2] = 1 - share, share
        matrix[1, :2] = share / 4, 1 - share / 4
        matrix[2, :3] = 0.75 * share, 0.25 * share, 1 - share
        return matrix


def test_rows_that_differ_are_drawn_each_by_itself():
    register_noise(Uneven())
    labels = np.repeat(np.arange(4), 100)
    noisy = make_noisy_labels(labels, "uneven_40", num_classes=4)
    counts = [np.bincount(noisy[labels == c], minlength=4).tolist() for c in range(4)]
    assert counts == [[60, 40, 0, 0], [10, 90, 0, 0], [30, 10, 60, 0], [0, 0, 0, 100]]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.full((3, 3), np.nan), r"entries must be in \[0, 1\], are nan"),
        (np.eye(3) - 0.1, r"entries must be in \[0, 1\], are -0.1 to 0.9"),
        (np.ones((3, 3)), "rows must sum to 1, row 0 sums to 3"),
        (np.eye(2), r"must be \(3, 3\) numbers, got shape \(2, 2\)"),
        (None, r"must be \(3, 3\) numbers, got"),
        ("x", r"must be \(3, 3\) numbers, got 'x'"),
    ],
)
def test_a_matrix_of_no_probabilities_is_refused(matrix, message):
    register_noise(type("Odd", (Swap,), {"name": "odd", "matrix": lambda *_: matrix})())
    calls = [lambda: transition_matrix("odd_40", 3)]
    calls += [lambda s=s: make_noisy_labels([0, 1, 2], "odd_40", num_classes=3, sampling=s) for s in SAMPLINGS]
    for call in calls:
        with pytest.raises(ValueError, match=f"matrix of noise 'odd':? {message}"):
            call()


@pytest.mark.parametrize(
    ("drawn", "error", "message"),
    [
        ([0, -1, 2], ValueError, r"expected values in 0..2, got -1 at position 1"),
        ([0, 1, 3], ValueError, r"expected values in 0..2, got 3 at position 2"),
        ([0.0, 1.0, 2.0], TypeError, "expected integers, got dtype float64"),
        ([0, 1], ValueError, "expected 3, as many as labels, got 2"),
        (None, ValueError, r"expected shape \(N,\)"),
    ],
)
def test_what_is_drawn_must_be_labels(drawn, error, message):
    register_noise(type("Odd", (Dark,), {"name": "odd", "draw": lambda *_, **__: drawn})())
    with pytest.raises(error, match=f"labels that odd_40 draws: {message}"):
        make_noisy_labels([0, 1, 2], "odd_40", num_classes=3)
