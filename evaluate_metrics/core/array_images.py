"""Images in arrays of `.npz` and `.npy` files, and in columns of Parquet files, read a few at a time."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_common.foreign import refuse, short

from .numpy_files import DAMAGED, array_heads
from .packed import ForwardReader, PackedImages, pixels_as_file

CHANNELS = (1, 3, 4)
ROWS_AT_ONCE = 16  # of a Parquet file


class ArrayImages(PackedImages):
    """The images of one array, (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4, of numbers as for [`to_rgb`].

    Args:
        array: the name of the array in a `.npz`. Default: its only one of 3 or 4 dimensions, or `arr_0`.

    Raises:
        ValueError: damaged, no such array, Python objects, Fortran's order, or a shape that is none of these or both
            of the last two; begins with the path.
    """

    def __init__(self, path: str | os.PathLike, array: str | None = None) -> None:
        self.path = Path(path)
        heads = array_heads(path)
        shapes = {name: head.shape for name, head in heads.items()}
        if array is None:
            candidates = [name for name, shape in shapes.items() if len(shape) in (3, 4)]
            array = "arr_0" if "arr_0" in candidates else candidates[0] if len(candidates) == 1 else None
        if array not in heads:
            raise refuse(path, f"must hold one array of images, or its name be given; holds {short(shapes, 120)}")
        self._name, head = array, heads[array]
        if head.dtype.hasobject or head.fortran:
            what = "Python objects" if head.dtype.hasobject else "an array in Fortran's order"
            raise refuse(path, f"{array or 'it'} is {what}; save numpy.ascontiguousarray of it, of numbers")
        self._head, self._first = head, _channels_first(path, head.shape)
        self._each = int(np.prod(head.shape[1:])) * head.dtype.itemsize
        self._stream = ForwardReader(self._members)
        if not len(self) or not self._each:
            raise refuse(path, f"{array or 'it'} holds no images: {head.shape}")

    def __len__(self) -> int:
        return self._head.shape[0]

    def _row(self, index: int) -> dict:
        name = f"{self.path}: image {index}"
        try:
            if self._head.start is None:
                content = self._stream.get(index)
            else:
                with self.path.open("rb") as file:
                    file.seek(self._head.start + index * self._each)
                    content = file.read(self._each)
            pixels = np.frombuffer(content, self._head.dtype).reshape(self._head.shape[1:])
        except DAMAGED as error:
            raise ValueError(f"{name} can't be read: {error}") from None
        return {"bytes": pixels_as_file(pixels.transpose(1, 2, 0) if self._first else pixels, name), "path": name}

    def _members(self, start: int) -> Iterator[bytes]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self._name}.npy") as file:
            whole = archive.getinfo(f"{self._name}.npy").file_size
            file.read(whole - len(self) * self._each)
            for _ in range(len(self)):
                yield file.read(self._each)


def _channels_first(path: str | os.PathLike, shape: tuple[int, ...]) -> bool:
    """Whether a shape is (N, C, H, W); a `ValueError` unless that is plain."""
    if len(shape) == 3:
        if shape[2] in CHANNELS:
            raise refuse(
                path, f"has the shape {shape}, as one image (H, W, C) has it; add a first dimension: array[None]"
            )
        return False
    first, last = (len(shape) == 4 and shape[place] in CHANNELS for place in (1, 3))
    if first == last:
        what = "both or none of" if len(shape) == 4 else "none of"
        raise refuse(
            path, f"must hold (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4; {shape} may be {what} these"
        )
    return first


class ParquetImages(PackedImages):
    """The images of a column of a Parquet file: encoded, as `datasets` writes them (`bytes`, `path`), or plain bytes.

    Args:
        column: its name. Default: the only one that holds images.

    Raises:
        ValueError: no such file, damaged, without rows, or without such a column; begins with the path.
    """

    def __init__(self, path: str | os.PathLike, column: str | None = None) -> None:
        self.path = Path(path)
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise refuse(path, f"is no Parquet file, or damaged: {error}") from None
        images = [field.name for field in schema if _holds_images(field.type)]
        images = images or [field.name for field in schema if _is_bytes(field.type)]
        if column is None and len(images) == 1:
            (column,) = images
        if column not in images:
            raise refuse(path, f"has the image columns {short(images, 80)}; name one of them, got {column!r}")
        self._column, self._count = column, sum(groups)
        if not self._count:
            raise refuse(path, "holds no rows")
        self._starts = np.cumsum([0, *groups])[:-1].tolist()
        self._stream = ForwardReader(self._values, self._starts)

    def __len__(self) -> int:
        return self._count

    def _row(self, index: int) -> dict:
        name = f"{self.path}: image {index}"
        try:
            value = self._stream.get(index)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise ValueError(f"{name} can't be read: {error}") from None
        content = value["bytes"] if isinstance(value, dict) else value
        inner = value.get("path") if isinstance(value, dict) else None
        if content is None:
            path = f"path {short(repr(inner), 120)}"
            elsewhere = f": it has the {path} and no bytes; name the folder, as a data set" if inner else ""
            raise ValueError(f"{name} is missing{elsewhere}")
        return {"bytes": content, "path": f"{name} ({inner})" if inner else name}

    def _values(self, start: int) -> Iterator[dict | bytes | None]:
        groups = range(self._starts.index(start), len(self._starts))
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=[self._column]):
                yield from batch.column(0).to_pylist()


def _holds_images(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
