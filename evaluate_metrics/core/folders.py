"""The image files of a folder: by their endings, through links, and nothing left out without a word."""

import os
import warnings
from pathlib import Path

from PIL import Image

# Of these Pillow reads no picture by itself, or they hold more than pictures: numbers, films, drawings, documents.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Files that may hold a data set, whose images are then not only those that lie about as files.
DATA_FILES = {".parquet", ".arrow", ".tar", ".tgz", ".gz", ".zip", ".tfrecord", ".lmdb"}
# What says something of the images beside it, as `datasets` reads it; and a .txt of an image's own name.
METADATA = ("metadata.jsonl", "metadata.csv")


def image_endings() -> set[str]:
    """`.png` and so on: the endings, in small letters, of the files that are taken for images."""
    forms = Image.registered_extensions()
    return {ending for ending, form in forms.items() if form in Image.OPEN and form not in NO_PICTURES}


def image_files(folder: str | os.PathLike) -> list[Path]:
    """The image files of a folder and of those in it, also behind links, in the order of their paths.

    Hidden files and folders are left out, and files with other endings than [`image_endings`], and links that lead
    back to a folder above them. Empty where no file is an image.

    Raises:
        ValueError: a link that leads nowhere; or no files; or images beside files that hold a data set.
        OSError: a folder that can't be read.

    Warns:
        UserWarning: says how many files are left out beside the images, and which; not of `metadata.jsonl`,
            `metadata.csv` and a `.txt` of an image's name, which hold captions.
    """
    folder = Path(folder)
    files, left_out = _walked(folder, (os.path.realpath(folder),))
    if not files:
        raise ValueError(f"{folder} holds no files")
    endings = image_endings()
    images = sorted(path for path in files if path.suffix.lower() in endings)
    others = sorted({*files, *left_out} - {*images})
    data = [path for path in others if path.suffix.lower() in DATA_FILES and path not in left_out]
    if images and data:
        raise ValueError(
            f"{folder} holds images and {len(data)} data files, as {data[0]}; of a data set name the split, or move "
            "the images to a folder of their own"
        )
    captions = {path.with_suffix(".txt") for path in images}
    others = [path for path in others if path not in captions and path.name not in METADATA]
    if images and others:
        named = ", ".join(str(path.relative_to(folder)) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        warnings.warn(
            f"{folder}: {len(others)} of {len(images) + len(others)} files are left out, which are no images by their "
            f"names, or hidden, or links back: {named}",
            stacklevel=3,
        )
    return images


def _walked(folder: Path, above: tuple[str, ...]) -> tuple[list[Path], list[Path]]:
    """Files in a folder and below, and what is left out: what is hidden, no plain file, or a link back.

    above: the real paths of the folder and of those that it was reached through.
    """
    files, left_out = [], []
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.name.startswith("."):
            left_out.append(path)
        elif entry.is_symlink() and not path.exists():
            raise ValueError(f"{path} is a link to {os.readlink(path)!r}, which is not there")  # noqa: PTH115 as it is written
        elif entry.is_dir():
            real = os.path.realpath(path)
            if real in above:
                left_out.append(path)
                continue
            found, others = _walked(path, (*above, real))
            files += found
            left_out += others
        else:
            (files if entry.is_file() else left_out).append(path)
    return files, left_out
