"""What metrics of two sets of images share: any numbers of images, embedded as they come, kept as moments."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import evaluate
import torch

from hf_common.images import to_rgb

from .encoders import Encoder
from .moments import Moments

BATCH_SIZE = 64
SIDES = ("predictions", "references")


class ImageSet(NamedTuple):
    """Moments of the embeddings of a set of images, and the embeddings, (b, d) float32 each, if they are kept."""

    moments: Moments
    embeddings: list[torch.Tensor]

    def merge(self, other: "ImageSet") -> "ImageSet":
        return ImageSet(self.moments.merge(other.moments), self.embeddings + other.embeddings)


class ImageSetMetric(evaluate.Metric, ABC):
    """
    Unlike other metrics it takes unequal numbers of predictions and references, and embeds them at once: nothing but
    moments is kept, O(d^2) memory, unless `keep_embeddings`. It does not gather over the processes of `num_process`;
    merge their moments.

    A metric adds `_info`, `_make_encoder`, and `compute`, which scores what `_both` returns and then calls `_forget`.
    """

    def __init__(
        self,
        config_name: str | None,
        configs: tuple[str, ...],  # the first is the default
        encoder: str | os.PathLike | Callable | None,
        batch_size: int,
        device: str | torch.device | None,
        keep_embeddings: bool = False,
        **kwargs,  # of evaluate.Metric
    ):
        if config_name not in (None, "default", *configs):
            raise ValueError(f"the configuration must be one of {configs}, got {config_name!r}; or give encoder=...")
        super().__init__(config_name=config_name, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process must be 1, got {self.num_process}: merge the moments of the processes instead"
            )
        if callable(encoder) and device is not None:
            raise ValueError(f"device is for models that are loaded here, a callable has its own, got {device!r}")
        self._config = configs[0] if self.config_name == "default" else self.config_name
        self._default, self._batch_size, self._device, self._keep = encoder, batch_size, device, keep_embeddings
        self._encoder: Encoder | None = None
        self._encoder_key = None  # what it was made from
        self._forget()

    @abstractmethod
    def _make_encoder(
        self, encoder: str | os.PathLike | Callable | None, device: str | torch.device | None
    ) -> Encoder:
        """The encoder asked for; None: that of the configuration."""

    def add(
        self,
        *,
        prediction=None,
        reference=None,
        predictions=None,
        references=None,
        encoder: str | os.PathLike | Callable | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Add one image to either set or to both. `evaluate.combine` calls them `predictions` and `references`."""
        used = self._select(encoder, device)
        images = {
            "predictions": predictions if prediction is None else prediction,
            "references": references if reference is None else reference,
        }
        images = {side: to_rgb(image, side[:-1]) for side, image in images.items() if image is not None}
        for side, image in images.items():
            self._waiting[side].append(image)
            if len(self._waiting[side]) >= self._batch_size:
                self._added[side] = self._collected(side, None, used, self._batch_size)
                self._waiting[side] = []

    def add_batch(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Add images to either set or to both, also in unequal numbers. After an error nothing has been added."""
        used = self._select(encoder, device)
        given = {"predictions": predictions, "references": references}
        new = {
            side: self._embed(used, images, batch_size, side) for side, images in given.items() if images is not None
        }
        for side, images in new.items():
            self._added[side] = images if self._added[side] is None else self._added[side].merge(images)

    def moments(
        self,
        images: Iterable,
        *,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Moments, dict[str, str]]:
        """Moments of `images`, and metadata for their `save`: together they are `reference_moments` of `compute`."""
        used = self._select(encoder, device)
        return self._embed(used, images, batch_size, "images").moments, used.metadata

    def _both(
        self,
        predictions: Iterable | None,
        references: Iterable | None,
        reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]] | None,
        encoder: str | os.PathLike | Callable | None,
        batch_size: int | None,
        device: str | torch.device | None,
    ) -> tuple[Encoder, ImageSet, ImageSet]:
        """The encoder, predictions and references: all that was added and all that is given here. Forgets nothing."""
        given = {"predictions": predictions, "references": references}
        sides = [side for side in SIDES if given[side] is not None or self._holds(side)]
        if "predictions" not in sides:
            raise ValueError("predictions are missing: give them to compute, add or add_batch")
        if ("references" in sides) == (reference_moments is not None):
            raise ValueError(
                "references are given twice, as images and as reference_moments"
                if reference_moments is not None
                else "references are missing: give them to compute, add or add_batch, or give reference_moments"
            )
        used = self._select(encoder, device)
        sets = {} if reference_moments is None else {"references": _load(reference_moments, used)}
        sets |= {side: self._collected(side, given[side], used, batch_size) for side in sides}
        return used, sets["predictions"], sets["references"]

    def _forget(self) -> None:
        self._added: dict[str, ImageSet | None] = dict.fromkeys(SIDES)
        self._waiting: dict[str, list] = {side: [] for side in SIDES}  # RGB images that fill no batch yet

    def _holds(self, side: str) -> bool:
        return self._added[side] is not None or bool(self._waiting[side])

    def _select(self, encoder: str | os.PathLike | Callable | None, device: str | torch.device | None) -> Encoder:
        """The encoder asked for, else that of the images held, else the default; loaded once for calls in a row."""
        holds = any(self._holds(side) for side in SIDES)
        if holds and encoder is None and device is None:
            return self._encoder
        chosen = self._default if encoder is None else encoder
        key = (chosen, self._device if device is None and not callable(chosen) else device)
        if key != self._encoder_key:
            made = self._make_encoder(*key)
            if holds:
                made.check(self._encoder.metadata, "the images added before")
            self._encoder, self._encoder_key = made, key
        return self._encoder

    def _collected(self, side: str, images: Iterable | None, used: Encoder, batch_size: int | None) -> ImageSet:
        """All images of a side: those added, those waiting, and `images`."""
        collected = self._embed(used, self._waiting[side], batch_size, side)
        if images is not None:
            collected = collected.merge(self._embed(used, images, batch_size, side))
        return collected if self._added[side] is None else self._added[side].merge(collected)

    def _embed(self, encoder: Encoder, images: Iterable, batch_size: int | None, name: str) -> ImageSet:
        moments, kept = Moments.zeros(encoder.dim), []
        for batch in encoder.encode_batches(images, self._batch_size if batch_size is None else batch_size, name):
            moments.update(batch)
            if self._keep:
                kept.append(batch)
        return ImageSet(moments, kept)


def _load(reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]], encoder: Encoder) -> ImageSet:
    if isinstance(reference_moments, (str, os.PathLike)):
        moments, metadata = Moments.load(reference_moments)
    elif isinstance(reference_moments, tuple) and [isinstance(part, dict) for part in reference_moments] == [
        False,
        True,
    ]:
        moments, metadata = reference_moments
    else:
        kind = type(reference_moments).__name__
        raise TypeError(f"reference_moments must be a file, or moments with their metadata, got {kind}")
    encoder.check(metadata, "reference_moments")
    # Of this file's class, also where another copy made them.
    return ImageSet(Moments(moments.n, moments.sum, moments.outer), [])
