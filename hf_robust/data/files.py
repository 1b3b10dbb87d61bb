"""Images that stay encoded: decoded, cropped and resized when their batch is due, in the workers of a `DataLoader`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from hf_common.images import encoded_bytes, to_rgb

from ..hashing import as_int64, mix
from ..losses.base import IGNORE_INDEX
from .draft import DraftedImage
from .geometry import Geometry, Opened, OpenedImage, OpenedPixels, random_view
from .labelled import EPOCH_SHIFT, LabelledImages, Source

STATISTICS_PIXELS = 1 << 26  # that channel statistics are of: all of CIFAR-10's


@dataclass(eq=False, repr=False)
class ImageFileDataset(LabelledImages):
    """Labelled images of any sizes, read one by one; what is given out has the size of `geometry`.

    Args:
        read: the uint8 pixels (H, W, 3) of the image at a place; called in workers.
        labels (`torch.Tensor`): int64 (N,), the given labels, which may be wrong.
        clean_labels (`torch.Tensor`, *optional*): int64 (N,), the true labels where they are known; never part of a
            batch.
        geometry: what is done to each image; None: nothing, for images that share one size.
        augment: in place of `geometry`, random parts and mirror images that depend on (seed, epoch, index) alone.
        draft: whether parts may be decoded at a lower scale where they are shrunk, see [`DraftedImage`]: faster, and
            not quite the same pixels. Without `augment` nothing is.
        views: how many such parts of each image a batch holds.
        seed: of the augmentation.
        one_size: whether all images share one; None: nobody has looked.

    A batch is `{"pixel_values": uint8 (B, C, H, W), "labels": int64 (B,), "index": int64 (B,)}`; of several views
    (B, V, C, H, W). An index is that of the image, or more as [`LabelledImages`] says: with the epoch in its upper
    bits, so that workers need not be told of it.
    """

    read: Callable[[int], Tensor]
    labels: Tensor
    clean_labels: Tensor | None = None
    geometry: Geometry | None = None
    augment: bool = False
    draft: bool = False
    views: int = 1
    seed: int = 0
    one_size: bool | None = None

    def __post_init__(self):
        if len(self.labels) == 0:
            raise ValueError("there must be at least one image; got none")
        if self.augment and self.geometry is None:
            raise ValueError("random parts of images need a geometry, which says to what size they are brought")

    def pixels(self, place: int) -> Tensor:
        return self.read(place)

    @property
    def source(self) -> Source | None:
        return self.read if isinstance(self.read, Source) else None

    @property
    def random(self) -> bool:
        return self.augment

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what is given out."""
        if self.geometry is not None:
            return self.geometry.output
        first = self.read(0)
        return int(first.shape[0]), int(first.shape[1])

    def still(self) -> "ImageFileDataset":
        return replace(self, augment=False, views=1) if self.augment else self

    def with_labels(self, labels: Tensor, clean_labels: Tensor | None) -> "ImageFileDataset":
        return replace(self, labels=labels, clean_labels=clean_labels)

    def subset(self, places: np.ndarray) -> "ImageFileDataset":
        places = np.flatnonzero(places) if places.dtype == bool else places
        clean = None if self.clean_labels is None else self.clean_labels[places]
        return replace(self, read=Chosen(self.read, places), labels=self.labels[places], clean_labels=clean)

    def prepared(
        self, geometry: Geometry | None, *, augment: bool = False, draft: bool = False, views: int = 1, seed: int = 0
    ) -> "ImageFileDataset":
        """The same images at the size of `geometry`, or random parts of them."""
        return replace(self, geometry=geometry, augment=augment, draft=draft, views=views, seed=seed)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        keys = torch.as_tensor(indices, dtype=torch.int64)
        epochs, index = keys >> EPOCH_SHIFT, keys & ((1 << EPOCH_SHIFT) - 1)
        places = index % len(self)
        labels = self.labels[places].masked_fill(index >= len(self), IGNORE_INDEX)
        draws = [self._draws(places, epochs, view).tolist() for view in range(self.views)]
        images = [
            self._views(place, draw) for place, draw in zip(places.tolist(), zip(*draws, strict=True), strict=True)
        ]
        pixels = batch_of_views(images)
        return [{"pixel_values": pixels if self.views > 1 else pixels[:, 0], "labels": labels, "index": places}]

    def _views(self, place: int, draws: Sequence[int]) -> list[Tensor]:
        """What is given out of the image at a place, (H, W, C) each; `draws` seed one random part each."""
        if self.augment:
            assert self.geometry is not None
            opened = opened_by(self.read, place, self.draft)
            return [random_view(opened, self.geometry, Random(draw)) for draw in draws]
        pixels = self.read(place)
        return [pixels if self.geometry is None else self.geometry(pixels)]

    def _draws(self, places: Tensor, epochs: Tensor, view: int) -> Tensor:
        """Numbers of (seed, epoch, index, view): the same in any worker and process, and after a resume."""
        return mix(mix(mix(as_int64(self.seed)) + epochs + (view << 32)) + places)

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """As [`ImageTensorDataset.channel_statistics`], of as many evenly spaced images as have 2^26 pixels."""
        still, (height, width) = self.still(), self.size
        count = min(len(self), max(1, STATISTICS_PIXELS // (height * width)))
        counts = torch.zeros(3, 256, dtype=torch.int64)
        for place in np.linspace(0, len(self) - 1, count).round().astype(int):
            pixels = still._views(int(place), ())[0].reshape(-1, 3)
            for channel in range(3):
                counts[channel] += torch.bincount(pixels[:, channel], minlength=256)
        return statistics_of_counts(counts)


def batch_of_views(images: Sequence[Sequence[Tensor]]) -> Tensor:
    """V views, uint8 (H, W, C), of each of B images -> (B, V, C, H, W), channels last as they are trained on.

    In a worker they are written to the memory that it shares with the process it sends them to.
    """
    shapes = sorted({tuple(view.shape) for views in images for view in views})
    if len(shapes) > 1:
        sizes = [shape[:2] for shape in shapes]
        raise ValueError(f"the images of a batch must have one size; got {sizes}: give a resolution")
    shape = len(images), len(images[0]), *shapes[0]
    pixels = torch.empty(0, dtype=torch.uint8)
    if get_worker_info() is not None:  # as torch's own collator does
        pixels.set_(torch.UntypedStorage._new_shared(math.prod(shape)))
    pixels.resize_(shape)
    for place, views in enumerate(images):
        for view, image in enumerate(views):
            pixels[place, view] = image
    return pixels.permute(0, 1, 4, 2, 3)


def statistics_of_counts(counts: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, on the [0, 1] scale, of counts (C, 256) of its values."""
    levels, means, stds = torch.arange(256, dtype=torch.float64) / 255, [], []
    for channel in counts.double():
        weights = channel / channel.sum()
        mean = (weights * levels).sum()
        means.append(mean.item())
        stds.append((weights * (levels - mean) ** 2).sum().sqrt().item())
    return means, stds


@runtime_checkable
class Opens(Protocol):
    """A reader that also gives parts of an image, for less than the whole."""

    def open(self, place: int, draft: bool) -> Opened:
        """The image at a place; with `draft` its parts may be decoded at a lower scale."""
        ...


def opened_by(read: Callable[[int], Tensor], place: int, draft: bool) -> Opened:
    """The image at a place of any reader, for parts of it."""
    return read.open(place, draft) if isinstance(read, Opens) else OpenedPixels(read(place))


class EncodedImages:
    """Reads the images of a column of a data set that is not decoded: rows with `bytes` and `path`.

    Args:
        rows: a `datasets.Dataset`, whose `column` is cast to `Image(decode=False)`.
        what: what errors call its images.
    """

    def __init__(self, rows: Any, column: str, what: str):
        self.rows, self.column, self.what = rows, column, what

    def __call__(self, place: int) -> Tensor:
        return torch.from_numpy(np.array(self._decoded(place)))

    def open(self, place: int, draft: bool) -> Opened:
        if draft:
            return DraftedImage(self.rows[place][self.column], self._called(place))
        return OpenedImage(self._decoded(place))

    def _decoded(self, place: int) -> Image.Image:
        return to_rgb(self.rows[place][self.column], self._called(place))

    def _called(self, place: int) -> str:
        return f"{self.what}: image {place}"

    def name(self, place: int) -> str | None:
        return self.rows[place][self.column].get("path")

    def encoded(self, place: int) -> bytes:
        return encoded_bytes(self.rows[place][self.column])


class PixelsInMemory:
    """Reads images (N, 3, H, W) that are there already."""

    def __init__(self, images: Tensor):
        self.images = images

    def __call__(self, place: int) -> Tensor:
        return self.images[place].permute(1, 2, 0)


class Chosen:
    """Some of the images of a source."""

    def __init__(self, read: Any, places: np.ndarray):
        self.read, self.places = read, places

    def __call__(self, place: int) -> Tensor:
        return self.read(int(self.places[place]))

    def open(self, place: int, draft: bool) -> Opened:
        return opened_by(self.read, int(self.places[place]), draft)

    def name(self, place: int) -> str | None:
        return self.read.name(int(self.places[place]))

    def encoded(self, place: int) -> bytes | None:
        return self.read.encoded(int(self.places[place]))
