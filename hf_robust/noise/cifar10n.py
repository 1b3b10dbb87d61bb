"""CIFAR-10N and CIFAR-100N: the human labels of their training images (Wei et al. 2022), from the published files."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hf_common.foreign import first_line, refuse, short

from .cifar10 import CIFAR10_CLASSES
from .human import HUMAN, HUMAN_100_CONFIGS, HUMAN_CONFIGS, is_human_name
from .labels import check_labels


def read_human_labels(
    path: str | os.PathLike, num_classes: int = len(CIFAR10_CLASSES), *, any_configs: bool = False
) -> dict[str, np.ndarray]:
    """Read labels that people gave, such as CIFAR-10N's (Wei et al. 2022).

    Args:
        path (`str` or `os.PathLike`): the published `CIFAR-10_human.pt`, a pickled dict of int64 arrays, or a
            `.parquet` file with the columns `clean` and `HUMAN_CONFIGS`. Of the pickle only arrays are read; a file
            that asks for anything else is refused before anything in it runs.
        num_classes (`int`, *optional*, defaults to 10): K.
        any_configs (`bool`, *optional*, defaults to `False`): take `CIFAR-100_human.pt` too, whose fine labels become
            `human_fine`, and of a `.parquet` file all columns named `human_*`.

    Returns:
        `dict[str, np.ndarray]`: `clean` and each of the configs: (N,) int64 in 0..K-1, N the same for all.

    Raises:
        ValueError: no such file, another suffix, missing columns or keys, labels outside 0..K-1, unequal lengths.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".pt"):
        raise ValueError(f"human_labels: expected a .parquet or .pt file, got {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"human_labels: there is no file {str(path)!r}")
    table = path.suffix == ".parquet"
    columns = _parquet_columns(path) if table else _unpickle_arrays(path)
    keys = _keys(columns, table, any_configs)
    missing = [key for key in keys.values() if key not in columns]
    if missing:
        raise refuse(path, f"human_labels: it lacks {missing}; it has {short(sorted(map(str, columns)), 120)}")
    try:
        labels = {name: check_labels(key, columns[key], num_classes) for name, key in keys.items()}
    except (TypeError, ValueError) as error:
        raise refuse(path, f"human_labels: {error}") from None
    lengths = {name: len(column) for name, column in labels.items()}
    if len(set(lengths.values())) > 1:
        raise refuse(path, f"human_labels: it has columns of unequal lengths {lengths}")
    return labels


def _keys(columns: dict, table: bool, any_configs: bool) -> dict[str, str]:
    """Config, or `clean`, -> the key of its labels in a file."""
    if table:
        own = [name for name in columns if is_human_name(name)] if any_configs else []
        return {name: name for name in ("clean", *(own or HUMAN_CONFIGS))}
    fine = any_configs and not set(HUMAN_CONFIGS.values()) & set(columns)
    return {"clean": "clean_label", **(HUMAN_100_CONFIGS if fine else HUMAN_CONFIGS)}


def check_same_order(path: str | os.PathLike, theirs: np.ndarray, ours: np.ndarray) -> None:
    """Raise a `ValueError` unless the clean labels of the file, (N,), are `ours`, (N,), position by position."""
    if len(theirs) != len(ours):
        raise ValueError(f"human_labels: {str(path)!r} has {len(theirs)} rows, the source's train split {len(ours)}")
    different = np.flatnonzero(theirs != ours)
    if len(different):
        first = different[0]
        raise ValueError(
            f"human_labels: the clean labels of {str(path)!r} are not the source's, position by position: the first "
            f"difference is at {first} (file {theirs[first]}, source {ours[first]}), {len(different)} of {len(ours)} "
            "differ; the two are in different orders"
        )


def _unpickle_arrays(path: Path) -> dict:
    import torch  # here, because nothing else needs it

    # NumPy 2 renamed numpy.core to numpy._core; files name whichever wrote them.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    reconstruct, scalar = np.ndarray(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    allowed: list[Any] = [
        *((reconstruct, f"{module}._reconstruct") for module in modules),
        *((scalar, f"{module}.scalar") for module in modules),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.int64)),
    ]
    try:
        # PyTorch does not look at the checksums of its archives.
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()) is not None:
            raise ValueError(f"{damaged} has another checksum than the archive says")
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: a damaged pickle is another program for the unpickler
        if isinstance(error, OSError) and error.filename is not None:  # it can't be opened
            raise
        raise refuse(path, f"human_labels: it is no pickled dict of NumPy arrays ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise refuse(path, f"human_labels: it holds a {type(content).__name__}, expected a dict of arrays")
    if not all(isinstance(column, (np.ndarray, list)) for column in content.values()):
        raise refuse(path, "human_labels: it holds something else than arrays")
    return content


def _parquet_columns(path: Path) -> dict:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
            _check_rows(file.metadata)  # second: what can't be read would end the process there, not raise
        return {name: table[name].to_numpy() for name in table.column_names}
    except Exception as error:  # pyarrow raises its own, OSError, TypeError, MemoryError ... for damaged files
        raise refuse(path, f"human_labels: it can't be read as Parquet: {first_line(error)}") from error


def _check_rows(footer: pq.FileMetaData) -> None:
    """Raise a `ValueError` unless every column of labels has a value for each row.

    The footer has no checksum: a smaller number of rows in it would leave the others out in silence.
    """
    for group in (footer.row_group(place) for place in range(footer.num_row_groups)):
        for column in (group.column(place) for place in range(group.num_columns)):
            if column.path_in_schema.startswith(("clean", HUMAN)) and column.num_values != group.num_rows:
                raise ValueError(f"{column.path_in_schema} has {column.num_values} values for {group.num_rows} rows")
