"""What is scored, and how: names, defaults and checks, known without the libraries that score."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from huggingface_hub import constants

from ..core.inception_weights import WEIGHTS_SHA256, WEIGHTS_URL
from .registry import SCORES

FEWEST_OF_CURVE = 30  # images
OF_CLASSES = ("cmmd", "fd")  # what per_class gives of each class
CACHE = Path(constants.HF_HOME) / "image_embeddings"
DTYPES = ("float32", "float16", "bfloat16")
LEAST = {
    "batch_size": 1, "kid_subsets": 1, "kid_subset_size": 2, "permutations": 1, "precision_k": 1, "density_k": 1,
    "inception_splits": 1, "curve_repeats": 1, "seed": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and how; the defaults of the metrics are the published ones."""

    metrics: Sequence[str] = ("cmmd", "fd")
    batch_size: int = 64
    dtype: str = "float32"
    normalize: bool = True
    inception_weights: str = WEIGHTS_URL
    inception_sha256: str = WEIGHTS_SHA256
    cache_dir: str | None = None
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    permutations: int = 999
    precision_k: int = 3
    density_k: int = 5
    inception_splits: int = 10
    per_class: bool = False
    caption_column: str = "text"
    curve: bool = False
    curve_repeats: int = 8
    seed: int = 0
    num_workers: int | None = None
    save_embeddings: bool = False

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in SCORES]
        if unknown or not self.metrics:
            raise ValueError(f"metrics must be of {', '.join(SCORES)}; got {', '.join(unknown) or 'none'}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number; got {value!r:.80}")
            if value < least:
                raise ValueError(f"{name} must be {least} or more; got {value}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be 1 or more; got {self.num_workers}")
        drawn = [name for name, info in SCORES.items() if info.series]
        if self.curve and not set(self.metrics) & set(drawn):
            raise ValueError(f"curve needs one of the metrics {', '.join(drawn)}; got {self.metrics}")
        if self.per_class and not set(self.metrics) & set(OF_CLASSES):
            raise ValueError(f"per_class needs one of the metrics {', '.join(OF_CLASSES)}; got {self.metrics}")
