"""CMMD, Frechet distance and permutation test on CIFAR-10, in the features of a ResNet-20 that was trained on it."""

import io
import os
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.mmd import cmmd, permutation_test
from evaluate_metrics.core.moments import Moments
from tests import ROOT

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not {"CIFAR10_DIR", "RESNET20_DIR"} <= set(os.environ), reason="needs CIFAR10_DIR and RESNET20_DIR"
    ),
]
REFERENCES, PREDICTIONS = 800, 400


@pytest.fixture(scope="module")
def rows():
    """1,600 test images and their classes."""
    rows = datasets.load_dataset(os.environ["CIFAR10_DIR"], split="test[:1600]")
    return [image.convert("RGB") for image in rows["img"]], np.array(rows["label"])


@pytest.fixture(scope="module")
def encoder():
    scripts = str(ROOT / "scripts")
    sys.path.insert(0, scripts)
    try:
        from resnet20_encoder import encode
    finally:
        sys.path.remove(scripts)
    return make_encoder(encode, normalize=False)


@pytest.fixture(scope="module")
def references(encoder, rows):
    return encoder.encode(rows[0][:REFERENCES], 100)


def moments(vectors, unit):
    vectors = torch.nn.functional.normalize(vectors, dim=1) if unit else vectors
    return Moments.zeros(vectors.shape[1]).update(vectors)


def blur(image, radius, _):
    return image.filter(ImageFilter.GaussianBlur(radius))


def noise(image, deviation, draw):
    noisy = np.asarray(image) + draw.normal(0, deviation, (32, 32, 3))
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))


def jpeg(image, quality, _):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


@pytest.mark.parametrize(
    ("distortion", "levels"),
    [
        (blur, [0.4, 0.6, 0.8, 1.1, 1.5]),
        (noise, [4, 8, 14, 22, 36]),
        (jpeg, [70, 45, 25, 12, 5]),
        ("class imbalance", [0.6, 0.7, 0.8, 0.9, 1.0]),  # share of classes 0 to 4
    ],
)
def test_each_step_of_a_distortion_raises_cmmd_and_frechet_distance(encoder, rows, references, distortion, levels):
    images, labels = rows[0][REFERENCES:], rows[1][REFERENCES:]
    few, many = np.flatnonzero(labels < 5), np.flatnonzero(labels >= 5)

    def mixture(share):
        count = round(share * 350)
        return [images[i] for i in (*few[:count], *many[: 350 - count])]

    if callable(distortion):
        draw, plain = np.random.default_rng(0), images[:PREDICTIONS]
        sets = [plain, *([distortion(image, level, draw) for image in plain] for level in levels)]
    else:
        sets = [mixture(share) for share in (0.5, *levels)]
    values = {"cmmd": [], "cmmd_unbiased": [], "frechet_distance": []}
    for images_of_step in sets:
        vectors = encoder.encode(images_of_step, 100)
        score = cmmd(moments(vectors, unit=True), moments(references, unit=True))
        values["cmmd"].append(score.biased)
        values["cmmd_unbiased"].append(score.unbiased)
        values["frechet_distance"].append(frechet_distance(moments(vectors, False), moments(references, False)))
    for name, steps in values.items():
        assert min(np.diff(steps)) > 0 and steps[-1] > 2 * steps[0], (name, steps)


def test_p_values_of_200_splits_of_one_set_are_uniform(references):
    unit = torch.nn.functional.normalize(references, dim=1)
    p_values, generator = [], torch.Generator().manual_seed(0)
    for seed in range(200):
        x, y = unit[torch.randperm(len(unit), generator=generator)[:200]].split(100)
        p_values.append(permutation_test(x, y, permutations=99, seed=seed).p_value)
    p_values = np.sort(p_values)
    ranks = np.arange(1, 201) / 200
    distance = max(np.abs(p_values - ranks).max(), np.abs(p_values - ranks + 1 / 200).max())
    # Of Kolmogorov and Smirnov: 99 % of 200 uniform samples have less.
    assert distance < 1.63 / 200**0.5
    assert p_values[0] >= 1 / 100
