"""Training images and their classes: found by `datasets`, cut and scaled by Pillow, kept as uint8 in memory."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_common.images import image_column, resized_middle, to_rgb
from hf_common.names import data_source

from .arguments import DataArguments

LABEL_COLUMNS = ("label", "labels")
CHUNK = 256  # images handed to the threads at once


@dataclass(frozen=True)
class ImageRows:
    """Images that are found but not decoded yet.

    rows: N rows, whose image column gives encoded bytes or paths. numbers: (N,) each row's number in the data set.
    labels: (N,) int64 in [0, K), and the K names; both None without classes.
    """

    rows: datasets.Dataset
    image_column: str
    numbers: np.ndarray
    labels: np.ndarray | None
    label_names: list[str] | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """Names the rows and their order; changes with the files that they come from."""
        return self.rows._fingerprint  # `datasets` keys its own caches by it and gives it no public name

    def some(self, count: int) -> "ImageRows":
        """So many of the rows: the first of a shuffle that is always the same."""
        # Shuffled, as many data sets are sorted by class.
        chosen = np.random.default_rng(0).permutation(len(self))[:count]
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, rows=self.rows.select(chosen), numbers=self.numbers[chosen], labels=labels)

    def describe(self, index: int, encoded: dict | None) -> str:
        """`"image 17 (cats/a.png)"`: the number in the data set, and the path where the row's image has one."""
        path = encoded and encoded["path"]
        return f"image {self.numbers[index]}" + (f" ({path})" if path else "")


@dataclass(frozen=True)
class ImageFormat:
    """What every image becomes: `size` (height, width); `resized` is False where images must have it already."""

    size: tuple[int, int]
    resized: bool
    center_crop: bool = True
    allow_upscale: bool = False


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images (N, 3, H, W) uint8, labels (N,) int64 or None, and how many images could not be decoded."""

    images: Tensor
    labels: Tensor | None
    skipped: int


def open_rows(data: DataArguments) -> ImageRows:
    """The training rows that `data` names, with their labels; images stay encoded.

    Raises:
        ValueError: no image column or several, no labels or several columns of them, a label that is missing or
            outside its classes, or fewer images than `max_train_samples`.
    """
    if data.dataset_name is None:
        rows = datasets.load_dataset(
            "imagefolder", data_dir=data.train_data_dir, split="train", cache_dir=data.cache_dir
        )
    else:
        with data_source(data.dataset_name, "dataset_name"):
            rows = datasets.load_dataset(
                data.dataset_name, data.dataset_config_name, split="train", cache_dir=data.cache_dir
            )
    if len(rows) == 0:
        raise ValueError(f"the training split of {data.dataset_name or data.train_data_dir!r} is empty")
    column = image_column(rows.features, data.image_column_name)
    labels = label_names = None
    if not data.unconditional:
        labels, label_names = _numbered_labels(rows, _label_column(rows, data.label_column_name))
    rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    found = ImageRows(rows, column, np.arange(len(rows)), labels, label_names)
    if data.max_train_samples is None:
        return found
    if data.max_train_samples > len(rows):
        raise ValueError(f"max_train_samples={data.max_train_samples} is more than the data set's {len(rows)}")
    return found.some(data.max_train_samples)


def image_format(rows: ImageRows, data: DataArguments) -> ImageFormat:
    """The format that `data` asks for; without a resolution, the size of the first image that can be decoded."""
    if data.resolution is not None:
        return ImageFormat((data.resolution, data.resolution), True, data.center_crop, data.allow_upscale)
    for index in range(len(rows)):
        image = _opened(rows, index, rows.rows[index][rows.image_column], data.skip_corrupt)
        if image is not None:
            return ImageFormat((image.height, image.width), False)
    raise ValueError(f"none of the {len(rows)} images can be decoded")


def read_images(
    rows: ImageRows, form: ImageFormat, *, skip_corrupt: bool = False, progress: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode the rows in their order, on all cores: pairs of an index into `rows` and (3, H, W) uint8.

    Args:
        rows, form: which images, and what they become, see [`prepare_image`].
        skip_corrupt: leave out what cannot be decoded.
        progress: show a progress bar.

    Raises:
        ValueError: names the first image that cannot be decoded, or that [`prepare_image`] refuses.
    """

    def read(index: int, encoded: dict | None) -> np.ndarray | None:
        return _prepared(rows, form, index, encoded, skip_corrupt)

    bar = tqdm(total=len(rows), desc="images", unit="image", leave=False, disable=not progress)
    with ThreadPoolExecutor(os.cpu_count()) as threads, bar:
        for start in range(0, len(rows), CHUNK):
            chunk = range(start, min(start + CHUNK, len(rows)))
            encoded = rows.rows[chunk.start : chunk.stop][rows.image_column]
            for index, pixels in zip(chunk, threads.map(read, chunk, encoded), strict=True):
                if pixels is not None:
                    yield index, pixels
            bar.update(len(chunk))


def read_image(rows: ImageRows, form: ImageFormat, index: int) -> np.ndarray:
    """One of the rows, (3, H, W) uint8; errors as those of [`read_images`]."""
    pixels = _prepared(rows, form, index, rows.rows[index][rows.image_column], skip_corrupt=False)
    assert pixels is not None  # what can't be decoded is an error where nothing is skipped
    return pixels


def load_images(
    rows: ImageRows, form: ImageFormat, *, skip_corrupt: bool = False, progress: bool = False
) -> DecodedImages:
    """All the images of [`read_images`], with the same arguments and errors, in one tensor."""
    images = np.empty((len(rows), 3, *form.size), np.uint8)
    kept: list[int] = []
    for index, pixels in read_images(rows, form, skip_corrupt=skip_corrupt, progress=progress):
        images[len(kept)] = pixels
        kept.append(index)
    if not kept:
        raise ValueError(f"none of the {len(rows)} images can be decoded")
    labels = None if rows.labels is None else torch.from_numpy(rows.labels[kept])
    return DecodedImages(torch.from_numpy(images[: len(kept)]), labels, skipped=len(rows) - len(kept))


def prepare_image(image: Image.Image, form: ImageFormat) -> np.ndarray:
    """One image as (3, H, W) uint8: RGB by [`to_rgb`], its middle in the wanted ratio, scaled (bicubic, smoothed).

    An image that has the wanted size keeps its pixels.

    Raises:
        ValueError: what [`to_rgb`] refuses, a size other than the wanted one where nothing is resized, an image
            smaller than the resolution without `allow_upscale`, or no square without `center_crop`.
    """
    image = to_rgb(image)
    (height, width), found = form.size, f"has {image.height}x{image.width} pixels (height x width)"
    if image.size != (width, height):
        if not form.resized:
            raise ValueError(f"{found}, the first image {height}x{width}; images of several sizes need --resolution")
        if min(image.size) < height and not form.allow_upscale:
            raise ValueError(f"{found}, fewer than --resolution {height}; allow it with --allow_upscale")
        if image.height != image.width and not form.center_crop:
            raise ValueError(f"{found} and is no square; allowed with --center_crop")
        image = resized_middle(image, height, width)
    return np.asarray(image).transpose(2, 0, 1)


def _prepared(
    rows: ImageRows, form: ImageFormat, index: int, encoded: dict | None, skip_corrupt: bool
) -> np.ndarray | None:
    image = _opened(rows, index, encoded, skip_corrupt)
    if image is None:
        return None
    try:
        return prepare_image(image, form)
    except ValueError as error:
        raise ValueError(f"{rows.describe(index, encoded)}: {error}") from None


def _opened(rows: ImageRows, index: int, encoded: dict | None, skip_corrupt: bool) -> Image.Image | None:
    try:
        if encoded is None:
            raise ValueError("there is no image")
        return datasets.Image().decode_example(encoded)
    except Exception as error:  # of a broken file, Pillow's many decoders raise errors of many types
        if skip_corrupt:
            return None
        raise ValueError(
            f"{rows.describe(index, encoded)} can't be decoded: {error}; leave it out with --skip_corrupt"
        ) from error


def _label_column(rows: datasets.Dataset, name: str | None) -> str:
    if name is not None:
        if name not in rows.column_names:
            raise ValueError(f"label_column_name must be one of {rows.column_names}; got {name!r:.120}")
        return name
    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [column for column in LABEL_COLUMNS if column in rows.column_names]
    if len(found) != 1:
        raise ValueError(
            f"the label column must be named by label_column_name, or --unconditional said; there is "
            f"{'more than one: ' + str(found) if found else 'none in ' + str(rows.column_names)}"
        )
    return found[0]


def _numbered_labels(rows: datasets.Dataset, column: str) -> tuple[np.ndarray, list[str]]:
    feature, values = rows.features[column], rows[column][:]
    missing = [number for number, value in enumerate(values) if value is None or value == -1]
    if missing:
        raise ValueError(f"column {column!r} has no label for image {missing[0]}, and {len(missing)} in all")
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    elif isinstance(feature, datasets.Value) and "string" in feature.dtype:
        names = sorted(set(values))
        numbers = {name: number for number, name in enumerate(names)}
        values = [numbers[value] for value in values]
    elif isinstance(feature, datasets.Value) and "int" in feature.dtype:
        names = [str(label) for label in range(max(values) + 1)]
    else:
        raise ValueError(f"column {column!r} must hold class labels, integers or strings; it holds {feature}")
    labels = np.asarray(values, np.int64)
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"column {column!r} must hold labels in [0, {len(names) - 1}]; got {labels.min()} to {labels.max()}"
        )
    return labels, names
