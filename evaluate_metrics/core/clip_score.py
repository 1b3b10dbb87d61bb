"""CLIPScore: how well images fit their captions, by the cosine of their CLIP embeddings."""

from typing import NamedTuple

import torch
from torch import Tensor

from .moments import float_matrix

PREFIX = "A photo depicts "  # before each caption, as published
WEIGHT = 2.5
SCALE = "2.5 max(cos, 0)"


class ClipScore(NamedTuple):
    """
    Attributes:
        mean (`float`): 0 to 2.5, higher is better.
        standard_error (`float` or `None`): over the choice of the pairs; `None` for one pair.
        n (`int`): pairs of image and caption.
        scores (`torch.Tensor`, (n,) float64): of each pair.
    """

    mean: float
    standard_error: float | None
    n: int
    scores: Tensor


def clip_score(images: Tensor, captions: Tensor) -> ClipScore:
    """`2.5 max(cos(c, v), 0)`, the mean over pairs (Hessel et al. 2021, https://arxiv.org/abs/2104.08718, §3).

    The cosine is clamped before the mean. Much of the text-to-image literature gives `100 cos` without the factor,
    the clamp and the prefix of captions instead: the result names its scale.

    Args:
        images: (n, d) float, embeddings of n images, of any norm but 0.
        captions: (n, d) float, embeddings of their captions, which began with `PREFIX`.

    Raises:
        TypeError: no floating-point numbers.
        ValueError: no pairs, other shapes, NaN or zero vectors.
    """
    images, captions = float_matrix(images, "images"), float_matrix(captions, "captions")
    if images.shape != captions.shape or not len(images):
        shapes = f"{tuple(images.shape)} and {tuple(captions.shape)}"
        raise ValueError(f"images and captions must be 1 or more vectors each, of one shape; got {shapes}")
    pair = images.double(), captions.double().to(images.device)
    for name, vectors in zip(("images", "captions"), pair, strict=True):
        zero = (vectors.norm(dim=1) == 0).nonzero()
        if len(zero):
            raise ValueError(f"{name} must have no zero vectors, which have no direction; row {int(zero[0])} is one")
    scores = WEIGHT * torch.nn.functional.cosine_similarity(*pair, dim=1, eps=0.0).clamp(min=0)
    error = float(scores.std() / len(scores) ** 0.5) if len(scores) > 1 else None
    return ClipScore(float(scores.mean()), error, len(scores), scores)
