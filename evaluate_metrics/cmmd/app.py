"""The Space: two sets of images in, their scores out."""

from pathlib import Path
from typing import Any

import evaluate

from evaluate_metrics.core.app import NO_NUMBER, TINY, launch_page, score_galleries, shown

SCORES = {
    "cmmd": "CMMD",
    "cmmd_unbiased": "CMMD, unbiased",
    "standard_error": "standard error",
    "error_bound": "error bound",
    "frechet_distance": "Fréchet distance",
    "n_predictions": "generated images",
    "n_references": "real images",
    "encoder": "encoder",
    "preprocessing": "preprocessing",
    "digest": "digest",
}
TEXT = """# CMMD
How far is a set of generated images from a set of real ones? The squared maximum mean discrepancy of their embeddings
([Jayasumana et al. 2024](https://arxiv.org/abs/2401.09603)), 0 for one and the same distribution. The unbiased value
is the one to read for small sets; differences below about two standard errors mean nothing. Values of different
encoders cannot be compared. The first call loads the encoder. The tiny one needs no network; it compares colours and
roughness, is for trying the page out, and its values mean nothing elsewhere."""


def cmmd_rows(metric: evaluate.Metric, *sets: Any, **watch: Any) -> list[list[str]]:
    """Name and value of each score, of what `score_galleries` takes."""
    result = score_galleries(metric, *sets, **watch)
    lacking = dict.fromkeys(SCORES, "needs more images")
    if result["n_references"] is None:
        lacking = {**dict.fromkeys(SCORES, "needs the number of real images"), "n_references": NO_NUMBER}
    rows = [[label, shown(result[key], lacking[key])] for key, label in SCORES.items()]
    return rows + [["note", note] for note in result.get("notes", ())]


PAGE = {"title": "CMMD", "text": TEXT, "choice": {"label": "Encoder"}, "score": cmmd_rows}

if __name__ == "__main__":
    script = str(Path(__file__).with_name("cmmd.py"))
    metrics = {name: evaluate.load(script, name) for name in ("clip", "siglip", "align")}
    launch_page({**metrics, TINY: evaluate.load(script, encoder="tiny")}, **PAGE)
