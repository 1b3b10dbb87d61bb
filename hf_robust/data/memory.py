"""Images as one uint8 tensor in memory, gathered by whole batches in an order of (seed, epoch)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler
from transformers import default_data_collator

from hf_common.images import to_rgb

from ..hashing import as_int64, mix
from ..losses.base import IGNORE_INDEX
from .files import Chosen, ImageFileDataset, PixelsInMemory, statistics_of_counts
from .labelled import EPOCH_SHIFT, LabelledImages, Source


class ImageTensorDataset(LabelledImages):
    """All images of a split as one uint8 tensor; the `DataLoader` fetches a whole batch by one indexing operation.

    Args:
        images (`torch.Tensor`): uint8, (N, C, H, W).
        labels (`torch.Tensor`): int64, (N,): the given labels, which may be wrong.
        clean_labels (`torch.Tensor`, *optional*): int64, (N,): the true labels where they are known. They are never
            part of a batch: training cannot see them.
        source (*optional*): what the images were read from.

    A batch is `{"pixel_values": uint8 (B, C, H, W), "labels": int64 (B,), "index": int64 (B,)}`; indices are those of
    [`LabelledImages`].
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        clean_labels: torch.Tensor | None = None,
        source: Source | None = None,
    ):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be a uint8 tensor (N, C, H, W); got {images.dtype} {tuple(images.shape)}")
        if len(images) == 0:
            raise ValueError("images must hold at least one image; got none")
        for name, values in (("labels", labels), ("clean_labels", clean_labels)):
            if values is not None and (values.dtype != torch.int64 or values.shape != images.shape[:1]):
                raise ValueError(
                    f"{name} must be an int64 tensor ({len(images)},); got {values.dtype} {tuple(values.shape)}"
                )
        self.images = images.contiguous()
        self.labels = labels
        self.clean_labels = clean_labels
        self._source = source

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        position = index % len(self.images)
        labels = self.labels[position].masked_fill(index >= len(self.images), IGNORE_INDEX)
        return [{"pixel_values": self.images[position], "labels": labels, "index": position}]

    def pixels(self, place: int) -> torch.Tensor:
        return self.images[place].permute(1, 2, 0)

    @property
    def source(self) -> Source | None:
        return self._source

    @property
    def random(self) -> bool:
        return False  # what is drawn is drawn by [`ImageTransform`]

    @property
    def size(self) -> tuple[int, int]:
        return int(self.images.shape[2]), int(self.images.shape[3])

    def still(self) -> "ImageTensorDataset":
        return self

    def with_labels(self, labels: torch.Tensor, clean_labels: torch.Tensor | None) -> "ImageTensorDataset":
        return ImageTensorDataset(self.images, labels, clean_labels, self.source)

    def subset(self, places: np.ndarray) -> "ImageTensorDataset":
        kept = torch.from_numpy(places)
        clean = None if self.clean_labels is None else self.clean_labels[kept]
        source = None if self.source is None else Chosen(self.source, _places(places))
        return ImageTensorDataset(self.images[kept], self.labels[kept], clean, source)

    def as_files(self) -> ImageFileDataset:
        """The same images for what is done to each by itself."""
        return ImageFileDataset(PixelsInMemory(self.images), self.labels, self.clean_labels)

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        channels = (self.images[:, channel].flatten() for channel in range(self.images.shape[1]))
        return statistics_of_counts(torch.stack([torch.bincount(channel, minlength=256) for channel in channels]))


def _places(kept: np.ndarray) -> np.ndarray:
    return np.flatnonzero(kept) if kept.dtype == bool else kept


class Positions(Dataset):
    """The samples of a map-style data set, each with its place there as `index`, whatever `index` it brings."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        return {**self.dataset[index], "index": index}


def collate_batch(samples: list, image_name: str = "pixel_values") -> dict[str, torch.Tensor]:
    """A batch of what data sets give: the ready batches of [`ImageTensorDataset`], dicts, or pairs (image, label).

    Args:
        samples: of one batch. Images are arrays (C, H, W) or PIL's, which become uint8 RGB; one image's shape is all
            others'. Whole numbers become uint8, as [`ImageTransform`] takes them.
        image_name: the name of the image in a dict; that of a pair becomes it.

    Raises:
        ValueError: a sample of another kind, images of several shapes or whole numbers outside 0..255.
    """
    samples = [_named(sample, image_name) for sample in samples]
    if all(_is_batch(sample, image_name) for sample in samples):
        return {key: torch.cat([batch[key] for batch in samples]) for key in samples[0]} if samples[1:] else samples[0]
    if not all(isinstance(sample, Mapping) and _is_image(sample.get(image_name)) for sample in samples):
        return default_data_collator(samples)
    images = [_image_tensor(sample[image_name]) for sample in samples]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ValueError(f"the images of a batch must have one shape; got {shapes}: resize them")
    rest = default_data_collator([{k: v for k, v in sample.items() if k != image_name} for sample in samples])
    return {image_name: torch.stack(images), **rest}


def _named(sample: Any, image_name: str) -> dict:
    if not isinstance(sample, (tuple, list)):
        return sample
    if len(sample) != 2:
        raise ValueError(f"a sample that is no dict must be a pair (image, label); got {len(sample)} values")
    if isinstance(sample[1], str):
        raise ValueError(f"labels must be whole numbers; got the text {sample[1][:80]!r}")
    return {image_name: sample[0], "labels": sample[1]}


def _is_batch(sample: Any, image_name: str) -> bool:
    return isinstance(sample, Mapping) and getattr(sample.get(image_name), "ndim", 0) in (4, 5)


def _is_image(value: Any) -> bool:
    depth = 0
    while isinstance(value, (list, tuple)) and value:
        value, depth = value[0], depth + 1
    return (isinstance(value, Image.Image) and depth == 0) or depth + getattr(value, "ndim", 0) == 3


def _image_tensor(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(to_rgb(image, "image"))).permute(2, 0, 1)
    if not isinstance(image, torch.Tensor):  # lists of numbers are float32, as torch takes them
        image = torch.from_numpy(image) if isinstance(image, np.ndarray) else torch.tensor(image)
    if image.is_floating_point() or image.dtype == torch.uint8:
        return image
    if image.min() < 0 or image.max() > 255:
        raise ValueError(f"images of whole numbers must be in 0..255; got {int(image.min())}..{int(image.max())}")
    return image.to(torch.uint8)


class EpochShuffleSampler(Sampler[int]):
    """A permutation that depends on (seed, epoch) alone, padded to a multiple of the batch of all processes.

    The order is the same for one process or many, with or without gradient accumulation, and after a resume.

    Args:
        num_samples (`int`): N, the size of the data set.
        seed (`int`): the shuffle's seed.
        epoch (`Callable[[], int]`): asked at the start of each pass, so that no one has to call `set_epoch`.
        multiple (`int`, defaults to 1): the length is padded to a multiple of this with indices >= N, whose labels
            [`ImageTensorDataset`] ignores.
        drop_last (`bool`, defaults to `False`): cut to a multiple instead.
        dated (`bool`, defaults to `False`): whether the indices carry the epoch, for data sets that draw by it.
        stock (`bool`, defaults to `False`): the permutation that `Trainer` has from accelerate for this seed.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        epoch: Callable[[], int],
        multiple: int = 1,
        drop_last: bool = False,
        dated: bool = False,
        stock: bool = False,
    ):
        self.num_samples, self.seed, self.epoch = num_samples, seed, epoch
        self.dated, self.stock = dated, stock
        groups = num_samples // multiple if drop_last else -(-num_samples // multiple)
        self.length = groups * multiple

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        key = self.seed + epoch if self.stock else int(mix(mix(as_int64(self.seed)) + epoch).item())
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(key))
        if len(self) > self.num_samples:
            rest = order.repeat(-(-len(self) // self.num_samples))[: len(self) - self.num_samples] + self.num_samples
            order = torch.cat([order, rest])
        date = epoch << EPOCH_SHIFT if self.dated else 0
        yield from (order[: len(self)] + date).tolist()
