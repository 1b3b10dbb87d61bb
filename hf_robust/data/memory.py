"""Images as one uint8 tensor in memory, gathered by whole batches, augmented and normalised on the training device."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Sampler

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


def collate_batch(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The collator that goes with [`ImageTensorDataset`]: the data set has already made the batch."""
    (batch,) = batches
    return batch


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
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(key.item()))
        if len(self) <= self.num_samples:
            yield from order[: len(self)].tolist()
            return
        padding = order.repeat(-(-len(self) // self.num_samples))[: len(self) - self.num_samples] + self.num_samples
        yield from torch.cat([order, padding]).tolist()


class ImageTransform:
    """uint8 images -> normalised float32 on the images' device, with random crop and flip when training.

    Crop offset and flip of a sample depend on (seed, epoch, index) alone, by a hash and not a generator's state: each
    sample has its own, and a run draws the same ones on one process or many, on any device, and after a resume.

    Args:
        mean, std (`Sequence[float]`): one value a channel, on the [0, 1] scale.
        crop_padding (`int`, defaults to 0): in training, pad this many zero (black) pixels on each side and crop back
            to the original size at a random place; the papers on label noise use 4 for CIFAR.
        horizontal_flip (`bool`, defaults to `False`): in training, mirror with probability 1/2.
        size (`int`, *optional*): resize to (size, size), anti-aliased, for models made for another size.
        center_crop (`int`, *optional*): then keep the central (center_crop, center_crop).
        interpolation (`str`, defaults to `"bilinear"`): of the resizing, or `"bicubic"`.
        seed (`int`, defaults to 0): the augmentation's seed.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop_padding: int = 0,
        horizontal_flip: bool = False,
        size: int | None = None,
        center_crop: int | None = None,
        interpolation: str = "bilinear",
        seed: int = 0,
    ):
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean and std need one value a channel and std > 0; got mean={mean}, std={std}")
        if crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0; got {crop_padding}")
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation must be bilinear or bicubic; got {interpolation!r}")
        self.crop_padding, self.horizontal_flip, self.seed = crop_padding, horizontal_flip, seed
        self.size, self.center_crop, self.interpolation = size, center_crop, interpolation

    @property
    def random(self) -> bool:
        """Whether training images are augmented."""
        return bool(self.crop_padding or self.horizontal_flip)

    def __call__(
        self, images: torch.Tensor, *, index: torch.Tensor | None = None, epoch: int = 0, view: int = 0
    ) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H', W'); augmented with `index` int64 (B,), plain without it.

        `view` numbers several draws for one image in one epoch.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"images must be uint8 (B, {self.mean.shape[1]}, H, W); got {images.dtype} {tuple(images.shape)}"
            )
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        if index is not None and self.random:
            images = self._augment(images, index, epoch, view)
        # Channels last: convolutions, batch norm and pooling take it over, and on CPUs run up to 1.8 times as fast.
        pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode=self.interpolation, antialias=True)
            pixels.clamp_(0, 1)  # bicubic overshoots; 8-bit images, which it is made for, can't
        if self.center_crop is not None:
            top, left = ((side - self.center_crop) // 2 for side in pixels.shape[-2:])
            pixels = pixels[:, :, top : top + self.center_crop, left : left + self.center_crop]
        return (pixels - self.mean).div_(self.std)

    def _augment(self, images: torch.Tensor, index: torch.Tensor, epoch: int, view: int) -> torch.Tensor:
        _, _, height, width = images.shape
        draw = epoch + (view << 32)
        bits = mix(mix(mix(as_int64(self.seed)) + draw).to(images.device) + index)  # (B,)
        places = 2 * self.crop_padding + 1
        top, left, flip = bits % places, (bits >> 20) % places, (bits >> 40) % 2
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = torch.arange(width, device=images.device).expand(len(images), -1)
        if self.horizontal_flip:
            columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns)
        columns = left[:, None] + columns  # (B, W)
        padded = F.pad(images, [self.crop_padding] * 4)
        sample = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
