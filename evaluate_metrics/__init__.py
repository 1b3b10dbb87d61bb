"""Metrics for `evaluate.load` that compare sets of images: `evaluate.load(path("cmmd"), "clip")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_common import __version__ as __version__
from hf_common.lazy import lazy_names

if TYPE_CHECKING:
    from .core.encoders import register_encoder

__all__ = ["LIBRARIES", "METRICS", "path", "register_encoder"]

METRICS = ("cmmd", "fid")
# Those that values or times may depend on.
LIBRARIES = ("torch", "transformers", "datasets", "numpy", "pillow")


def path(name: str) -> str:
    """The folder of a metric, which `evaluate.load` takes from any working folder; a `ValueError` for another name."""
    if name not in METRICS:
        raise ValueError(f"name must be one of {METRICS}; got {name!r}")
    return str(Path(__file__).parent / name)


__getattr__, __dir__ = lazy_names(__name__, {"register_encoder": "core.encoders"})
