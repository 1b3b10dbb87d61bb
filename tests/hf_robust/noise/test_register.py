"""A kind of noise of one's own."""

import numpy as np
import pytest

from hf_robust import make_noisy_labels, register_noise, transition_matrix
from hf_robust.noise import ClassNoise, NoiseKind, matrix_to
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
        ({"colour": "green"}, ValueError, "colour of Changed must be such as '#0072B2'"),
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
