"""Files that a reader never sees half written, and the words in which results name machine and versions."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path` under a temporary name, then rename; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, content) -> None:
    """Write `content` as indented JSON; a NaN or infinity in it is a `ValueError`."""
    replace_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def save_picture(image, path: str | os.PathLike) -> None:
    """Write a PIL image as PNG to `path` under a temporary name, then rename; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def hardware(device: torch.device) -> str:
    """The device in words: the accelerator's name, or processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a sample, a time or a training may depend on."""
    names = ("torch", "diffusers", "accelerate", "datasets", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
