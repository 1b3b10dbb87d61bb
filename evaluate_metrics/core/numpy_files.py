"""Arrays of `.npy` and `.npz` files by name: looked at without being read, read without being unpickled."""

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from hf_common.foreign import refuse

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip file: signature, lengths of its name and extra field
MOST_NUMBERS = 1 << 33  # of an array that is read whole
# What zipfile, zlib and NumPy raise where bytes are no such file; OSError: of places that there can't be.
DAMAGED = (ValueError, EOFError, SyntaxError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error)


class ArrayHead(NamedTuple):
    """What the head of an array says, and where its numbers begin; `start` is None where they are compressed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int | None


def array_heads(path: str | os.PathLike) -> dict[str, ArrayHead]:
    """The heads of the arrays of a file, by their names; that of a `.npy` file is called `""`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no such file, or damaged so that it shows; begins with its path.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        if path.suffix.lower() != ".npz":
            with path.open("rb") as file:
                return {"": _checked_head(_array_head(file, True), size - file.tell())}
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            found = {info.filename.removesuffix(".npy"): _member_head(archive, raw, info) for info in members}
    except DAMAGED as error:
        raise refuse(path, f"is no {path.suffix.lower()} file, or damaged: {error}") from None
    if not found:
        raise refuse(path, "holds no arrays")
    return found


def read_named_array(path: str | os.PathLike, name: str) -> np.ndarray:
    """The array of that name, whole; what is damaged, or pickled, is a `ValueError` that begins with the path."""
    head = array_heads(path)[name]
    if head.dtype.hasobject:
        raise refuse(path, f"{name or 'it'} holds Python objects, which only unpickling reads")
    if math.prod(head.shape) > MOST_NUMBERS:
        raise refuse(path, f"{name or 'it'} has the shape {head.shape}: too large to be read whole")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not name:
            return loaded
        with loaded:
            return loaded[name]
    except DAMAGED as error:
        raise refuse(path, f"{name or 'it'} is damaged: {error}") from None


def _member_head(archive: zipfile.ZipFile, raw: IO[bytes], info: zipfile.ZipInfo) -> ArrayHead:
    with archive.open(info) as file:
        head = _array_head(file, False)
        begins = file.tell()
    head = _checked_head(head, info.file_size - begins)
    if info.compress_type != zipfile.ZIP_STORED:
        return head
    raw.seek(info.header_offset)
    signature, name, extra = LOCAL_HEADER.unpack(raw.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError(f"{info.filename} is not where the list of the file says")
    return head._replace(start=info.header_offset + LOCAL_HEADER.size + name + extra + begins)


def _array_head(file: IO[bytes], plain: bool) -> ArrayHead:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # of many kinds: the head is a Python literal
        raise ValueError(f"the head of an array can't be read: {error}") from None
    return ArrayHead(shape, dtype, fortran, file.tell() if plain else None)


def _checked_head(head: ArrayHead, size: int) -> ArrayHead:
    needed = math.prod(head.shape) * head.dtype.itemsize
    if any(length < 0 for length in head.shape) or not (head.dtype.hasobject or needed == size):
        raise ValueError(f"{head.shape} of {head.dtype} need {needed} bytes, and {size} follow")
    return head
