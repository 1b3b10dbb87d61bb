"""What the trainer asks of labelled samples, and the studies of images, wherever they lie."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

EPOCH_SHIFT = 40  # bits of an index: more samples than anyone has


@runtime_checkable
class Source(Protocol):
    """Reads the images of a data set, in its order."""

    def __call__(self, place: int) -> Tensor:
        """uint8 (H, W, 3)."""
        ...

    def name(self, place: int) -> str | None:
        """The file of an image, as far as its row tells."""
        ...

    def encoded(self, place: int) -> bytes | None:
        """The content of its file."""
        ...


class LabelledSamples(Dataset, ABC):
    """N samples with their given labels, and the true ones where they are known; a batch is fetched at once.

    An index i in 0..N-1 is a sample. N <= i < 2^40 stands for sample i mod N with its label ignored (-100): samplers
    pad with such indices, so that a short last batch can be shared by several processes and every label still counts
    once. Bits from 40 on are the epoch, for those that draw by it.

    Attributes:
        labels: int64 (N,), the given labels, which may be wrong.
        clean_labels: int64 (N,), the true ones where they are known; never part of a batch.
    """

    labels: Tensor
    clean_labels: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):  # also what ends `for item in dataset`
            raise IndexError(f"index must be in 0..{len(self) - 1}; got {index}")
        (batch,) = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """A list of one batch, not of B items: collators and the Trainer's column filter expect a list of dicts."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether what a batch holds depends on the epoch."""

    @abstractmethod
    def still(self) -> "LabelledSamples":
        """The same samples as they are evaluated, without augmentation."""

    @abstractmethod
    def with_labels(self, labels: Tensor, clean_labels: Tensor | None) -> "LabelledSamples":
        """The same samples with other labels."""

    @abstractmethod
    def subset(self, places: np.ndarray) -> "LabelledSamples":
        """Some of the samples: a mask (N,) or places (n,)."""

    @abstractmethod
    def described(self, place: int) -> dict[str, str | None]:
        """What a person knows a sample by: column -> value, the same columns for all."""

    def given_and_clean(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Both labels as arrays, int64 (N,); None where the true ones are unknown."""
        return self.labels.numpy(), None if self.clean_labels is None else self.clean_labels.numpy()


class LabelledImages(LabelledSamples):
    """[`LabelledSamples`] that are images."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the images in a batch."""

    @abstractmethod
    def pixels(self, place: int) -> Tensor:
        """uint8 (H, W, C): one image as it was read, at its own size."""

    @property
    @abstractmethod
    def source(self) -> "Source | None":
        """Where the images were read from; None for those that were made in memory."""

    @abstractmethod
    def still(self) -> "LabelledImages": ...

    @abstractmethod
    def with_labels(self, labels: Tensor, clean_labels: Tensor | None) -> "LabelledImages": ...

    @abstractmethod
    def subset(self, places: np.ndarray) -> "LabelledImages": ...

    @abstractmethod
    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the pixels, on the [0, 1] scale; exact, from counts."""

    def described(self, place: int) -> dict[str, str | None]:
        """`file`, None for an image that has no name."""
        return {"file": None if self.source is None else self.source.name(place)}


@dataclass(frozen=True)
class LabelledSplits:
    """Training and test samples of a data set, and the names of its K classes."""

    train: LabelledSamples
    test: LabelledSamples
    label_names: list[str]
