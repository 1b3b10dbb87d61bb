"""`instance_RR`: how likely an image is to get a wrong label, and which one, depends on its pixels."""

import math
from typing import Any

import numpy as np

from hf_common.references import Paper

from .base import NoiseKind, quotas


class Instance(NoiseKind):
    """The noise of Xia et al. 2020 (`get_instance_noisy_label` in their code), on raw 0..255 pixels x.

    Flip probability q ~ truncated normal(rate, 0.1) on [0, 1] per image, W ~ N(0, 1) of shape (K, d, K), wrong label ~
    softmax(x W[y]) over the other classes. With u ~ uniform(0, 1), image i flips when logit(q_i) - logit(u_i) > 0,
    that is with probability q_i. Quota takes the images of each class in descending order of that same number, so it
    only moves the threshold from 0 to where the count is exact. Rates 0 and 100 flip none and all, which the truncated
    normal alone would not.
    """

    name = "instance"
    needs_images = True
    colour = "#E69F00"
    words = "how likely an image is to get a wrong label, and which, depends on its pixels (Xia et al. 2020)"
    entry = (
        "the wrong label, and how likely it is, depend on the pixels (Xia et al. 2020): flip probability from a "
        "normal (RR / 100, 0.1) truncated to [0, 1], wrong class from softmax(x W[y]) with W ~ N(0, 1) and x the raw "
        "pixels 0..255."
    )
    paper = Paper(
        "X. Xia, T. Liu, B. Han, N. Wang, M. Gong, H. Liu, G. Niu, D. Tao, M. Sugiyama",
        "Part-dependent Label Noise: Towards Instance-dependent Label Noise",
        "NeurIPS 2020",
    )

    def draw(self, labels, rate, num_classes, generator, *, sampling, images):  # (N,) int64 -> (N,) int64
        """Noisy labels for `images`, (N, ...) uint8."""
        wrong = instance_targets(labels, _flat_pixels(images, len(labels)), num_classes, generator)
        flip_rates = _flip_rates(rate / 100, len(labels), generator)
        uniform = generator.random(len(labels))
        if sampling == "bernoulli":
            return np.where(uniform < flip_rates, wrong, labels)

        # The odds ratio orders the images as logit(q) - logit(u) does, and needs no logarithm, whose last bit is the
        # platform's. At rates 0 and 100 it is 0, inf or nan, and the quota is none or all of them, in any order.
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = flip_rates * (1 - uniform) / (uniform * (1 - flip_rates))
        noisy = labels.copy()
        flips = quotas(rate, np.bincount(labels, minlength=num_classes), generator)
        for clean_class in range(num_classes):
            members = np.flatnonzero(labels == clean_class)
            order = np.argsort(-odds[members], kind="stable")
            flipped = members[order[: flips[clean_class]]]
            noisy[flipped] = wrong[flipped]
        return noisy


def instance_targets(
    labels: np.ndarray, pixels: np.ndarray, num_classes: int, generator: np.random.Generator
) -> np.ndarray:  # (N,) int64, (N, d) uint8 -> (N,) int64
    """One wrong label for every image, from softmax(x W[y]) without y: Gumbel-max, that is argmax(logits + Gumbel)."""
    weights = instance_weights(num_classes, pixels.shape[1], generator)
    gumbel = generator.gumbel(size=(len(labels), num_classes))
    wrong = labels.copy()
    for clean_class in range(num_classes):
        members = np.flatnonzero(labels == clean_class)
        logits = pixels[members].astype(np.float64) @ weights[clean_class] + gumbel[members]
        logits[:, clean_class] = -np.inf
        wrong[members] = logits.argmax(axis=1)
    return wrong


def instance_weights(
    num_classes: int, num_pixels: int, generator: np.random.Generator
) -> np.ndarray:  # (K, d, K) float64
    """W, in multiples of 2^-24."""
    # Times pixels below 2^8, summed over up to 2^17 of them, these fit float64's 53 bits: the products x W are exact,
    # hence the same in whatever order a BLAS adds, on any processor.
    return np.round(generator.standard_normal((num_classes, num_pixels, num_classes)) * 2**24) / 2**24


def _flip_rates(mean, count, generator):
    # (count,) from the normal(mean, 0.1) truncated to [0, 1], by rejection: at least half of each draw is kept.
    if mean in (0, 1):
        return np.full(count, float(mean))
    rates = generator.normal(mean, 0.1, count)
    while len(outside := np.flatnonzero((rates < 0) | (rates > 1))):
        rates[outside] = generator.normal(mean, 0.1, len(outside))
    return rates


def _flat_pixels(images: Any, count: int) -> np.ndarray:  # -> (N, d) uint8
    if images is None:
        raise ValueError("images: instance noise depends on the pixels and needs a uint8 array (N, ...), got None")
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected dtype uint8 (raw pixels 0..255), got {images.dtype}")
    if images.ndim < 2 or len(images) != count:
        raise ValueError(f"images: expected shape ({count}, ...), one image for each label, got {images.shape}")
    return images.reshape(count, math.prod(images.shape[1:]))
