"""CMMD, Frechet distance, precision, recall and others on CIFAR-10, in features of a ResNet-20 trained on it."""

import io
import os
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from evaluate_metrics.core.density_coverage import density_coverage
from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.mmd import cmmd, permutation_test
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.precision_recall import precision_recall
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


DISTORTIONS = [
    (blur, [0.4, 0.6, 0.8, 1.1, 1.5]),
    (noise, [4, 8, 14, 22, 36]),
    (jpeg, [70, 45, 25, 12, 5]),
    ("class imbalance", [0.6, 0.7, 0.8, 0.9, 1.0]),  # share of classes 0 to 4
]


def distorted_sets(distortion, levels, rows):
    """The predictions, untouched and at each level."""
    images, labels = rows[0][REFERENCES:], rows[1][REFERENCES:]
    few, many = np.flatnonzero(labels < 5), np.flatnonzero(labels >= 5)

    def mixture(share):
        count = round(share * 350)
        return [images[i] for i in (*few[:count], *many[: 350 - count])]

    if callable(distortion):
        draw, plain = np.random.default_rng(0), images[:PREDICTIONS]
        return [plain, *([distortion(image, level, draw) for image in plain] for level in levels)]
    return [mixture(share) for share in (0.5, *levels)]


@pytest.fixture(scope="module", params=DISTORTIONS, ids=["blur", "noise", "jpeg", "imbalance"])
def distorted(request, encoder, rows):
    """The name of a distortion, and the embeddings at each of its steps."""
    distortion, levels = request.param
    steps = [encoder.encode(images, 100) for images in distorted_sets(distortion, levels, rows)]
    return getattr(distortion, "__name__", distortion), steps


def test_each_step_of_a_distortion_raises_cmmd_and_frechet_distance(distorted, references):
    values = {"cmmd": [], "cmmd_unbiased": [], "frechet_distance": []}
    for vectors in distorted[1]:
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


def four_scores(vectors, references):
    first, second = precision_recall(vectors, references), density_coverage(vectors, references)
    return {
        "precision": first.precision, "recall": first.recall, "density": second.density, "coverage": second.coverage,
    }  # fmt: skip


def test_precision_and_the_others_on_real_features_are_those_of_float64(encoder, rows, references):
    x, y = encoder.encode(rows[0][REFERENCES : REFERENCES + 300], 100).double(), references[:500].double()
    own_x, own_y, cross = (torch.stack([(row - b).square().sum(1) for row in a]) for a, b in ((x, x), (y, y), (x, y)))
    (x3, _), (y3, y5) = ([own.kthvalue(k + 1, dim=1).values for k in (3, 5)] for own in (own_x, own_y))
    strictly = cross < y5
    expected = {
        "precision": (cross <= y3).any(1).double().mean(),
        "recall": (cross <= x3[:, None]).any(0).double().mean(),
        "density": strictly.sum() / (5 * 300),
        "coverage": strictly.any(0).double().mean(),
    }
    assert four_scores(x.float(), y.float()) == pytest.approx({name: float(v) for name, v in expected.items()})


FOUR = ("precision", "recall", "density", "coverage")
# What each distortion lowers. Images of fewer classes are as good as before: they cover less.
LOWERED = {"blur": FOUR, "noise": FOUR, "jpeg": FOUR, "class imbalance": ("coverage",)}


def assert_lower_at_each_step(name, sets, references):
    """But for a standard error of an untouched set; and far lower at the end."""
    steps = [four_scores(vectors, references) for vectors in sets]
    for key in name if isinstance(name, tuple) else LOWERED[name]:
        values = [step[key] for step in steps]
        assert max(np.diff(values)) < (0.05 if key == "density" else 0.016), (key, values)
        assert values[-1] < 0.8 * values[0], (key, values)


def test_each_step_of_a_distortion_lowers_what_sees_it(distorted, references):
    assert_lower_at_each_step(*distorted, references)


def test_repeated_images_lower_recall_and_coverage(encoder, rows, references):
    vectors = encoder.encode(rows[0][REFERENCES : REFERENCES + PREDICTIONS], 100)
    sets = [vectors[torch.arange(PREDICTIONS) % distinct] for distinct in (400, 200, 100, 50, 20, 5)]
    assert_lower_at_each_step(("recall", "coverage"), sets, references)
    assert four_scores(sets[-1], references)["precision"] > 0.5  # as good as before
