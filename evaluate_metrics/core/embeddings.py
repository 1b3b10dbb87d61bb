"""Files of embeddings: what scores need that look at pairs of images, which no moments hold."""

import os
import re

import torch
from torch import Tensor

from hf_common.foreign import read_tensors, refuse, short

from .moments import check_digest, save_with_digest

EMBEDDINGS_VERSION = "1"
EMBEDDINGS_DTYPES = {"float32": torch.float32, "float16": torch.float16}


def save_embeddings(
    path: str | os.PathLike, embeddings: Tensor, metadata: dict[str, str], dtype: str = "float32"
) -> None:
    """Write (n, d) embeddings as safetensors, under a temporary name and then renamed; the folder is made.

    Args:
        metadata: must name `encoder` and `preprocessing`, as for [`Moments.save`]; `version`, `images` and `sha256`,
            the digest of all the rest, are added.
        dtype: `"float32"`, or `"float16"` for half the size and 3 digits.

    Raises:
        ValueError: metadata that lack these, another dtype, no embeddings, or numbers beyond float16.
    """
    missing = [key for key in ("encoder", "preprocessing") if key not in metadata]
    if missing:
        raise ValueError(f"metadata must have the keys 'encoder' and 'preprocessing', missing: {missing}")
    if dtype not in EMBEDDINGS_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(EMBEDDINGS_DTYPES)}; got {dtype!r}")
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings must be (n, d), n >= 1; got {tuple(embeddings.shape)}")
    kept = embeddings.detach().cpu().to(EMBEDDINGS_DTYPES[dtype]).contiguous()
    if not kept.isfinite().all():
        raise ValueError(
            f"embeddings have numbers that are none in {dtype}; the largest is {embeddings.abs().max():g}"
        )
    added = {"version": EMBEDDINGS_VERSION, "images": str(len(kept))}
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    save_with_digest(path, {"embeddings": kept}, rest | added)


def load_embeddings(path: str | os.PathLike) -> tuple[Tensor, dict[str, str]]:
    """What [`save_embeddings`] wrote, (n, d) float32, with all its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, damaged, or of another format; begins with its path.
    """
    tensors, metadata = read_tensors(path)
    missing = {"encoder", "preprocessing", "version", "images"} - metadata.keys()
    if missing or tensors.keys() != {"embeddings"}:
        raise refuse(
            path,
            f"is no file of embeddings: it holds the tensors {short(sorted(tensors), 60)} and lacks the metadata "
            f"{sorted(missing)}",
        )
    if metadata["version"] != EMBEDDINGS_VERSION:
        found = short(metadata["version"], 40)
        raise refuse(path, f"has format version {found}, this is version {EMBEDDINGS_VERSION}")
    check_digest(path, tensors, metadata)
    found = tensors["embeddings"]
    if found.ndim != 2 or 0 in found.shape or found.dtype not in EMBEDDINGS_DTYPES.values():
        raise refuse(path, f"must hold (n, d) float32 or float16 embeddings, got {found.dtype} {tuple(found.shape)}")
    if not re.fullmatch(r"\d{1,16}", metadata["images"]) or int(metadata["images"]) != len(found):
        raise refuse(path, f"says {short(repr(metadata['images']), 40)} images and holds {len(found)}")
    if not found.isfinite().all():
        raise refuse(path, "holds NaN or infinity")
    return found.float(), metadata
