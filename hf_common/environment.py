"""The words in which results name the machine and the versions that they come from."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hardware(device: "torch.device") -> str:
    """A `torch.device` in words: the accelerator's name, or processor and threads."""
    import torch  # whoever has a device has loaded it

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the installed `libraries`, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def memory_bytes() -> int:
    """The memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
