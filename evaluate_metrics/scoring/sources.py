"""Where images come from: folders of image files, data sets, and files of moments that stand for images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_common.names import data_source

from ..core.folders import image_files
from ..core.moments import Moments


@dataclass(frozen=True)
class ImageSource:
    """Images that are found but not read yet.

    name: what the user calls them. rows: N paths, or a `datasets.Dataset` whose only column, `column`, gives
    undecoded images; beside: its other columns, with labels and captions.
    """

    name: str
    rows: Sequence[Path] | datasets.Dataset
    column: str | None = None
    beside: datasets.Dataset | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> list[dict]:
        """Rows start to stop - 1 as `{"bytes": the encoded image, "path": what errors call it}`.

        Raises:
            ValueError: a row has no image, or its file can't be read.
        """
        rows: Any = self.rows[start:stop]
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
    """A file of moments in place of the images that it was made of; metadata names encoder and preprocessing."""

    name: str
    moments: Moments
    metadata: dict[str, str]

    def __len__(self) -> int:
        return self.moments.n


def open_source(
    name: str, config: str | None = None, split: str | None = None, column: str | None = None
) -> ImageSource | MomentsSource:
    """What `name` stands for.

    Args:
        name: a `.safetensors` file of moments; a folder that holds image files, also in subfolders and behind links,
            see [`image_files`]; or else a data set, as a folder or Hub id. Image files are taken in the order of their
            paths.
        config, split, column: of a data set. Defaults: its only config, its only split, its only image column. A
            folder for which one is given is a data set.

    Raises:
        ValueError: no images, files of a data set between the images, a link that leads nowhere, moments that are
            damaged, or several splits or columns to choose from.
        OSError: there is no such file or folder and the Hub can't be reached; or a folder can't be read.

    Warns:
        UserWarning: files beside the images of a folder, which are left out: how many, and which.
    """
    path, of_data_set = Path(name), any(value is not None for value in (config, split, column))
    if path.suffix == ".safetensors":
        if of_data_set:
            raise ValueError(f"{name} is a file of moments and has no config, split or column")
        return MomentsSource(name, *Moments.load(path))
    if path.is_dir() and not of_data_set:
        images = image_files(path)
        if images:
            return ImageSource(name, images)
    return _open_data_set(name, config, split, column)


def digest(encoded: Sequence[dict]) -> str:
    """SHA-256 over the encoded bytes of images in their order; names don't count."""
    total = hashlib.sha256()
    for image in encoded:
        total.update(hashlib.sha256(image["bytes"]).digest())
    return total.hexdigest()


def _open_data_set(name: str, config: str | None, split: str | None, column: str | None) -> ImageSource:
    with data_source(name, "images"):
        rows = datasets.load_dataset(name, config, split=split)
    if isinstance(rows, datasets.DatasetDict):
        if len(rows) != 1:
            raise ValueError(f"{name} has the splits {', '.join(rows)}; name one of them")
        (rows,) = rows.values()
    columns = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if column is None and len(columns) == 1:
        column = columns[0]
    if column not in columns:
        raise ValueError(f"{name} has the image columns {columns}; name one of them, got {column!r}")
    if len(rows) == 0:
        raise ValueError(f"{name} holds no images in split {split!r}")
    others = [other for other in rows.features if other != column]
    beside = rows.select_columns(others) if others else None
    rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    return ImageSource(name, rows, column, beside)
