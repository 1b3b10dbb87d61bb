"""Metrics for `evaluate.load` that compare sets of images: `evaluate.load(path("cmmd"), "clip")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_common import __version__ as __version__
from hf_common.lazy import lazy_names

if TYPE_CHECKING:
    from .core.encoders import register_encoder
    from .scoring.registry import ScoreInfo, Value, register_score

__all__ = ["LIBRARIES", "METRICS", "ScoreInfo", "Value", "path", "register_encoder", "register_score"]

METRICS = ("cmmd", "fid", "image_quality")
# Those that values or times may depend on.
LIBRARIES = ("torch", "transformers", "datasets", "numpy", "pillow")


def path(name: str) -> str:
    """The folder of a metric, which `evaluate.load` takes from any working folder; a `ValueError` for another name."""
    if name not in METRICS:
        raise ValueError(f"name must be one of {METRICS}; got {name!r}")
    return str(Path(__file__).parent / name)


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "register_encoder": "core.encoders",
        "ScoreInfo": "scoring.registry",
        "Value": "scoring.registry",
        "register_score": "scoring.registry",
    },
)
