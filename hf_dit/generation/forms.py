"""The forms that the images are left in: PNG files, a data set of Parquet files, the `.npz` of ADM's evaluator.

Each is written from the parts, beside its name and then renamed; its bytes depend on nothing but the images, their
labels and the versions of Pillow and pyarrow. None is ever held in memory.
"""

import io
import itertools
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hf_common.files import publish_folder, replacing, slug

from .parts import Parts

ROWS = 100  # of a row group, as `datasets` has it for images
# What `datasets` writes Parquet files with.
PARQUET = {"write_page_index": True, "use_content_defined_chunking": True}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can tell; np.savez has that of the call


def file_names(count: int, labels: np.ndarray | None, class_names: Sequence[str]) -> list[str]:
    """`000000.png` and so on; with labels `03_cat/000000.png`, so that folders in order are classes in order."""
    digits = len(str(max(len(class_names) - 1, 0)))
    folders = [f"{place:0{digits}d}_{slug(name.split(',')[0])}" for place, name in enumerate(class_names)]
    names = [f"{number:06d}.png" for number in range(count)]
    if labels is None:
        return names
    return [f"{folders[label]}/{name}" for label, name in zip(labels[:count], names, strict=True)]


def write_png(parts: Parts, folder: Path, names: Sequence[str]) -> None:
    """Write image files by these names into `folder`, which is there when all of them are.

    Args:
        names: of image 0 and so on, from the folder on.
    """
    making = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)  # of a run that was killed here
    making.mkdir(parents=True)
    for name in {str(Path(name).parent) for name in names}:
        (making / name).mkdir(exist_ok=True)
    for number, content in _png_files(parts):
        (making / names[number]).write_bytes(content)
    publish_folder(making, folder)


def write_parquet(
    parts: Parts, folder: Path, labels: np.ndarray | None, class_names: Sequence[str], images_per_shard: int
) -> None:
    """Write `train-00000-of-NNNNN.parquet` and so on: the columns `image`, and `label` where there are labels.

    Args:
        labels: (at least the number of images,) int64, ids of `class_names`, which are all different.
    """
    making = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    columns = {} if labels is None else {"label": datasets.ClassLabel(names=list(class_names))}
    schema = datasets.Features({"image": datasets.Image(), **columns}).arrow_schema
    images, shards = _png_files(parts), -(-parts.num_images // images_per_shard)
    for shard in range(shards):
        name = f"train-{shard:05d}-of-{shards:05d}.parquet"
        with pq.ParquetWriter(making / name, schema, **PARQUET) as writer:
            rows = itertools.islice(images, images_per_shard)
            while group := list(itertools.islice(rows, ROWS)):
                table: dict[str, list] = {
                    "image": [{"bytes": content, "path": f"{number:06d}.png"} for number, content in group]
                }
                if labels is not None:
                    table["label"] = [int(labels[number]) for number, _ in group]
                writer.write_table(pa.Table.from_pydict(table, schema=schema), row_group_size=ROWS)
    publish_folder(making, folder)


def write_npz(parts: Parts, path: Path) -> None:
    """Write what `np.savez(path, images)` would: `arr_0`, (N, H, W, 3) uint8, which ADM's `evaluator.py` reads.

    Greyscale is repeated over three channels, since Inception takes colours. The file has no time in it.
    """
    height, width, _ = parts.shape
    head = {"descr": "|u1", "fortran_order": False, "shape": (parts.num_images, height, width, 3)}
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        archive.open(zipfile.ZipInfo("arr_0.npy", EPOCH), "w", force_zip64=True) as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, head)
        for start in parts.starts:
            entry.write(in_colour(parts.read(start).images).tobytes())


def in_colour(images: np.ndarray) -> np.ndarray:  # (..., H, W, 1 or 3) uint8 -> (..., H, W, 3) uint8
    """Greyscale repeated over three channels, colours as they are."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def picture_of(image: np.ndarray) -> Image.Image:  # (H, W, C) uint8
    """The image of Pillow, of mode `L` for one channel and else `RGB`."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _png_files(parts: Parts) -> Iterator[tuple[int, bytes]]:
    """(number, content of a PNG file) of all images, in order."""
    with ThreadPoolExecutor() as pool:
        for start in parts.starts:
            yield from enumerate(pool.map(_png, parts.read(start).images), start)


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    picture_of(image).save(content, format="PNG")
    return content.getvalue()


def write_forms(
    formats: Iterable[str],
    parts: Parts,
    folder: Path,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    *,
    class_folders: bool,
    images_per_shard: int,
) -> dict[str, str]:
    """Write each form into `folder`; by its name the file or folder that it is.

    Args:
        formats: of `png`, `parquet`, `npz`.
        labels, class_names: as for [`write_parquet`]; None and none for an unconditional model.
        class_folders: whether PNG files lie in folders of their classes.
    """
    places = {"png": "png", "parquet": "parquet", "npz": "samples.npz"}
    written = {}
    for form in formats:
        path = folder / places[form]
        if form == "png":
            write_png(parts, path, file_names(parts.num_images, labels if class_folders else None, class_names))
        elif form == "parquet":
            write_parquet(parts, path, labels, class_names, images_per_shard)
        else:
            write_npz(parts, path)
        written[form] = places[form]
    return written
