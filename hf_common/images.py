"""Images of any kind as 8-bit RGB, by one rule in all packages; the middle square of an image; columns of images."""

import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FLOAT_ROUNDING = 1e-6  # what floating-point numbers may be beyond [0, 1], and are cut to it
OPENED = threading.Lock()  # an image opened by Pillow may be in a list twice; two threads must not decode it at once


def to_rgb(image: Any, name: str = "image") -> Image.Image:
    """
    Any image as 8-bit RGB.

    Args:
        image (path, `bytes`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            Arrays are (H, W) or (H, W, C), tensors (H, W) or (C, H, W), with C 1, 3 or 4, of uint8, uint16, or
            floating-point numbers in [0, 1], to 1e-6. `bytes` are the content of an image file. A `dict` has the keys
            `bytes` and `path`, as rows of `datasets` that are not decoded.

            An EXIF orientation is applied. Transparency is laid over white. Greyscale is repeated over the channels.
            Of 16 bits the full range maps to 8 bits, rounded; but of 16-bit colour files Pillow reads the upper 8.
            CMYK and other colour spaces are converted by Pillow, without colour profiles. Of an animation the first
            frame is taken.
        name (`str`): what errors call it; a path names itself.

    Raises:
        TypeError: not one of these.
        ValueError: a file cannot be read, or shape or values are none of these.
    """
    if isinstance(image, dict):
        if image.get("bytes") is None and image.get("path") is None:
            raise ValueError(
                f"{name} has neither bytes nor a path, but the keys {list(image)}; of a data set, give the column of "
                "images"
            )
        name = image.get("path") or name
        image = _read(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"], name)
    elif isinstance(image, (str, os.PathLike)):
        name = os.fspath(image)
        image = _read(image, name)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        image = _read(io.BytesIO(image), name)
    elif isinstance(image, torch.Tensor):
        array = image.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        image = _from_array((array.permute(1, 2, 0) if array.ndim == 3 else array).numpy(), name, "(C, H, W)")
    elif isinstance(image, np.ndarray):
        image = _from_array(image, name, "(H, W, C)")
    elif isinstance(image, Image.Image):
        file = image.filename if isinstance(image, ImageFile.ImageFile) else None
        name = f"{name} ({os.fsdecode(file)})" if file else name
        with OPENED:
            image = _read(image, name)
    else:
        raise TypeError(f"{name} must be a path, PIL image, array, tensor, bytes or dict, got {type(image).__name__}")
    if image.mode.startswith("I"):  # I;16 and its byte orders; 16 bits within 32, by some formats
        values = np.asarray(image).astype(np.int64)
        if not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(f"{name} must have values of 16 bits in mode {image.mode!r}, got values beyond")
        return _from_array(values.astype(np.uint16), name, "(H, W, C)")
    try:
        if image.mode in ("F", "LAB"):
            raise ValueError("its numbers have no range that says what is white")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")  # of no caller: it has just been made or copied
    except ValueError as error:  # also of Pillow, for modes between which it has no way
        raise ValueError(f"{name} has the mode {image.mode!r}; convert it to RGB: {error}") from None


def _read(source: str | os.PathLike | io.BytesIO | Image.Image, name: str) -> Image.Image:
    """The image of a file, or one that is open, decoded and upright; an error names it."""
    try:
        if isinstance(source, Image.Image):
            source.load()
            return ImageOps.exif_transpose(source)  # a copy: the caller's image stays as it is
        image = Image.open(_local(source))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except UnidentifiedImageError as error:  # its words have the address of an object
        raise ValueError(f"{name} cannot be read as an image: it is of no format that Pillow knows") from error
    except Exception as error:  # of almost any kind: each format of Pillow has its own for damaged files
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _local(source: str | os.PathLike | io.BytesIO) -> str | os.PathLike | io.BytesIO:
    """What Pillow can open: a file inside an archive or at an address, as rows of `datasets` may name it, is read."""
    if isinstance(source, str) and "://" in source:
        from datasets.utils.file_utils import xopen  # not at the top: bundles need `datasets` for such rows alone

        with xopen(source, "rb") as file:
            return io.BytesIO(file.read())
    return source


def encoded_bytes(row: Mapping[str, Any]) -> bytes:
    """The content of an image file that a row of `datasets`, not decoded, has or names: its `bytes`, or its `path`."""
    if row.get("bytes") is not None:
        return row["bytes"]
    file = _local(row["path"])
    return file.read() if isinstance(file, io.BytesIO) else Path(file).read_bytes()


def _from_array(array: np.ndarray, name: str, layout: str) -> Image.Image:  # (H, W) or (H, W, C) -> RGB
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        raise ValueError(
            f"{name} must have the shape (H, W) or {layout} with C 1, 3 or 4, got {array.shape} as (H, W, C)"
        )
    if np.issubdtype(array.dtype, np.floating):
        scale = 1
    elif array.dtype == np.uint8:
        scale = 255
    elif array.dtype.newbyteorder("=") == np.uint16:  # of either order of bytes
        scale = 65535
    else:
        raise TypeError(f"{name} must be of uint8, uint16 or floating-point numbers, got {array.dtype}")
    low, high = array.min(), array.max()
    beyond = FLOAT_ROUNDING if scale == 1 else 0
    if not (float(low) >= -beyond and float(high) <= scale + beyond):
        raise ValueError(f"{name} must have values in [0, {scale}] as {array.dtype}, got [{low}, {high}]")
    if scale != 255:
        array = np.rint(array * (255 / scale)).clip(0, 255).astype(np.uint8)
    return to_rgb(Image.fromarray(array), name)


def central_square(image: Image.Image) -> Image.Image:
    """The largest central square; where it cannot be central, the one nearer to the top or to the left."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resized_square(image: Image.Image, side: int) -> Image.Image:
    """The central square of an RGB image, scaled to `side` pixels (bicubic, smoothed where it shrinks)."""
    # Not the `box` of `resize`, which lets pixels beyond it bleed in.
    return central_square(image).resize((side, side), Image.Resampling.BICUBIC)


def resized_middle(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of an RGB image in the ratio of `height` to `width`, scaled to these (bicubic).

    [`resized_square`] for any ratio; the sides of the part are rounded to whole pixels.
    """
    scale = min(image.height / height, image.width / width)
    rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
    left, top = (image.width - columns) // 2, (image.height - rows) // 2
    part = image.crop((left, top, left + columns, top + rows))
    return part.resize((width, height), Image.Resampling.BICUBIC)


def image_column(features: Mapping, name: str | None = None) -> str:
    """The column of type `datasets.Image` called `name`, or the only one; a `ValueError` where there is none.

    Args:
        features: of a `datasets.Dataset`.
    """
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if name is None and len(images) == 1:
        return images[0]
    if name is None or name not in images:
        raise ValueError(
            f"image_column_name must be one of the columns of type Image, {images}; got {name!r}, columns "
            f"{list(features)}"
        )
    return name
