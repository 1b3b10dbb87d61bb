"""The data set that noise is put on: its encoded images and labels as they are, checked."""

import hashlib
import io
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Image

from hf_common.images import to_rgb
from hf_common.names import data_source

from ..noise.labels import check_labels
from .manifest import NUM_CLASSES

IMAGE_SIZE = (32, 32)


def load_source(source: str) -> tuple[dict, dict]:
    """Training and test split, checked.

    Each has `images` (`pa.ChunkedArray` of struct<bytes, path>), `bytes` (list), `labels` ((N,) int64) and
    `class_names`.
    """
    with data_source(source, "source"):
        splits = datasets.load_dataset(source)
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"source: {source!r} must have the splits train and test, it has {sorted(splits)}")
    return _read_split(source, splits, "train"), _read_split(source, splits, "test")


def _read_split(source: Any, splits: Any, split: str) -> dict:
    features = splits[split].features
    image, label = features.get("img"), features.get("label")
    if (
        set(features) != {"img", "label"}
        or not isinstance(image, Image)
        or not isinstance(label, ClassLabel)
        or label.num_classes != NUM_CLASSES
    ):
        raise ValueError(
            f"source: split {split!r} of {source!r} must have exactly the columns img (Image) and label (ClassLabel "
            f"of {NUM_CLASSES} names), it has {dict(features)}"
        )
    # In Arrow format nothing is decoded: these are the encoded bytes as they lie in the source. Rows that hold only a
    # path get their file's bytes, as they are.
    table = splits[split].with_format("arrow")[:]
    images = pa.chunked_array([image.embed_storage(chunk) for chunk in table["img"].chunks], type=image.pa_type)
    encoded = pc.struct_field(images, "bytes").to_pylist()
    labels = check_labels(f"source: column 'label' of split {split!r}", table["label"].to_numpy(), NUM_CLASSES)
    for position, data in enumerate(encoded):
        _check_image(f"source: image {position} of split {split!r}", data)
    return {"images": images, "bytes": encoded, "labels": labels, "class_names": label.names}


def _check_image(name, data):
    if data is None:
        raise ValueError(f"{name} is missing")
    try:
        size = PIL.Image.open(io.BytesIO(data)).size  # reads the header only
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that can be read") from error
    if size != IMAGE_SIZE:
        raise ValueError(f"{name} is {size[0]}x{size[1]}, expected {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}")


def decode_all(encoded: list[bytes]) -> np.ndarray:  # -> (N, 32, 32, 3) uint8
    """The pixels of the training images."""
    pixels = np.empty((len(encoded), *IMAGE_SIZE, 3), np.uint8)
    for position, data in enumerate(encoded):
        pixels[position] = np.asarray(to_rgb({"bytes": data}, f"source: image {position} of split 'train'"))
    return pixels


def source_fingerprint(*splits: dict) -> str:
    """SHA-256 of the encoded images and the labels; not of paths, class names or the files that held them."""
    digest = hashlib.sha256()
    for split in splits:
        for data in split["bytes"]:
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        digest.update(split["labels"].astype("<i8").tobytes())
    return digest.hexdigest()
