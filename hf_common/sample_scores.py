"""Scores of generated images by a metric of `evaluate`, as often as a training asks for them."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle, islice
from numbers import Real
from typing import Any

from PIL import Image

from .metrics import load_encoder, load_metric
from .plugins import in_one_line


class SampleScorer:
    """`scorer(images)` is a dict of numbers: what the metric's `compute` says of them and the references.

    For any loop that makes images. Metrics of this distribution embed the references once, in
    [`prepare`] or at the first call.

    Args:
        metric (`str`): id, folder or file of a metric that compares two sets of images, as `evaluate.load` takes it,
            its configuration after a comma: `"evaluate_metrics/cmmd,siglip"`.
        references: a function that gives the images to compare with, PIL images in RGB.
        encoder (`str`, *optional*): as the metric takes it; or `module:function`, `file.py:function` of a callable.
        device (`str`, *optional*): where the metric's own encoder runs.
        arguments (`dict`, *optional*): what else the metric is loaded with: `{"scores": ["fd", "kid"]}`.

    Raises:
        ValueError: the metric or the encoder cannot be loaded, or it takes no such arguments; in one line.
    """

    def __init__(
        self,
        metric: str,
        references: Callable[[], Iterable[Image.Image]],
        *,
        encoder: str | None = None,
        device: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        self.name, self._references = metric, references
        name, _, config = metric.partition(",")
        self._metric = load_metric(name, config or None, arguments)
        self._options: dict[str, Any] = {} if encoder is None else {"encoder": load_encoder(encoder)}
        if device is not None and not callable(self._options.get("encoder")):
            self._options["device"] = device
        self._moments: Any = None

    def prepare(self) -> None:
        """Embed the references, if the metric can keep them, which also shows whether encoder and images are right.

        Raises:
            ValueError: they are not; in one line.
        """
        if self._moments is None and hasattr(self._metric, "moments"):
            images = list(self._references())
            try:
                self._moments = self._metric.moments(images, **self._options)
            except Exception as error:  # of any kind: a metric and its encoder are someone's code
                raise ValueError(
                    f"metric {self.name!r:.120} can't embed the references: {in_one_line(error)}"
                ) from error

    def trial(self, count: int) -> dict[str, float]:
        """The scores of `count` references themselves, over again where there are fewer, to see what there will be.

        Raises:
            ValueError: the metric can't score so many; in one line.
        """
        self.prepare()
        try:
            return self(islice(cycle(list(self._references())), count))
        except Exception as error:  # of any kind, as above
            raise ValueError(f"metric {self.name!r:.120} can't score {count} images: {in_one_line(error)}") from error

    def __call__(self, images: Iterable[Image.Image]) -> dict[str, float]:
        """The finite numbers of the metric's result, by name and in its order."""
        given = {"predictions": list(images), **self._options}
        if not hasattr(self._metric, "moments"):
            given["references"] = list(self._references())
        else:
            self.prepare()
            given["reference_moments"] = self._moments
        result = self._metric.compute(**given)
        numbers = {name: value for name, value in result.items() if isinstance(value, Real)}
        return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
