"""Files and folders that a reader never sees half written: a temporary name first, then one rename."""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SYNCS = 32  # threads that wait for the disk


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """The temporary name under which the block writes the file that then becomes `path`, in place of what is there.

    The folder of `path` is made. The name has the process's number in it, so that two processes do not write into one
    file. The content is on the disk before the rename. After an error nothing is left and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        readable([temporary])
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def readable(paths: Iterable[Path]) -> None:
    """Let those read and write files whom the umask lets; safetensors makes files of their owner alone."""
    umask = os.umask(0o022)
    os.umask(umask)
    for path in paths:
        path.chmod(path.stat().st_mode | (0o666 & ~umask))


def temporary_name(path: Path) -> Path:
    """Beside `path`, of this process alone; what a kill leaves of it is matched by `.*.tmp`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def digests(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those files of a folder that are there, by their names from the folder on."""
    found = {}
    for name in names:
        path = Path(folder) / name
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            found[name] = digest.hexdigest()
    return found


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`; its folder is made, a file of that name is replaced."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write `content` to `path`; its folder is made, a file of that name is replaced."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write `content` as indented JSON; a NaN or infinity in it is a `ValueError`."""
    replace_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def save_picture(image: Any, path: str | os.PathLike) -> None:
    """Write a PIL image as PNG to `path`; its folder is made, a file of that name is replaced."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a matplotlib figure in the format of the path's suffix (`.png`, `.pdf`, `.svg`), as the others do.

    Of characters that its font has not, which are drawn as boxes, one warning tells.
    """
    with replacing(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(temporary, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
    boxes = [warning for warning in caught if re.match(r"Glyph \d+ .*missing from font", str(warning.message))]
    for warning in caught:
        if warning not in boxes:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if boxes:
        count = len({str(warning.message) for warning in boxes})
        warnings.warn(
            f"{Path(path).name}: {count} characters of names are boxes, for matplotlib's font lacks them; name one "
            "that has them as font.family in a matplotlibrc file",
            stacklevel=2,
        )


def publish_folder(temporary: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Give a finished folder its name, in place of what has it; its files are on the disk before that."""
    temporary, folder = Path(temporary), Path(folder)
    readable(path for path in temporary.rglob("*") if path.is_file())
    sync_tree(temporary)
    if folder.is_dir():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """[`sync`] for everything in a folder, and for the folder; many at a time, as a disk takes them together."""
    with ThreadPoolExecutor(SYNCS) as pool:
        list(pool.map(sync, folder.rglob("*")))
    sync(folder)


def sync(path: Path) -> None:
    """Wait until the file, or the list of names of a folder, is on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


def slug(text: str) -> str:
    """`text` as one part of a path: each run of other characters than letters, digits and `_.+=-` is a `_`."""
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_")
