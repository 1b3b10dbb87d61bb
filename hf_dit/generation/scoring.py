"""Scores of the images by a metric of `evaluate`: no metric is named or imported here, its arguments are passed on."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image

from hf_common.arguments import parse_overrides
from hf_common.foreign import short
from hf_common.metrics import load_metric

from .arguments import ScoreArguments

Images = Callable[[], Iterable[Image.Image]]


def load_score_metric(scores: ScoreArguments) -> Any:
    """The metric that the flags name, loaded with their arguments; its encoder is loaded when it is needed.

    Raises:
        ValueError: there is no such metric, it does not take the arguments, or has no `moments` to save.
    """
    assert scores.score_metric is not None
    metric = load_metric(
        scores.score_metric,
        scores.score_config,
        parse_overrides(scores.score_arguments, named="--score_arguments"),
        words=("--score_metric", "--score_arguments"),
    )
    if scores.save_moments is not None and not callable(getattr(metric, "moments", None)):
        raise ValueError(f"--save_moments: {short(repr(scores.score_metric), 80)} has no moments")
    return metric


def open_references(metric: Any, scores: ScoreArguments) -> dict:
    """What the metric's `compute` gets beside the images, before these are sampled.

    A metric that has `moments` embeds the folder of references now, or else one picture: an encoder that isn't there
    is told before hours of sampling.

    Raises:
        ValueError, OSError: what the metric raises.
    """
    path, embeds = scores.score_references, callable(getattr(metric, "moments", None))
    if path is not None and os.path.isdir(path):
        return {"reference_moments": metric.moments(path)} if embeds else {"references": path}
    if embeds:
        metric.moments([Image.linear_gradient("L").convert("RGB")])
    return {} if path is None else {"reference_moments": path}


def score_images(metric: Any, images: Images, scores: ScoreArguments, references: dict) -> dict | None:
    """What the metric's `compute` returns, as JSON values; None without references. Writes the moments.

    The images go to the metric one by one in the order of their numbers, whatever processes sampled them, so that
    scores and moments are those of the files of the PNG form to the last bit (with class folders, whose order is
    another, to rounding).

    Args:
        images: gives all images, RGB; called once for each of the two.
        references: of [`open_references`].

    Raises:
        ValueError, OSError: what the metric raises. The images are kept.
    """
    if scores.save_moments is not None:
        moments, metadata = metric.moments(images())
        moments.save(scores.save_moments, metadata)
    if scores.score_references is None:
        return None
    result = metric.compute(predictions=images(), **references)
    # A value that JSON has not, as the distance of too few images, is null.
    return json.loads(json.dumps(result, default=float), parse_constant=lambda name: None)
