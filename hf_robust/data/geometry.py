"""From an image of any size to one of the network's: crops and resizings, each image by itself, as torch does them.

Pixels are uint8 (H, W, C): seen as channels last, torch resizes them at a fifth of Pillow's time and at most one grey
level apart.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the crops: share of the area, width / height
TRIES = 10


@dataclass(frozen=True)
class Geometry:
    """What an image processor does to the shape of an image: resize, then keep the centre.

    Args:
        size: (height, width), to which every image is brought whatever its shape; or the length of the shorter side,
            of which the longer one follows, rounded down.
        crop: (height, width) of the centre that is kept; None: all. It has to be given where `size` is one number.
        interpolation: `"bilinear"` or `"bicubic"`, anti-aliased.
    """

    size: tuple[int, int] | int
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"

    @classmethod
    def square(cls, side: int, interpolation: str = "bilinear") -> "Geometry":
        """The shorter side brought to `side`, and the central square."""
        return cls(side, (side, side), interpolation)

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        if self.crop is not None:
            return self.crop
        assert isinstance(self.size, tuple)
        return self.size

    def scaled(self, side: int) -> "Geometry":
        """The same with an output of (side, side): all lengths change by the factor of the smaller side's."""
        factor = side / min(self.output)
        if isinstance(self.size, int):
            return replace(self, size=max(side, round(self.size * factor)), crop=(side, side))
        if self.crop is None:
            return replace(self, size=(side, side))
        height, width = (max(side, round(length * factor)) for length in self.size)
        return replace(self, size=(height, width), crop=(side, side))

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (H, W, C) -> uint8 (*output, C)."""
        size = self.size
        if isinstance(size, int):
            size = shorter_side_to(size, *pixels.shape[:2])
        pixels = resized(pixels, size, self.interpolation)
        return pixels if self.crop is None else central(pixels, *self.crop)


def geometry_of(processor: Any) -> Geometry:
    """What a processor of transformers does to shapes.

    Raises:
        ValueError: its steps are none that are done here, such as padding or no resizing at all.
    """
    steps = processor.to_dict()
    size, crop = steps.get("size") or {}, steps.get("crop_size") if steps.get("do_center_crop") else None
    interpolation = FILTERS.get(steps.get("resample"), "")
    crop = (crop, crop) if isinstance(crop, int) else crop and (crop["height"], crop["width"])
    side = size.get("shortest_edge") if isinstance(size, Mapping) else None
    known = steps.get("do_resize", True) and interpolation and not steps.get("do_pad")
    if known and side and steps.get("crop_pct"):  # ConvNeXt: below 384 the square of a resized image, else warped
        if side < 384:
            return Geometry(int(side / steps["crop_pct"]), (side, side), interpolation)
        return Geometry((side, side), None, interpolation)
    if known and side and crop and not size.get("longest_edge"):
        return Geometry(side, crop, interpolation)
    if known and isinstance(size, Mapping) and size.get("height") and size.get("width"):
        return Geometry((size["height"], size["width"]), crop, interpolation)
    raise ValueError(f"the model's image processor does what is not done here to the shape of an image: {steps}")


def shorter_side_to(side: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) with the shorter side `side` and the longer one in proportion, rounded down."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def resized(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """uint8 (H, W, C) -> (*size, C), anti-aliased; as it is where it has that size."""
    if tuple(pixels.shape[:2]) == tuple(size):
        return pixels
    # Told from the strides, that of the one image included: a view that is channels last, as what comes out of it.
    batch = pixels[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0)


def central(pixels: Tensor, height: int, width: int) -> Tensor:
    """The centre (height, width) of (H, W, C), black beyond its edges; where it cannot be central, to the upper left.

    Of a margin that is padded, the odd pixel comes before the image, as in transformers.
    """
    rows, columns = pixels.shape[:2]
    if rows < height or columns < width:
        above, before = (max(0, math.ceil((want - have) / 2)) for want, have in ((height, rows), (width, columns)))
        below, after = max(0, height - rows - above), max(0, width - columns - before)
        pixels = F.pad(pixels, (0, 0, before, after, above, below))
        rows, columns = pixels.shape[:2]
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[top : top + height, left : left + width]


def crop_box(height: int, width: int, draw: random.Random) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image: 8 to 100 % of its area, 3:4 to 4:3.

    The rule of Inception's training (Szegedy et al. 2015, arXiv:1409.4842) as torchvision's `RandomResizedCrop` has
    it: ten tries, then the largest centre within these ratios.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for _ in range(TRIES):
        area = height * width * draw.uniform(*SCALE)
        ratio = math.exp(draw.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draw.random() * (height - crop_height + 1))
            return top, int(draw.random() * (width - crop_width + 1)), crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < RATIO[0]:
        crop_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        crop_width = round(height * RATIO[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_view(image: "Opened", geometry: Geometry, draw: random.Random) -> Tensor:
    """A random part of an image, see [`crop_box`], at the geometry's output size, mirrored half of the time.

    uint8 (*output, C).
    """
    part = image.part(*crop_box(*image.size, draw), geometry.output)
    pixels = resized(part, geometry.output, geometry.interpolation)
    return pixels.flip(1) if draw.random() < 0.5 else pixels


class Opened(Protocol):
    """An image of which parts can be had."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        ...

    def part(self, top: int, left: int, height: int, width: int, target: tuple[int, int]) -> Tensor:
        """uint8 (height, width, C), which is to be resized to `target`."""
        ...


class OpenedPixels:
    """One that is a tensor (H, W, C)."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def part(self, top: int, left: int, height: int, width: int, target: tuple[int, int]) -> Tensor:
        return self.pixels[top : top + height, left : left + width]


class OpenedImage:
    """One of Pillow, of which no more than the part becomes an array: a sixth of the time of all that is done."""

    def __init__(self, image: Image.Image):
        self.image = image

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def part(self, top: int, left: int, height: int, width: int, target: tuple[int, int]) -> Tensor:
        return torch.from_numpy(np.array(self.image.crop((left, top, left + width, top + height))))
