"""Labelled images as an endless stream, shuffled anew each time through, decoded where a batch is put together."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hf_common.images import to_rgb

from ..hashing import as_int64, mix
from .draft import DraftedImage
from .files import STATISTICS_PIXELS, batch_of_views, statistics_of_counts
from .geometry import Geometry, OpenedImage, random_view

READ = 16  # rows at a time
MOST_MEASURED = 1000  # images of which statistics are made


class Streamed(NamedTuple):
    """One image, not decoded yet: its place in the endless stream, its row's `bytes` and `path`, its given label."""

    number: int
    image: dict[str, Any]
    label: int


@dataclass(eq=False, repr=False)
class StreamedImages(IterableDataset):
    """The rows of a `datasets.IterableDataset`, over and over, in an order of (seed, pass).

    Each worker of a `DataLoader` reads all rows and gives out each so many-th batch, so that batches come in the same
    order with any number of workers; what it does not give out is not decoded. Pass [`collate`] as the collator.

    Args:
        rows: with a column `image_column` of the type `Image(decode=False)`.
        label_column: of labels in 0..K-1.
        classes: the K names.
        buffer: rows among which the next one is drawn, which are held in memory, encoded, by each worker.
        seed: of the order and the augmentation.
        group: images of one step of all processes: what workers take in turns.
        skipped: so many images from the beginning are not decoded; for a loader that throws them away.
        geometry: what is done to each image; None: nothing, for images that share one size.
        augment: in place of `geometry`, random parts and mirror images that depend on (seed, place in the stream).
        draft: whether parts may be decoded at a lower scale where they are shrunk, see [`DraftedImage`].
        views: how many such parts of each image a batch holds.
    """

    rows: Any
    image_column: str
    label_column: str
    classes: Sequence[str]
    buffer: int = 1000
    seed: int = 0
    group: int = 1
    skipped: int = 0
    geometry: Geometry | None = None
    augment: bool = False
    draft: bool = False
    views: int = 1

    def __post_init__(self):
        if self.buffer < 1 or self.group < 1:
            raise ValueError(f"buffer and group must be 1 or more; got {self.buffer} and {self.group}")
        if self.augment and self.geometry is None:
            raise ValueError("random parts of images need a geometry, which says to what size they are brought")

    def prepared(self, geometry: Geometry | None, **changes: Any) -> "StreamedImages":
        """The same stream at the size of `geometry`; `changes` of other arguments."""
        return replace(self, geometry=geometry, **changes)

    def __iter__(self) -> Iterator[Streamed]:
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for image in self._endless():
            if image.number // self.group % workers == own:
                yield image

    def _endless(self, turns: Iterable[int] | None = None) -> Iterator[Streamed]:
        number = 0
        for turn in itertools.count() if turns is None else turns:
            before = number
            key = int(mix(mix(as_int64(self.seed)) + turn).item())
            # By batches: row by row, `datasets` would give each worker shards of its own.
            for batch in self.rows.shuffle(seed=key, buffer_size=self.buffer).iter(READ):
                for image, label in zip(batch[self.image_column], batch[self.label_column], strict=True):
                    yield Streamed(number, image, self._checked(label, number))
                    number += 1
            if number == before:
                raise ValueError("the stream of training images has no rows")

    def _checked(self, label: Any, number: int) -> int:
        if not isinstance(label, (int, np.integer)) or not 0 <= label < len(self.classes):
            raise ValueError(
                f"labels must be in 0..{len(self.classes) - 1}; {label!r:.80} stands in column {self.label_column!r}, "
                f"image {number} of the stream"
            )
        return int(label)

    def collate(self, images: Sequence[Streamed]) -> dict[str, Tensor]:
        """`{"pixel_values": uint8 (B, C, H, W), "labels": int64 (B,)}`; of several views (B, V, C, H, W).

        Images that are skipped are black, of one pixel.
        """
        labels = torch.tensor([image.label for image in images])
        if all(image.number < self.skipped for image in images):
            return {"pixel_values": torch.zeros(len(images), 3, 1, 1, dtype=torch.uint8), "labels": labels}
        pixels = batch_of_views([self._views(image) for image in images])
        return {"pixel_values": pixels if self.views > 1 else pixels[:, 0], "labels": labels}

    def _views(self, streamed: Streamed) -> list[Tensor]:
        name = f"image {streamed.number} of the stream"
        if self.augment:
            assert self.geometry is not None
            drafted = self.draft and DraftedImage(streamed.image, name)
            opened = drafted or OpenedImage(to_rgb(streamed.image, name))
            key = mix(as_int64(self.seed)) + streamed.number
            draws = [int(mix(mix(key) + view).item()) for view in range(self.views)]
            return [random_view(opened, self.geometry, Random(draw)) for draw in draws]
        pixels = torch.from_numpy(np.array(to_rgb(streamed.image, name)))
        return [pixels if self.geometry is None else self.geometry(pixels)]

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel on the [0, 1] scale, of the first images of the stream."""
        counts, pixels = torch.zeros(3, 256, dtype=torch.int64), 0
        still = replace(self, augment=False, views=1, skipped=0)
        for image in still._endless([0]):
            if image.number == MOST_MEASURED or pixels > STATISTICS_PIXELS:
                break
            values = still._views(image)[0].reshape(-1, 3)
            pixels += len(values)
            for channel in range(3):
                counts[channel] += torch.bincount(values[:, channel], minlength=256)
        return statistics_of_counts(counts)
