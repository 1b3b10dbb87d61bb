"""Where labelled images come from: a data set of the Hub, a folder of class folders, or a table with image paths."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from hf_common.foreign import first_line, short
from hf_common.names import data_source

TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# A folder of one of these names holds a split if it holds folders, as `datasets` has it.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
PATH_COLUMNS = ("image", "file", "file_name", "filename", "path", "image_path")  # of a table, in this order


def open_data(
    name: str,
    config: str | None = None,
    image_column: str | None = None,
    *,
    streaming: bool = False,
    images: bool = True,
) -> Any:
    """The splits that a name stands for.

    Args:
        name: a Hub id; a folder that `datasets` knows, or one of class folders with images, below folders such as
            `train` and `test` or not; or a CSV, TSV, JSON or Parquet file, whose paths are relative to its folder.
        config: of a Hub id or of a folder with configurations.
        image_column: of a table: the column of the paths.
        streaming: not loaded before it is read.
        images: whether the data are images; if not, a table is taken as it is, and a folder as `datasets` knows it.

    Returns:
        `datasets.DatasetDict`, or `datasets.IterableDatasetDict` where it is streamed.

    Raises:
        ValueError: there are no images, or of one class alone, or some beside the class folders; splits that number
            their classes differently; or a table has no column of paths, or is to be streamed although it has paths
            alone.
        FileNotFoundError, ConnectionError: nothing is there.
    """
    path = Path(name)
    if path.suffix.lower() in TABLES and path.is_file():
        return _table(path, image_column, streaming) if images else _read_table(path)
    if images and path.is_dir() and config is None and (found := _class_folders(path)):
        return _images_of_folders(path, found, streaming)
    if path.is_file():
        raise ValueError(f"{name!r:.120} is a file, and none of the kinds {', '.join(TABLES)}")
    if path.is_dir():
        _check_same_classes(name, config)
    with data_source(name, "dataset", ["digits"]):
        return datasets.load_dataset(name, config, streaming=streaming)


def _check_same_classes(folder: str, config: str | None) -> None:
    """Raise a `ValueError` where Parquet files of two splits number their classes differently.

    `datasets` would take the names of the first, and call the numbers of the other by them.
    """
    files = getattr(datasets.load_dataset_builder(folder, config).config, "data_files", None) or {}
    found: dict[str, tuple[str, list[str]]] = {}
    for split, paths in files.items():
        if not str(paths[0]).endswith(".parquet") or not Path(paths[0]).is_file():
            continue
        for column, feature in datasets.Features.from_arrow_schema(pq.read_schema(paths[0])).items():
            if not isinstance(feature, datasets.ClassLabel):
                continue
            first, names = found.setdefault(column, (str(split), feature.names))
            if any(name in feature.names and feature.names.index(name) != k for k, name in enumerate(names)):
                raise ValueError(
                    f"dataset {short(repr(folder), 80)}: column {short(repr(column), 40)} must have its classes in "
                    f"one order; split {first!r:.40} has {short(names, 60)}, split {str(split)!r:.40} has "
                    f"{short(feature.names, 60)}"
                )


def _class_folders(folder: Path) -> dict[str, str] | None:
    """Split -> the pattern of its files, of a folder whose subfolders are classes of images; None for another kind."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    data = [entry for entry in entries if entry.suffix.lower() in TABLES or entry.name.startswith("dataset_")]
    folders = [entry for entry in entries if entry.is_dir()]
    if data or not folders:
        return None
    splits = {entry: SPLITS[entry.name.lower()] for entry in folders if entry.name.lower() in SPLITS}
    parted = {entry: split for entry, split in splits.items() if any(child.is_dir() for child in entry.iterdir())}
    if parted and len(parted) == len(folders):
        return {split: f"{entry.name}/**" for entry, split in parted.items()} if _has_images(folder) else None
    return {"train": "**"} if _has_images(folder) else None


def _has_images(folder: Path) -> bool:
    """Whether the first files of a folder's subfolders are images, and no tables."""
    endings = Image.registered_extensions()
    suffixes = (path.suffix.lower() for path, _ in zip(_below(folder), range(1000), strict=False))
    found = set(suffixes)
    return bool(found & endings.keys()) and not found & TABLES.keys()


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) for path in (path.rglob("*") if path.is_dir() else [path]))


def _images_of_folders(folder: Path, patterns: dict[str, str], streaming: bool) -> Any:
    """By pattern and not by name: `datasets` takes a class folder such as `train_station` for a split."""
    for pattern in patterns.values():
        above = folder / pattern.removesuffix("**")
        endings = Image.registered_extensions()
        loose = sorted(path.name for path in above.iterdir() if path.is_file() and path.suffix.lower() in endings)
        if loose:  # they would be of a class by the name of that folder
            raise ValueError(
                f"dataset {short(repr(str(folder)), 120)}: an image must lie in the folder of its class; "
                f"{short(repr(str(above)), 120)} itself has {short(', '.join(loose[:5]), 120)}"
            )
    options = {"data_dir": str(folder), "data_files": patterns, "drop_labels": False, "streaming": streaming}
    loaded = datasets.load_dataset("imagefolder", **options)
    names = loaded["train"].features["label"].names
    if len(names) < 2:
        raise ValueError(
            f"dataset {short(repr(str(folder)), 120)} must have two class folders or more; it has {names}"
        )
    return loaded


def _read_table(path: Path, streaming: bool = False) -> Any:
    kind = TABLES[path.suffix.lower()]
    options: dict[str, Any] = {"sep": "\t"} if path.suffix.lower() == ".tsv" else {}
    try:
        return datasets.load_dataset(kind, data_files={"train": str(path)}, streaming=streaming, **options)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise ValueError(f"{str(path)!r} cannot be read as {kind}: {short(first_line(cause), 160)}") from None


def _table(path: Path, image_column: str | None, streaming: bool) -> Any:
    loaded = _read_table(path, streaming)
    features = loaded["train"].features or {}
    if any(isinstance(feature, datasets.Image) for feature in features.values()):
        return loaded
    if streaming:
        raise ValueError(
            f"{str(path)!r} has paths and no images: load it without streaming; its images are not loaded"
        )
    columns = [image_column] if image_column is not None else [name for name in PATH_COLUMNS if name in features]
    if not columns or columns[0] not in features:
        raise ValueError(
            f"{str(path)!r} needs a column of image paths, one of {', '.join(PATH_COLUMNS)} or the "
            f"image_column_name; it has {list(features)}"
        )
    column, folder = columns[0], path.parent.resolve()
    located = loaded.map(lambda row: {column: _located(row[column], folder)}, desc="image paths")
    # Older `datasets` make images of `string` alone, not of the `large_string` that tables are read as.
    return located.cast_column(column, datasets.Value("string")).cast_column(column, datasets.Image())


def _located(path: object, folder: Path) -> str:
    if not isinstance(path, str) or not path:
        raise ValueError(f"a row of the table has {short(repr(path), 80)} where the path of its image must be")
    return path if re.match(r"\w+://", path) else str(folder / path)
