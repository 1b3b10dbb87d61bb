"""The Space: two sets of images in, several scores out.

    python app.py

INCEPTION_WEIGHTS and INCEPTION_SHA256 name a file or URL of the FID network's weights and its digest, where they are
not to be downloaded from their first address.
"""

import os
from pathlib import Path
from typing import Any

import evaluate

from evaluate_metrics.core.app import NO_NUMBER, TINY, Gallery, launch_page, score_galleries, shown

TITLES = {  # key -> words, key of the error
    "frechet_distance": ("Fréchet distance (with inception the FID)", None),
    "sfid": ("sFID", None),
    "cmmd": ("CMMD", "standard_error"),
    "inception_score": ("Inception Score", "inception_score_std"),
    "precision": ("precision", "precision_standard_error"),
    "recall": ("recall", "recall_standard_error"),
    "density": ("density", "density_standard_error"),
    "coverage": ("coverage", "coverage_standard_error"),
    "coverage_expected": ("coverage to expect of one distribution", None),
    "n_predictions": ("generated images", None),
    "n_references": ("real images", None),
    "preprocessing": ("protocol", None),
    "digest": ("its digest", None),
}
FEWEST = 10  # images that the Inception Score in 10 parts and the neighbours need
TEXT = """# Image quality
How good and how varied are generated images, beside real ones? The Fréchet distance and sFID (lower is better),
Inception Score, improved precision and recall ([Kynkäänniemi et al. 2019](https://arxiv.org/abs/1904.06991)), density
and coverage ([Naeem et al. 2020](https://arxiv.org/abs/2002.09797); higher is better). **Values of a few images are
for trying only**: published ones are of 10,000 to 50,000. Those of different protocols cannot be compared. The first
call loads the network. The tiny encoder needs none; it compares colours and roughness, is for trying the page out, and
its values mean nothing elsewhere."""


def quality_rows(
    metric: evaluate.Metric,
    predictions: Gallery,
    references: Gallery,
    statistics: str | None = None,
    **options: Any,
) -> tuple[list[list[str]], str]:
    """Name and value of each score, and what is to be known of them."""
    sets = (predictions, references) if statistics is None else (predictions,)
    few = min(len(images or []) for images in sets) < FEWEST
    if few or statistics is not None:
        options["scores"] = [metric.scores[0]]
    result = score_galleries(metric, predictions, references, statistics, two_each=True, **options)
    rows = []
    for key, (words, error) in TITLES.items():
        if key in result:
            spread = result.get(error) if error else None
            rows.append([words, shown(result[key], NO_NUMBER) + ("" if spread is None else f" ± {spread:.2g}")])
    notes = [*result["notes"], *([f"the other scores need {FEWEST} images of each"] if few else [])]
    notes += ["the other scores need real images"] if statistics is not None else []
    return rows, " ".join(f"Note: {note}." for note in notes)


PAGE = {
    "title": "Image quality",
    "text": TEXT,
    "choice": {"label": "Protocol", "info": "inception: as the FID was first published; fd-dinov2; clip: as the CMMD"},
    "score": quality_rows,
    "notes": True,
}

if __name__ == "__main__":
    script = str(Path(__file__).with_name("image_quality.py"))
    network: dict[str, Any] = {}
    if "INCEPTION_WEIGHTS" in os.environ:
        network = {"weights": os.environ["INCEPTION_WEIGHTS"], "sha256": os.environ["INCEPTION_SHA256"]}
    names = ("inception", "fd-dinov2", "clip")
    metrics = {name: evaluate.load(script, name, **network) for name in names}
    launch_page({**metrics, TINY: evaluate.load(script, encoder="tiny")}, **PAGE)
