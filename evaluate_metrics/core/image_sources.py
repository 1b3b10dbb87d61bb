"""Files that hold images, by their names: archives, arrays, Parquet files, alone or many by a pattern."""

import glob
import os
import re
from itertools import product
from pathlib import Path

from hf_common.foreign import short

from .archives import TarImages, ZipImages
from .array_images import ArrayImages, ParquetImages
from .packed import JoinedImages, PackedImages

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PACKED_ENDINGS = (".zip", *TAR_ENDINGS, ".npz", ".npy", ".parquet")
MOST_FILES = 100_000  # of a pattern
BRACES = re.compile(r"\{([^{}]*)\}")


def is_packed(name: str | os.PathLike) -> bool:
    """Whether a name is that of a file for [`open_images`], there or not, or a pattern for such files."""
    name = os.fspath(name)
    return name.lower().endswith(PACKED_ENDINGS) and "://" not in name and not os.path.isdir(name)


def open_images(name: str | os.PathLike, column: str | None = None) -> PackedImages:
    """The images of a file, or of all files that a pattern names, in that order.

    Args:
        name: `.zip`; `.tar`, also compressed, such as the shards of webdataset; `.npz` or `.npy` with one array of
            images; `.parquet`. In a pattern `*`, `?` and `[...]` are those of a shell, `{000..099}` and `{a,b}` its
            braces.
        column: of a Parquet file; of a `.npz` the array; of a tar file with several images a sample the field.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, damaged, or holds no images; begins with its path.
    """
    paths = pattern_paths(os.fspath(name))
    parts = [_open_file(path, column) for path in paths]
    return parts[0] if len(parts) == 1 else JoinedImages(parts)


def pattern_paths(name: str) -> list[Path]:
    """The files that a name stands for; each of those in braces must be there."""
    if Path(name).exists() or not re.search(r"[*?\[{]", name):
        paths = [Path(name)]
    else:
        paths = [path for spelled in _spelled_out(name) for path in _globbed(spelled)]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {short(repr(os.fspath(path)), 160)}")
    return paths


def _open_file(path: Path, column: str | None) -> PackedImages:
    name = path.name.lower()
    if name.endswith(".zip"):
        if column is not None:
            raise ValueError(f"{path} is a zip file and has no column; got {column!r}")
        return ZipImages(path)
    if name.endswith(TAR_ENDINGS):
        return TarImages(path, column)
    return ParquetImages(path, column) if name.endswith(".parquet") else ArrayImages(path, column)


def _spelled_out(name: str) -> list[str]:
    """One name for each choice of what stands in braces."""
    pieces = BRACES.split(name)  # every second one stood in braces
    choices = [_choices(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_FILES:
        raise ValueError(f"{short(repr(name), 120)} names {count} files, more than {MOST_FILES}")
    return ["".join(spelled) for spelled in product(*choices)]


def _choices(braced: str) -> list[str]:
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", braced)
    if not numbers:
        return braced.split(",")
    first, last = map(int, numbers.groups())
    if abs(last - first) >= MOST_FILES:
        raise ValueError(f"{{{braced}}} names {abs(last - first) + 1} files, more than {MOST_FILES}")
    step = 1 if first <= last else -1
    width = max(map(len, numbers.groups())) if any(digits.startswith("0") for digits in numbers.groups()) else 0
    return [f"{number:0{width}}" for number in range(first, last + step, step)]


def _globbed(name: str) -> list[Path]:
    if not re.search(r"[*?\[]", name):
        return [Path(name)]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 a pattern may begin with a root
    if not found:
        raise FileNotFoundError(f"there is no file that is called {short(repr(name), 160)}")
    return [Path(path) for path in found]
