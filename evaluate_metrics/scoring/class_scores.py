"""The scores of each class's images alone, beside those of the whole."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_common.foreign import short

from ..core.frechet import frechet_distance
from ..core.mmd import cmmd
from ..core.moments import Moments
from .registry import SCORES


def score_classes(
    x: Tensor, y: Tensor, x_classes: Sequence[str], y_classes: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict]:
    """CMMD and Frechet distance of each class's images alone, of those of `metrics` that are asked for.

    Covariances of a class are singular where it has fewer images than dimensions: its Frechet distance is then far
    above the limit, and comparable at equal numbers alone.

    Args:
        x, y: (m, d) and (n, d) embeddings of predictions and references. x_classes, y_classes: the class of each.

    Returns:
        By class, of both sets: `n_predictions`, `n_references` and the values, None where there are too few images.
    """
    found = {}
    places = [_rows_of_classes(classes) for classes in (x_classes, y_classes)]
    for name in sorted(places[0].keys() | places[1].keys()):
        chosen = [
            rows[of.get(name, torch.empty(0, dtype=torch.int64))] for rows, of in zip((x, y), places, strict=True)
        ]
        a, b = (Moments.zeros(x.shape[1]).update(rows) for rows in chosen)
        row: dict = {"n_predictions": a.n, "n_references": b.n}
        if "cmmd" in metrics:
            result = cmmd(a, b) if min(a.n, b.n) else None
            row["cmmd"] = None if result is None else result.biased
            row["cmmd_unbiased"] = None if result is None else result.unbiased
            row["standard_error"] = None if result is None else result.standard_error
        if "fd" in metrics:
            row["frechet_distance"] = frechet_distance(a, b, warn=False) if min(a.n, b.n) > 1 else None
        found[name] = row
    return found


def class_means(by_class: dict[str, dict]) -> dict[str, float]:
    """Means over the classes that have a value: `cmmd_unbiased_of_classes`, `frechet_distance_of_classes`, ..."""
    known = {value.key for info in SCORES.values() for value in info.values}
    keys = {key for row in by_class.values() for key in row if key in known}
    means = {}
    for key in sorted(keys):
        values = [row[key] for row in by_class.values() if row[key] is not None]
        if values:
            means[f"{key}_of_classes"] = sum(values) / len(values)
    return means


def class_notes(by_class: dict[str, dict], dim: int) -> list[str]:
    """What a reader must know of the scores of classes."""
    notes = []
    for role in ("predictions", "references"):
        empty = [name for name, row in by_class.items() if not row[f"n_{role}"]]
        if empty:
            named = short(", ".join(empty), 120)
            notes.append(f"no {role} of {len(empty)} of {len(by_class)} classes, which have no scores: {named}")
    few = [name for name, row in by_class.items() if min(row["n_predictions"], row["n_references"]) <= dim]
    if few and any("frechet_distance" in row for row in by_class.values()):
        notes.append(
            f"{len(few)} of {len(by_class)} classes have {dim} images or fewer on a side, one a dimension: their "
            "Frechet distances are far above the limit for many images"
        )
    return notes


def _rows_of_classes(classes: Sequence[str]) -> dict[str, Tensor]:
    found: dict[str, list[int]] = {}
    for place, name in enumerate(classes):
        found.setdefault(name, []).append(place)
    return {name: torch.tensor(places) for name, places in found.items()}
