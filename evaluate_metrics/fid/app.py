"""The Space: two sets of images in, FID and KID out.

    python app.py

INCEPTION_WEIGHTS and INCEPTION_SHA256 name a file or URL of the network's weights and its digest, where they are not
to be downloaded from their first address.
"""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import evaluate

from evaluate_metrics.core.app import NO_NUMBER, TINY, Gallery, launch_page, score_galleries, shown

LARGEST_SUBSET, SUBSETS = 1000, 10  # of the KID
TEXT = """# FID
How far is a set of generated images from a set of real ones? The Frechet Inception Distance
([Heusel et al. 2017](https://arxiv.org/abs/1706.08500)) and the kernel distance KID
([Binkowski et al. 2018](https://arxiv.org/abs/1801.01401)) of their Inception embeddings, 0 for one and the same
distribution. **The FID of a few images is far too high**: published values are of 10,000 to 50,000, and below 2,049
its covariances are singular. The KID has no such bias, and may be below 0; it needs real images. The first call loads
the network. The tiny encoder needs none; it compares colours and roughness, is for trying the page out, and its values
mean nothing elsewhere."""


class Pair(NamedTuple):
    """The metric with the KID, and without it, for where there are no real images but their statistics."""

    kid: evaluate.Metric
    alone: evaluate.Metric


def load_pair(script: str, *args: str, **options: Any) -> Pair:
    """What `evaluate.load` makes of these arguments; the networks are loaded when they are asked for."""
    return Pair(*(evaluate.load(script, *args, keep_embeddings=keep, **options) for keep in (True, False)))


def fid_rows(
    metrics: Pair, predictions: Gallery, references: Gallery, statistics: str | None = None, **options: Any
) -> tuple[list[list[str]], str]:
    """Name and value of each score, and what is to be known of them."""
    fewest = min(len(images or []) for images in (predictions, references))
    subset = max(2, min(LARGEST_SUBSET, fewest // 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if statistics is None:
            options |= {"kid_subsets": SUBSETS, "kid_subset_size": subset}
        metric = metrics.kid if statistics is None else metrics.alone
        result = score_galleries(metric, predictions, references, statistics, two_each=True, **options)
    rows = [["FID", shown(result["frechet_distance"])]]
    if "kid" in result:
        rows.append(["KID", f"{shown(result['kid'])} ± {result['kid_std']:.2g} ({SUBSETS} subsets of {subset})"])
    rows += [
        ["generated images", shown(result["n_predictions"])],
        ["real images", shown(result["n_references"], NO_NUMBER)],
        ["resizing", result["preprocessing"]],
    ]
    notes = [*result.get("notes", ()), *(str(w.message) for w in caught if "Frechet" in str(w.message))]
    return rows, " ".join(f"Note: {note}." for note in notes)


PAGE = {
    "title": "FID",
    "text": TEXT,
    "choice": {
        "label": "Resizing",
        "info": "tensorflow: as first published; pytorch: as pytorch-fid; clean: as clean-fid",
    },
    "score": fid_rows,
    "notes": True,
}

if __name__ == "__main__":
    script = str(Path(__file__).with_name("fid.py"))
    options: dict[str, Any] = {}
    if "INCEPTION_WEIGHTS" in os.environ:
        options = {"weights": os.environ["INCEPTION_WEIGHTS"], "sha256": os.environ["INCEPTION_SHA256"]}
    names = ("tensorflow", "pytorch", "clean")
    metrics = {name: load_pair(script, name, **options) for name in names}
    launch_page({**metrics, TINY: load_pair(script, encoder="tiny")}, **PAGE)
