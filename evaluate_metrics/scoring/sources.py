"""Where images come from: folders, archives, arrays, data sets, and files of statistics that stand for images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_common.images import encoded_bytes
from hf_common.names import data_source

from ..core.folders import image_files
from ..core.image_sources import is_packed, open_images
from ..core.packed import ForwardReader, PackedImages
from ..core.stored import Stored, is_stored, read_stored


@dataclass(frozen=True)
class ImageSource:
    """Images that are found but not read yet.

    name: what the user calls them. rows: N paths, images packed in files, or a `datasets.Dataset` whose only column,
    `column`, gives undecoded images; beside: its other columns, with labels and captions.
    """

    name: str
    rows: Sequence[Path] | PackedImages | datasets.Dataset
    column: str | None = None
    beside: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def count(self) -> int | None:
        """How many images."""
        return len(self)

    def read(self, start: int, stop: int) -> list[dict]:
        """Rows start to stop - 1 as `{"bytes": the encoded image, "path": what errors call it}`.

        Raises:
            ValueError: a row has no image, or its file can't be read.
        """
        rows: Any = self.rows[start:stop]
        if isinstance(self.rows, PackedImages):
            return rows
        of_files = self.column is None
        encoded = [{"bytes": None, "path": str(path)} for path in rows] if of_files else rows[self.column]
        return [self._read(start + number, row) for number, row in enumerate(encoded)]

    def _read(self, number: int, row: dict | None) -> dict:
        path = None if row is None else row["path"]
        name = path if self.column is None else f"{self.name}: image {number}" + (f" ({path})" if path else "")
        if row is None or (row["bytes"] is None and path is None):
            raise ValueError(f"{name} is missing")
        try:
            content = row["bytes"] if path is None or row["bytes"] is not None else Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{name} can't be read: {error}") from error
        return {"bytes": content, "path": name}


@dataclass(frozen=True)
class MomentsSource:
    """A file of moments, embeddings, or mean and covariance in place of the images that it was made of."""

    name: str
    stored: Stored

    @property
    def count(self) -> int | None:
        """How many images; None where the file does not say."""
        return self.stored.moments.n


def open_source(
    name: str,
    config: str | None = None,
    split: str | None = None,
    column: str | None = None,
    count: int | None = None,
    streaming: bool = False,
) -> ImageSource | MomentsSource:
    """What `name` stands for.

    Args:
        name: a file that stands for images, of moments, embeddings, or mean and covariance, see [`read_stored`]; a
            file of images, or a pattern of such, see [`open_images`]; a folder that holds image files, also in
            subfolders and behind links, see [`image_files`]; or else a data set, as a folder or Hub id. Image files
            are taken in the order of their paths.
        config, split, column: of a data set. Defaults: its only config, its only split, its only image column. A
            folder for which one is given is a data set. Of files of several arrays, Parquet files and shards `column`
            names array, column or field.
        count: the number of images that mean and covariance are of, where their file lacks it.
        streaming: read a data set as it comes, without storing it; its card must say how many rows a split has.

    Raises:
        ValueError: no images, files of a data set between the images, a link that leads nowhere, files that are
            damaged, or several splits or columns to choose from.
        OSError: there is no such file or folder and the Hub can't be reached; or a folder can't be read.

    Warns:
        UserWarning: files beside the images of a folder or archive, which are left out: how many, and which.
    """
    if not name:
        raise ValueError("a source of images must be named; got nothing")
    path, of_data_set = Path(name), any(value is not None for value in (config, split, column))
    stored = is_stored(path, column)
    if stored and (path.suffix.lower() != ".npz" or config is not None or split is not None) and of_data_set:
        raise ValueError(f"{name} is a file of {_stands_for(path)} and has no config, split or column")
    if stored:
        return MomentsSource(name, read_stored(path, column, count))
    if count is not None:
        raise ValueError(f"a count is for files of mean and covariance; {name} is of images, which are counted")
    if is_packed(name):
        if config is not None or split is not None:
            raise ValueError(f"{name} is a file of images and has no config or split")
        return ImageSource(name, open_images(name, column))
    if path.is_dir() and not of_data_set:
        images = image_files(path)
        if images:
            return ImageSource(name, images)
    if path.is_file():
        raise ValueError(
            f"{name} is a single file, and no archive, array, Parquet file or statistics; give its folder"
        )
    return _open_data_set(name, config, split, column, streaming)


class StreamedColumn(PackedImages):
    """The images of a streamed data set of so many rows, read forwards; going back starts it again."""

    def __init__(self, name: str, rows: datasets.IterableDataset, column: str, count: int) -> None:
        self._name, self._rows, self._column, self._count = name, rows, column, count
        self._stream = ForwardReader(self._values)

    def __len__(self) -> int:
        return self._count

    def _values(self, start: int) -> Iterator[dict | None]:
        return (row[self._column] for row in self._rows)

    def _row(self, index: int) -> dict:
        name = f"{self._name}: image {index}"
        try:
            row = self._stream.get(index)
            if row is None:
                raise ValueError("it is missing")
            return {"bytes": encoded_bytes(row), "path": f"{name} ({row['path']})" if row.get("path") else name}
        except (EOFError, OSError, ValueError) as error:
            raise ValueError(f"{name} can't be read: {error}") from error


def _stands_for(path: Path) -> str:
    return "moments" if path.suffix == ".safetensors" else "statistics"


def digest(encoded: Sequence[dict]) -> str:
    """SHA-256 over the encoded bytes of images in their order; names don't count."""
    total = hashlib.sha256()
    for image in encoded:
        total.update(hashlib.sha256(image["bytes"]).digest())
    return total.hexdigest()


def _open_data_set(
    name: str, config: str | None, split: str | None, column: str | None, streaming: bool = False
) -> ImageSource:
    with data_source(name, "images"):
        rows = datasets.load_dataset(name, config, split=split, streaming=streaming)
    if isinstance(rows, dict):  # of splits
        if len(rows) != 1:
            raise ValueError(f"{name} has the splits {', '.join(rows)}; name one of them")
        (rows,) = rows.values()
    columns = [key for key, feature in (rows.features or {}).items() if isinstance(feature, datasets.Image)]
    if column is None and len(columns) == 1:
        column = columns[0]
    if column not in columns:
        raise ValueError(f"{name} has the image columns {columns}; name one of them, got {column!r}")
    if streaming:
        known = (rows.info.splits or {}).get(str(rows.split))
        if known is None or not known.num_examples:
            raise ValueError(
                f"{name} does not say how many rows its split {rows.split} has; read it without streaming"
            )
        rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
        return ImageSource(name, StreamedColumn(name, rows, str(column), known.num_examples))
    if len(rows) == 0:
        raise ValueError(f"{name} holds no images in split {split!r}")
    others = [other for other in rows.features if other != column]
    beside = rows.select_columns(others) if others else None
    rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    return ImageSource(name, rows, column, beside)
