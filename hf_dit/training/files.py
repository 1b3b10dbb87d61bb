"""Images that are decoded when they are visited: as many as the disk holds."""

import numpy as np
import torch
from torch import Tensor

from hf_common.environment import memory_bytes

from .images import ImageFormat, ImageRows, read_image, read_images

MEMORY_SHARE = 4  # of the machine's memory, a fourth is what decoded images may take


def fits_in_memory(count: int, form: ImageFormat) -> bool:
    """Whether so many decoded images take at most a quarter of the machine's memory."""
    return count * 3 * form.size[0] * form.size[1] <= memory_bytes() // MEMORY_SHARE


class FileSamples:
    """Images as samples in [-1, 1] like `PixelSamples`, decoded anew at each visit by whoever asks for them.

    Args:
        rows, form: which images, and what they become.
        skip_corrupt: leave out what cannot be decoded, which is found by decoding all of them once, now.
        progress: show a bar of that.

    Attributes:
        kept: (N,) int64, indices into `rows`.

    Raises:
        ValueError: none can be decoded.
    """

    def __init__(self, rows: ImageRows, form: ImageFormat, *, skip_corrupt: bool = False, progress: bool = False):
        self._rows, self._form = rows, form
        self.kept = np.arange(len(rows))
        if skip_corrupt:
            found = read_images(rows, form, skip_corrupt=True, progress=progress)
            self.kept = np.fromiter((index for index, _ in found), np.int64)
            if len(self.kept) == 0:
                raise ValueError(f"none of the {len(rows)} images can be decoded")
        self.shape = 3, *form.size

    def __len__(self) -> int:
        return len(self.kept)

    def draw(self, index: int, flip: bool, rng: np.random.Generator) -> Tensor:
        """(3, H, W) float32; a `ValueError` names an image that cannot be decoded."""
        pixels = torch.from_numpy(np.ascontiguousarray(read_image(self._rows, self._form, int(self.kept[index]))))
        pixels = pixels.float() / 127.5 - 1
        return pixels.flip(2) if flip else pixels
