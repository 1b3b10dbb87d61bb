import math

import numpy as np
import pytest

from hf_robust.noise.draw import make_noisy_labels, noise_generator
from hf_robust.noise.instance import instance_targets, instance_weights
from hf_robust.noise.labels import realised_rate
from hf_robust.noise.spec import NoiseSpec
from tests.hf_robust.noise.samples import pictures, uneven_labels


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
    twin = noise_generator("instance_40", 9)
    weights = np.round(twin.standard_normal((4, images.shape[1], 4)) * 2**24).astype(np.int64)
    gumbel = twin.gumbel(size=(len(labels), 4))
    expected = []
    for i, label in enumerate(labels):
        logits = [int(images[i].astype(np.int64) @ weights[label][:, k]) / 2**24 + gumbel[i, k] for k in range(4)]
        logits[label] = -math.inf
        expected.append(int(np.argmax(logits)))
    wrong = instance_targets(labels, images, 4, noise_generator("instance_40", 9))
    assert wrong.tolist() == expected


def test_instance_logits_do_not_depend_on_the_order_of_addition():
    images = pictures(50, shape=(3072,)).astype(np.float64)
    weights = instance_weights(3, 3072, noise_generator("instance_40", 0))[1]
    assert 0.98 < weights.std() < 1.02
    logits = images @ weights
    order = np.random.default_rng(0).permutation(3072)
    np.testing.assert_array_equal(images[:, order] @ weights[order], logits)
    np.testing.assert_array_equal((images[:, ::-1, None] * weights[None, ::-1]).cumsum(axis=1)[:, -1], logits)
