"""What is scored, and how: names, defaults and checks, known without the libraries that score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from ..core.inception_weights import WEIGHTS_SHA256, WEIGHTS_URL

METRICS = {
    "cmmd": "CMMD, biased as published and unbiased, with its standard error (unit vectors only)",
    "p_value": "permutation test of the CMMD: do both sets come from one distribution? (unit vectors only)",
    "fd": "Frechet distance; with the encoder inception it is the FID",
    "fd_infinity": "its limit for infinitely many predictions",
    "kid": "kernel distance of random subsets; with the encoder inception it is the KID",
}
CURVE_METRICS = ("cmmd", "fd", "kid")
FEWEST_OF_CURVE = 30  # images
CACHE = Path(constants.HF_HOME) / "image_embeddings"
DTYPES = ("float32", "float16", "bfloat16")
LEAST = {"batch_size": 1, "kid_subsets": 1, "kid_subset_size": 2, "permutations": 1, "curve_repeats": 1, "seed": 0}


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
    curve: bool = False
    curve_repeats: int = 8
    seed: int = 0
    num_workers: int | None = None
    save_embeddings: bool = False

    def __post_init__(self) -> None:
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics must be of {', '.join(METRICS)}; got {', '.join(unknown) or 'none'}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more; got {getattr(self, name)}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers must be 1 or more; got {self.num_workers}")
        if self.curve and not set(self.metrics) & set(CURVE_METRICS):
            raise ValueError(f"curve needs one of the metrics {', '.join(CURVE_METRICS)}; got {self.metrics}")
