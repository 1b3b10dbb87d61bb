"""Parts of JPEG files, decoded at a lower scale where they are shrunk anyway: faster, not quite the same pixels."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from hf_common.images import encoded_bytes, to_rgb

SCALES = (8, 4, 2)  # at an n-th of which libjpeg decodes
ORIENTATION = 0x0112  # the EXIF tag
SWAPPED = (5, 6, 7, 8)  # its values under which rows of the file are columns of the image
FROM_THE_RIGHT, FROM_BELOW = (2, 3, 6, 7), (3, 4, 7, 8)  # under which the file has columns, rows from the other side


class DraftedImage:
    """An image file of which parts can be had, see [`~hf_robust.data.geometry.Opened`].

    A part of a JPEG that is at least twice as large as it has to become is decoded at 1/2, 1/4 or 1/8 of its scale:
    parts of 1600x1200 pixels for 224 take three quarters of the time. Its edges are right to half a pixel of that
    scale, which a small target shows. What comes out depends on the file, the part and the target alone. Other parts
    and files are decoded as always.

    Args:
        row: of `datasets`, not decoded: with `bytes` and `path`.
        name: what errors call an image without a path.

    Attributes:
        size: (height, width) of the whole image, upright.

    Raises:
        ValueError: the file cannot be read; it is named.
    """

    def __init__(self, row: Mapping[str, Any], name: str):
        self.row, self.name = row, row.get("path") or name
        self._decoded: dict[int, Image.Image] = {}  # by scale
        self._unread: Image.Image | None = (header := self._header())
        self._jpeg, self._raw_size = isinstance(header, JpegImageFile), header.size
        self._orientation = header.getexif().get(ORIENTATION, 1)
        width, height = header.size
        self.size = (width, height) if self._orientation in SWAPPED else (height, width)

    def part(self, top: int, left: int, height: int, width: int, target: tuple[int, int]) -> Tensor:
        """uint8 (H, W, 3): all of the part, in (height, width) pixels or fewer, but not in fewer than `target`."""
        times = min(height // target[0], width // target[1]) if self._jpeg else 1
        scale = next((scale for scale in SCALES if scale <= times), 1)
        image = self._at(scale)
        # The last pixel of a side may stand for fewer of the file's: upright, that is where the file ends.
        top += image.height * scale - self.size[0] if self._orientation in FROM_BELOW else 0
        left += image.width * scale - self.size[1] if self._orientation in FROM_THE_RIGHT else 0
        # Halves go up, all of them, so that no part has fewer pixels than its target.
        start, first, end, last = (
            (2 * edge + scale) // (2 * scale) for edge in (left, top, left + width, top + height)
        )
        return torch.from_numpy(np.array(image.crop((start, first, end, last))))

    def _at(self, scale: int) -> Image.Image:
        """The whole image, upright, with ceil(size / scale)."""
        if scale not in self._decoded:
            image, self._unread = self._unread or self._header(), None
            if scale > 1:
                width, height = self._raw_size
                image.draft(image.mode, (width // scale, height // scale))
            self._decoded[scale] = to_rgb(image, self.name)
        return self._decoded[scale]

    def _header(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(encoded_bytes(self.row)))
        except Exception:  # of almost any kind; the rule for all images has words for it
            to_rgb(dict(self.row), self.name)
            raise
