"""Metrics for `evaluate.load` that compare sets of images: `evaluate.load(path("cmmd"), "clip")`."""

from pathlib import Path

METRICS = ("cmmd", "fid")
# Those that values or times may depend on.
LIBRARIES = ("torch", "transformers", "datasets", "numpy", "pillow")


def path(name: str) -> str:
    """The folder of a metric, which `evaluate.load` takes from any working folder; a `ValueError` for another name."""
    if name not in METRICS:
        raise ValueError(f"name must be one of {METRICS}; got {name!r}")
    return str(Path(__file__).parent / name)
