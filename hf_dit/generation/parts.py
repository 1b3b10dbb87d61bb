"""The batches that are sampled, a file each, until all are there: what a killed run goes on from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_common.files import replacing
from hf_common.foreign import refuse

from .plan import batch_starts


class SampledBatch(NamedTuple):
    """One batch: images (b, H, W, C) uint8, the seconds that they took, the hardware that sampled them."""

    images: np.ndarray
    seconds: float
    hardware: str


class Parts:
    """The files of the batches of `num_images` images of `shape` (H, W, C), C 1 or 3, in `folder`.

    A file of numpy (`.npz`), whose checksums tell whether it is whole; it has its name when its content is on the
    disk.
    """

    def __init__(self, folder: Path, num_images: int, batch_size: int, shape: tuple[int, int, int]):
        self.folder, self.num_images, self.batch_size, self.shape = folder, num_images, batch_size, shape

    @property
    def starts(self) -> range:
        """The number of the first image of each."""
        return batch_starts(self.num_images, self.batch_size)

    def size(self, start: int) -> int:
        """How many images the batch that begins there keeps."""
        return min(self.batch_size, self.num_images - start)

    def write(self, start: int, part: SampledBatch) -> None:
        with replacing(self._path(start)) as temporary, temporary.open("wb") as file:
            np.savez(file, images=part.images, seconds=part.seconds, hardware=part.hardware)

    def read(self, start: int) -> SampledBatch:
        """The batch that begins with image `start`.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        path = self._path(start)
        try:
            with np.load(path, allow_pickle=False) as stored:
                part = SampledBatch(stored["images"], float(stored["seconds"]), str(stored["hardware"]))
        except Exception as error:  # of any kind, as the bytes may be
            raise refuse(path, f"can't be read, run the same command again: {error}") from error
        if part.images.shape != (self.size(start), *self.shape) or part.images.dtype != np.uint8:
            raise refuse(path, f"holds {part.images.shape} {part.images.dtype}, and not {self.size(start)} images")
        return part

    def missing(self) -> list[int]:
        """The starts of the batches that are not there or damaged; each file is read for it."""
        return [start for start in self.starts if not self._is_whole(start)]

    def images(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number, (H, W, C) uint8) of all images, in order."""
        for start in self.starts:
            yield from enumerate(self.read(start).images, start)

    def measured(self) -> list[tuple[float, str]]:
        """Seconds and hardware of each batch; the images are not read."""
        measured = []
        for start in self.starts:
            with np.load(self._path(start), allow_pickle=False) as stored:
                measured.append((float(stored["seconds"]), str(stored["hardware"])))
        return measured

    def images_there(self) -> int:
        """How many images are in files, without a look into these."""
        names = {entry.name for entry in os.scandir(self.folder)}
        return sum(self.size(start) for start in self.starts if self._path(start).name in names)

    def _is_whole(self, start: int) -> bool:
        if not self._path(start).exists():
            return False
        try:
            self.read(start)
        except ValueError:
            return False
        return True

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:08d}.npz"
