"""Checkpoints of the paper's code, as files or as what they hold -> the weights in them."""

import argparse
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_common.foreign import first_line, refuse

WRAPPER = "module."  # what DistributedDataParallel puts before every name
SAFETENSORS = ".safetensors"


def original_weights(checkpoint: Mapping[str, Any] | str | os.PathLike) -> dict[str, Tensor]:
    """The weights of a checkpoint or of its file: those of `ema` if it is one of a whole training.

    Raises:
        ValueError: a file that is no checkpoint, or one of a training without weights.
        OSError: a file that cannot be opened.
    """
    where = f"{os.fspath(checkpoint)}: " if isinstance(checkpoint, str | os.PathLike) else ""
    content = read_checkpoint(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
    found = [name for name in ("ema", "model") if isinstance(content.get(name), Mapping)]
    if found:
        others = ", ".join(name for name in content if name != found[0])
        warnings.warn(f"{where}took the weights under {found[0]!r}, not {others or 'others'}", stacklevel=3)
        content = content[found[0]]
    if content and all(isinstance(name, str) and name.startswith(WRAPPER) for name in content):
        content = {name.removeprefix(WRAPPER): value for name, value in content.items()}
    wrong = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        kind = type(content[wrong]).__name__
        raise ValueError(f"{where}state_dict must hold tensors by their names, {wrong!r:.80} is of type {kind}")
    return dict(content)


def read_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """What a `.safetensors` file, or one of `torch.save`, holds; tensors stay on the disk until they are used.

    The arguments of a training that lie beside its weights are the one kind of object that is let in.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"state_dict must be the path of a file, {path} is a folder; from_pretrained loads folders")
    with path.open("rb"):  # that it can be opened is no question of what it holds
        pass
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files of PyTorch before 1.6 are no archives, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # of bytes that are no checkpoint, PyTorch says whatever its reader stumbles over
        raise refuse(path, f"is no checkpoint that can be read: {first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise refuse(path, f"must hold tensors by their names, holds {type(content).__name__}")
    return content
