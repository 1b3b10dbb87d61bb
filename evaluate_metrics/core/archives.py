"""Images in zip and tar files, webdataset shards among them, read where they lie."""

import lzma
import os
import tarfile
import threading
import warnings
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from hf_common.foreign import refuse

from .folders import METADATA, image_endings
from .packed import ForwardReader, PackedImages, left_out_words

MOST_IMAGE_BYTES = 1 << 30  # of one image; a longer one is a mistake, or meant to fill the memory
BAD_ARCHIVE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError,
)  # fmt: skip


class ZipImages(PackedImages):
    """The image files of a zip file, in the order of their names; hidden ones and `__MACOSX` are left out.

    Raises:
        ValueError: no zip file, damaged, encrypted, or without images; begins with its path.

    Warns:
        UserWarning: says how many files are left out, but captions: `metadata.*`, and a `.txt` of an image's name.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        try:
            self._archive = zipfile.ZipFile(self.path)
        except BAD_ARCHIVE as error:
            raise refuse(path, f"is no zip file, or damaged: {error}") from None
        endings, others = image_endings(), list[str]()
        self._members = []
        for info in sorted(self._archive.infolist(), key=lambda info: info.filename):
            if info.is_dir():
                continue
            if _is_image_name(info.filename, endings):
                self._members.append(info)
            else:
                others.append(info.filename)
        if not self._members:
            raise refuse(path, f"holds no image files among {len(self._archive.infolist())}")
        left_out = _left_out(others, [info.filename for info in self._members])
        if left_out:
            warnings.warn(left_out_words(path, left_out, len(self)), stacklevel=4)

    def __len__(self) -> int:
        return len(self._members)

    def _row(self, index: int) -> dict:
        info = self._members[index]
        name = f"{self.path}: {info.filename}"
        if info.file_size > MOST_IMAGE_BYTES:
            raise ValueError(f"{name} has {info.file_size} bytes, more than an image")
        try:
            with self._lock:
                return {"bytes": self._archive.read(info), "path": name}
        except BAD_ARCHIVE as error:
            raise ValueError(f"{name} can't be read: {error}") from None


class TarImages(PackedImages):
    """The image files of a tar file, in its order; hidden ones, links and devices are left out.

    A plain `.tar` is read where its images lie; a compressed one from its beginning on, once more if it is asked for
    something before. A webdataset shard is a tar file: of samples with several images, `field` names one.

    Args:
        field: what follows the first dot of the names of the images that are taken, `jpg` or `input.png`. Default:
            all.

    Raises:
        ValueError: no tar file, damaged, without such images, or samples have several; begins with its path.

    Warns:
        UserWarning: says how many files, links and devices are left out, but captions: `metadata.*`, and a `.txt` of
            an image's name or, of a webdataset shard, of its sample's.
    """

    def __init__(self, path: str | os.PathLike, field: str | None = None) -> None:
        self.path, self._field, self._endings = Path(path), field, image_endings()
        fields, others, no_files = Counter[str](), list[str](), 0
        self._names: list[str] = []
        places = array("q")
        last, last_name = "", ""  # key and name of the last image
        several = set[str]()  # fields of keys that have several
        try:
            self._compressed = not _is_plain_tar(self.path)
            for member in self._walk():
                if not member.isreg() or member.issparse():
                    no_files += 1
                    continue
                if not _is_image_name(member.name, self._endings):
                    others.append(member.name)
                    continue
                key, own = _key_and_field(member.name)
                fields[own] += 1
                if key == last and member.name != last_name:
                    several.add(own)
                last, last_name = key, member.name
                if field in (None, own):
                    self._names.append(member.name)
                    places.extend((member.offset_data, member.size))
        except BAD_ARCHIVE as error:
            raise refuse(path, f"is no tar file, or damaged: {error}") from None
        self._places = np.array(places, np.int64).reshape(-1, 2)  # of each image: where it begins, and its bytes
        common = sorted(own for own, count in fields.items() if count > 1)
        if field is None and any(own in several for own in common):
            raise refuse(
                path, f"has samples of several images, {', '.join(common[:5])}; name one of them as the column"
            )
        if not self._names:
            held = f", but the fields {', '.join(sorted(fields)[:5])}" if fields else ""
            raise refuse(path, f"holds no image files{'' if field is None else f' {field!r}'}{held}")
        left_out = _left_out(others, self._names) + Counter({"links or devices": no_files})
        if left_out:
            warnings.warn(left_out_words(path, left_out, len(self)), stacklevel=4)
        self._stream = ForwardReader(self._contents)

    def __len__(self) -> int:
        return len(self._names)

    def _row(self, index: int) -> dict:
        name, (start, size) = f"{self.path}: {self._names[index]}", self._places[index].tolist()
        if size > MOST_IMAGE_BYTES:
            raise ValueError(f"{name} has {size} bytes, more than an image")
        try:
            if self._compressed:
                return {"bytes": self._stream.get(index), "path": name}
            with self.path.open("rb") as file:
                file.seek(start)
                content = file.read(size)
        except BAD_ARCHIVE as error:
            raise ValueError(f"{name} can't be read: {error}") from None
        if len(content) < size:
            raise ValueError(f"{name} can't be read: the file ends before it does")
        return {"bytes": content, "path": name}

    def _walk(self, contents: bool = False) -> Iterator:
        """Members but folders; with `contents` what the image files that are taken hold."""
        with tarfile.open(self.path, "r|*" if self._compressed else "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isdir():
                    continue
                if not contents:
                    yield member
                elif (
                    member.isreg()
                    and not member.issparse()
                    and _is_image_name(member.name, self._endings)
                    and self._field
                    in (
                        None,
                        _key_and_field(member.name)[1],
                    )
                ):
                    file = archive.extractfile(member)
                    yield b"" if file is None or member.size > MOST_IMAGE_BYTES else file.read()

    def _contents(self, start: int) -> Iterator[bytes]:
        return self._walk(contents=True)


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        with tarfile.open(path, "r|*"):
            return False


def _is_image_name(name: str, endings: set[str]) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in endings


def _left_out(others: list[str], images: list[str]) -> Counter[str]:
    """The files beside images by their endings; of captions, which scores of captions read, nothing is said."""
    captions = {PurePosixPath(f"{_key_and_field(name)[0]}.txt") for name in images}
    captions |= {PurePosixPath(name).with_suffix(".txt") for name in images}
    paths = [path for path in map(PurePosixPath, others) if path not in captions]
    return Counter(path.suffix or "without ending" for path in paths if path.name not in METADATA)


def _key_and_field(name: str) -> tuple[str, str]:
    """`a/000.input.png` -> `a/000` and `input.png`, as webdataset parts names."""
    folder, _, file = name.rpartition("/")
    key, _, field = file.partition(".")
    return f"{folder}/{key}" if folder else key, field
