"""How much storage that keeps equal chunks once, such as the Hub's, needs for each config of a data set folder."""

import hashlib
import os
from pathlib import Path

from .form import entry_files
from .manifest import read_manifest


def chunk_reuse(folder: str | os.PathLike, average: int = 65536) -> list[dict]:
    """How many bytes each config adds to storage that keeps equal chunks once.

    Each train file of each config, in the manifest's order, is cut by FastCDC (Xia et al. 2016) into content-defined
    chunks of `average` bytes on average, `average / 8` at least and `2 * average` at most; a chunk counts as new where
    no chunk before it, in this config or an earlier one, has the same SHA-256. The Hub's storage cuts at 64 KiB alike.

    Args:
        folder (`str` or `os.PathLike`): a folder written by `build_noisy_cifar10` or `build_noisy_dataset`.
        average (`int`, *optional*, defaults to 65536): bytes, in 512..2**28.

    Returns:
        `list[dict]`: per config `config`, `bytes`, `new_bytes` and `percent` (of its own bytes that are new).

    Raises:
        ValueError: a folder without manifest, or `average` out of range.
        ImportError: the package `fastcdc` is missing.
    """
    if not 512 <= average <= 2**28:
        raise ValueError(f"average: expected bytes in 512..{2**28}, got {average}")
    folder = Path(folder)
    manifest = read_manifest(folder, must_exist=True)
    try:
        from fastcdc import fastcdc
    except ImportError as error:
        raise ImportError("chunk_reuse needs the package fastcdc: pip install fastcdc") from error

    seen, rows = set(), []
    for name in manifest["configs"]:
        size = new = 0
        for path in entry_files(manifest, name):
            for chunk in fastcdc(str(folder / path), average // 8, average, 2 * average, hf=hashlib.sha256):
                size += chunk.length
                if chunk.hash not in seen:
                    seen.add(chunk.hash)
                    new += chunk.length
        rows.append({"config": name, "bytes": size, "new_bytes": new, "percent": 100 * new / size})
    return rows
