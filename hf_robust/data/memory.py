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


class ImageTensorDataset(Dataset):
    """All images of a split as one uint8 tensor; the `DataLoader` fetches a whole batch by one indexing operation.

    Args:
        images (`torch.Tensor`): uint8, (N, C, H, W).
        labels (`torch.Tensor`): int64, (N,): the given labels, which may be wrong.
        clean_labels (`torch.Tensor`, *optional*): int64, (N,): the true labels where they are known. They are never
            part of a batch: training cannot see them.

    A batch is `{"pixel_values": uint8 (B, C, H, W), "labels": int64 (B,), "index": int64 (B,)}`. An index i >= N
    stands for image i mod N with its label ignored (-100): samplers pad with such indices, so that a short last
    batch can be shared by several processes and every label still counts once.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, clean_labels: torch.Tensor | None = None):
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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):  # also what ends `for item in dataset`
            raise IndexError(f"index must be in 0..{len(self) - 1}; got {index}")
        (batch,) = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        # A list of one batch, not of B items: collators and the Trainer's column filter expect a list of dicts.
        index = torch.as_tensor(indices, dtype=torch.int64)
        position = index % len(self.images)
        labels = self.labels[position].masked_fill(index >= len(self.images), IGNORE_INDEX)
        return [{"pixel_values": self.images[position], "labels": labels, "index": position}]

    def given_and_clean(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Both labels of the images as arrays, int64 (N,); None where the true ones are unknown."""
        return self.labels.numpy(), None if self.clean_labels is None else self.clean_labels.numpy()

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, on the [0, 1] scale; exact (from counts)."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in range(self.images.shape[1]):
            counts = torch.bincount(self.images[:, channel].flatten(), minlength=256).double()
            weights = counts / counts.sum()
            mean = (weights * levels).sum()
            means.append(mean.item())
            stds.append((weights * (levels - mean) ** 2).sum().sqrt().item())
        return means, stds


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
    return isinstance(sample, Mapping) and getattr(sample.get(image_name), "ndim", 0) == 4


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
    """

    def __init__(
        self, num_samples: int, seed: int, epoch: Callable[[], int], multiple: int = 1, drop_last: bool = False
    ):
        self.num_samples, self.seed, self.epoch = num_samples, seed, epoch
        groups = num_samples // multiple if drop_last else -(-num_samples // multiple)
        self.length = groups * multiple

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        key = mix(mix(as_int64(self.seed)) + self.epoch())
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(int(key.item())))
        if len(self) <= self.num_samples:
            yield from order[: len(self)].tolist()
            return
        padding = order.repeat(-(-len(self) // self.num_samples))[: len(self) - self.num_samples] + self.num_samples
        yield from torch.cat([order, padding]).tolist()
