"""What goes with the images of a source: their classes, their captions."""

import csv
import io
import json
from pathlib import Path

from hf_common.foreign import short

from ..core.folders import METADATA
from ..core.packed import PackedImages
from .sources import ImageSource, MomentsSource

FILE_COLUMN = "file_name"


def classes_of(source: ImageSource | MomentsSource) -> list[str]:
    """The class of each image: its first folder, or the label of a data set by its name.

    Raises:
        ValueError: a file of images or of statistics, images beside the class folders, or a data set without one
            column of labels.
    """
    source = _annotated(source, "per_class")
    if source.column is None:
        root = Path(source.name)
        places = [Path(path).relative_to(root).parts for path in source.rows]
        loose = [place[0] for place in places if len(place) < 2]
        if loose:
            raise ValueError(
                f"{source.name}: per_class needs class folders; {len(loose)} images lie outside, {loose[0]}"
            )
        return [place[0] for place in places]
    if source.beside is None:
        raise ValueError(f"{source.name} has no labels for per_class")
    labels = {name: feature for name, feature in source.beside.features.items() if hasattr(feature, "int2str")}
    if len(labels) != 1:
        raise ValueError(f"{source.name}: per_class needs one column of class labels; it has {sorted(labels)}")
    ((name, feature),) = labels.items()
    return [feature.int2str(label) for label in source.beside[name]]


def captions_of(source: ImageSource | MomentsSource, column: str = "text") -> list[str]:
    """The caption of each image, in the order of the images.

    Of a data set its column; of a folder the column of a `metadata.jsonl` or `metadata.csv` that lies in it or beside
    the images, whose `file_name` is relative to where it lies, as `datasets` reads them; or of each image a `.txt` of
    the same name beside it, in UTF-8.

    Raises:
        ValueError: a file of images or of statistics; an image without a caption, or one that is empty; named.
    """
    source = _annotated(source, "clip_score")
    if source.column is not None:
        if source.beside is None or column not in source.beside.features:
            there = [] if source.beside is None else list(source.beside.features)
            raise ValueError(f"{source.name} has no column {column!r} of captions; it has {there}")
        found = list(source.beside[column])
        names = [f"{source.name}: image {number}" for number in range(len(found))]
    else:
        names, found = [str(path) for path in source.rows], _captions_of_files(source, column)
    for name, caption in zip(names, found, strict=True):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{name} has no caption: {short(repr(caption), 60)}")
    return [caption.strip() for caption in found]


def _annotated(source: ImageSource | MomentsSource, needs: str) -> ImageSource:
    """The same, where something can go with its images: a folder or a stored data set."""
    if isinstance(source, MomentsSource) or isinstance(source.rows, PackedImages):
        kind = "streamed or a file of images"
        if isinstance(source, MomentsSource):
            kind = f"a file of {source.stored.words}"
        raise ValueError(
            f"{needs} needs a folder of images or a data set that is not streamed; {source.name} is {kind}"
        )
    return source


def _captions_of_files(source: ImageSource, column: str) -> list:
    root = Path(source.name)
    tables = {place: _caption_table(place, column) for path in source.rows for place in _folders(Path(path), root)}
    if any(table is not None for table in tables.values()):
        return [_looked_up(Path(path), root, tables) for path in source.rows]
    beside = [Path(path).with_suffix(".txt") for path in source.rows]
    lacking = [path for path in beside if not path.is_file()]
    if lacking:
        raise ValueError(
            f"{source.name}: {len(lacking)} of {len(beside)} images have no caption; give a {' or '.join(METADATA)} "
            f"with {FILE_COLUMN} and {column}, or a .txt beside each, such as {lacking[0]}"
        )
    return [_read_text(path) for path in beside]


def _folders(path: Path, root: Path) -> list[Path]:
    # The folder of an image and those above it up to the root.
    return [folder for folder in path.parents if folder == root or root in folder.parents]


def _looked_up(path: Path, root: Path, tables: dict[Path, dict[str, object] | None]) -> object:
    for folder in _folders(path, root):
        table = tables[folder]
        if table is not None:
            return table.get(path.relative_to(folder).as_posix())
    return None


def _caption_table(folder: Path, column: str) -> dict[str, object] | None:
    """File name -> caption, of the metadata file of a folder; None where it has none."""
    paths = [folder / name for name in METADATA if (folder / name).is_file()]
    if not paths:
        return None
    path = paths[0]
    found: dict[str, object] = {}
    text = _read_text(path)
    try:
        if path.suffix == ".csv":
            rows: list = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]  # a caption may have U+2028
        for row in rows:
            if None in row:
                raise ValueError(f"that of {row[FILE_COLUMN]} has more fields than the first line, quote its commas")
            if found.setdefault(row[FILE_COLUMN], row[column]) != row[column]:
                raise ValueError(f"{row[FILE_COLUMN]} has two")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        reason = short(f"{type(error).__name__}: {error}", 80)
        raise ValueError(f"{path} must have {FILE_COLUMN} and {column} in every row: {reason}") from None
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # Excel writes its mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as UTF-8: {error}") from error
