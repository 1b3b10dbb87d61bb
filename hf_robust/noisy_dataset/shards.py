"""The files of a data set folder: rows as they are, with a given and a clean label, as Parquet in shards."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features

from .form import split_files
from .source import Split, stored_rows

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(size: int | str, name: str) -> int:
    """A size such as `"100MB"`, or a number of bytes; a `ValueError` that calls it `name` where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", str(size), re.ASCII)
    if found is None or found[2].upper() not in UNITS or (count := int(float(found[1]) * UNITS[found[2].upper()])) < 1:
        raise ValueError(f"{name}: expected bytes, or a size such as 100MB or 1.5GB, got {size!r:.80}")
    return count


def config_features(kept: Features, class_names: list[str]) -> Features:
    """The columns of a config: those of the source, and both labels."""
    label = ClassLabel(names=class_names)
    return Features({**kept, "label": label, "clean_label": label})


def write_split(
    folder: Path, name: str, split: Split, labels: np.ndarray, class_names: list[str], num_files: int
) -> dict[str, int]:
    """Write the rows of a split with these labels and theirs to `folder`; how much that is.

    Args:
        name: `train` or `test`.
        labels: (N,) int64, the given ones.
        num_files: of consecutive rows, as equal as can be; each is one row group, and is held in memory.
    """
    count, num_bytes, file_bytes = len(split.labels), 0, 0
    features = config_features(split.rows.features, class_names)
    for shard, file_name in enumerate(split_files(name, num_files)):
        start, stop = (count * place // num_files for place in (shard, shard + 1))
        rows = stored_rows(split.rows, start, stop)
        columns = {column: rows[column] for column in rows.column_names}
        columns |= {"label": pa.array(labels[start:stop]), "clean_label": pa.array(split.labels[start:stop])}
        part = Dataset.from_dict(columns, features=features)
        with _quiet():
            # One row group: the label columns then lie after all of the rows and break only the file's last chunks.
            num_bytes += part.to_parquet(folder / file_name, batch_size=len(part), use_content_defined_chunking=True)
        file_bytes += (folder / file_name).stat().st_size
    return {"num_examples": count, "num_bytes": num_bytes, "file_bytes": file_bytes}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # `datasets` draws a bar of one step for each file, over the one of the configs.
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
