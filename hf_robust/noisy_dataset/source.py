"""The data set that noise is put on: its rows and labels as they are, checked, nothing decoded."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features, Image
from datasets.table import embed_table_storage
from tqdm.auto import tqdm

from hf_common.images import to_rgb
from hf_common.names import data_source

from ..noise.labels import check_labels
from .manifest import NUM_CLASSES

IMAGE_SIZE = (32, 32)
ROWS = 1000  # that are looked at at once


class Split(NamedTuple):
    """Rows of a source without their label, and their labels.

    Attributes:
        rows: of the columns that are kept, in their order.
        labels: (N,) int64.
        num_bytes: of the rows, images included.
    """

    rows: datasets.Dataset
    labels: np.ndarray
    num_bytes: int


@dataclass(frozen=True)
class SourceData:
    """What noise is put on.

    Attributes:
        name, config: what the data set was asked for by.
        train, test: its splits; None: it has no test split.
        class_names: of the K classes.
        fingerprint: SHA-256 of the content of the rows and the labels; not of paths, class names or files.
        image_column: the only column of images; None: there is none, or are several.
    """

    name: str
    config: str | None
    train: Split
    test: Split | None
    class_names: list[str]
    fingerprint: str
    image_column: str | None


def load_cifar10(source: str) -> SourceData:
    """Exactly the columns `img` (32x32) and `label` (10 classes), splits `train` and `test`, or a `ValueError`."""
    with data_source(source, "source"):
        splits = datasets.load_dataset(source)
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"source: {source!r} must have the splits train and test, it has {sorted(splits)}")
    read = {}
    for split in ("train", "test"):
        features = splits[split].features
        image, label = features.get("img"), features.get("label")
        if (
            set(features) != {"img", "label"}
            or not isinstance(image, Image)
            or not isinstance(label, ClassLabel)
            or label.num_classes != NUM_CLASSES
        ):
            raise ValueError(
                f"source: split {split!r} of {source!r} must have exactly the columns img (Image) and label "
                f"(ClassLabel of {NUM_CLASSES} names), it has {dict(features)}"
            )
        labels = splits[split].with_format("arrow")["label"][:].to_numpy()
        read[split] = splits[split].select_columns("img"), check_labels(_column("label", split), labels, NUM_CLASSES)
    names = splits["train"].features["label"].names
    return make_source(source, None, read, names, size=IMAGE_SIZE)


def make_source(
    name: str,
    config: str | None,
    read: dict[str, tuple[datasets.Dataset, np.ndarray]],
    class_names: list[str],
    size: tuple[int, int] | None = None,
) -> SourceData:
    """A source of rows that were opened, after a look at each.

    Args:
        read: `train`, and `test` if there is one, -> rows without label, (N,) labels.
        size: (width, height) of all images; None: any.

    Raises:
        ValueError: an image that is missing, none that can be read, or of another size.
    """
    digest, splits = hashlib.sha256(), {}
    for split, (rows, labels) in read.items():
        num_bytes = _digest_rows(digest, rows, split, size)
        digest.update(labels.astype("<i8").tobytes())
        splits[split] = Split(rows, labels, num_bytes)
    images = image_columns(splits["train"].rows.features)
    return SourceData(
        *(name, config, splits["train"], splits.get("test"), class_names, digest.hexdigest()),
        images[0] if len(images) == 1 else None,
    )


def image_columns(features: Features) -> list[str]:
    """The columns that hold an image a row."""
    return [name for name, feature in features.items() if isinstance(feature, Image)]


def stored_rows(rows: datasets.Dataset, start: int, stop: int) -> pa.Table:
    """Rows as they lie in the source, nothing decoded; those that hold only a path have their file's bytes."""
    return embed_table_storage(rows.with_format("arrow")[start:stop])


def _digest_rows(digest: Any, rows: datasets.Dataset, split: str, size: tuple[int, int] | None) -> int:
    """Add the content to a digest, a column after the other; the bytes that the rows have."""
    num_bytes, images = 0, image_columns(rows.features)
    for name in rows.column_names:
        only = rows.select_columns(name)
        starts = range(0, len(only), ROWS)
        for start in tqdm(starts, desc=f"{split}: reading {name}", unit_scale=ROWS, unit="row", leave=False):
            table = only.with_format("arrow")[start : start + ROWS]
            column = _embedded(table, split)[name]
            num_bytes += column.nbytes
            files = _file_names(table[name]) if name in images else []
            for place, content in enumerate(_contents(column, name in images), start):
                if name in images:
                    _check_image(_called(place, split, files[place - start]), content, size)
                digest.update(len(content).to_bytes(8, "little"))
                digest.update(content)
    return num_bytes


def _embedded(table: pa.Table, split: str) -> pa.Table:
    try:
        return embed_table_storage(table)
    except FileNotFoundError as error:
        raise ValueError(f"source: split {split!r} names a file that is not there: {error}") from None


def _contents(column: pa.ChunkedArray, image: bool) -> Iterator[Any]:
    """Of each row the bytes that say what it holds; of an image its file, None where there is none."""
    if image:
        yield from pc.struct_field(column, "bytes").to_pylist()
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield from (b"\0" if text is None else b"\1" + text.encode() for text in column.to_pylist())
    else:
        yield from (repr(value).encode() for value in column.to_pylist())


def _file_names(column: pa.ChunkedArray) -> list[str | None]:
    """The file of each image, None where it has none."""
    return pc.struct_field(column, "path").to_pylist()


def _called(place: int, split: str, file: str | None) -> str:
    return f"source: image {place} of split {split!r}" + (f" ({file})" if file else "")


def _check_image(name: str, data: bytes | None, size: tuple[int, int] | None) -> None:
    if data is None:
        raise ValueError(f"{name} is missing")
    try:
        found = PIL.Image.open(io.BytesIO(data)).size  # reads the header only
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} is not an image that can be read") from error
    if size is not None and found != size:
        raise ValueError(f"{name} is {found[0]}x{found[1]}, expected {size[0]}x{size[1]}")


def decode_all(source: SourceData) -> np.ndarray:  # -> (N, H, W, 3) uint8
    """The pixels of the training images; a `ValueError` where they have several sizes, or there are none."""
    column, rows = source.image_column, source.train.rows
    if column is None:
        raise ValueError(
            f"configs: instance noise looks at the pixels of one column of images; the columns are {rows.column_names}"
        )
    pixels: np.ndarray | None = None
    for start in tqdm(range(0, len(rows), ROWS), desc="reading pixels", unit_scale=ROWS, unit="image", leave=False):
        table = rows.select_columns(column).with_format("arrow")[start : start + ROWS]
        encoded = pc.struct_field(embed_table_storage(table)[column], "bytes").to_pylist()
        for place, (data, file) in enumerate(zip(encoded, _file_names(table[column]), strict=True), start):
            image = np.asarray(to_rgb({"bytes": data}, _called(place, "train", file)))
            if pixels is None:
                pixels = np.empty((len(rows), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise ValueError(
                    "configs: instance noise needs images of one size; image 0 of split 'train' is "
                    f"{pixels.shape[2]}x{pixels.shape[1]}, image {place} is {image.shape[1]}x{image.shape[0]}"
                )
            pixels[place] = image
    assert pixels is not None  # a data set has rows
    return pixels


def _column(name: str, split: str) -> str:
    return f"source: column {name!r} of split {split!r}"


def check_kept(features: Sequence[str], taken: Sequence[str], argument: str) -> None:
    """Raise a `ValueError` where columns were named that are not there."""
    missing = [name for name in taken if name not in features]
    if missing:
        raise ValueError(f"{argument}: there is no column {missing[0]!r:.120}; the source has {list(features)!s:.300}")
