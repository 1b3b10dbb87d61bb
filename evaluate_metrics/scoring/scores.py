"""Scores of two sets of embeddings: the chosen metrics, and the same against the number of images."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.frechet import frechet_distance, frechet_distance_at_infinity, frechet_limit, kernel_distance
from ..core.mmd import cmmd, kid, permutation_test
from ..core.moments import Moments
from .embedding import Embedded
from .settings import FEWEST_OF_CURVE

UNIT_VECTORS = ("cmmd", "p_value")
PREDICTIONS_KEPT, REFERENCES_KEPT = ("p_value", "fd_infinity", "kid"), ("p_value", "kid")  # moments don't do


def keeps(metrics: Sequence[str], curve: bool) -> tuple[bool, bool]:
    """Whether the embeddings of predictions and of references are needed beside their moments."""
    predictions = curve or any(metric in PREDICTIONS_KEPT for metric in metrics)
    return predictions, any(metric in REFERENCES_KEPT for metric in metrics)


def fits(metric: str, normalized: bool) -> bool:
    """Whether `metric` is defined for an encoder that gives unit vectors, or none."""
    return normalized or metric not in UNIT_VECTORS


def score(
    x: Embedded,
    y: Embedded,
    metrics: Sequence[str],
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    permutations: int = 999,
    seed: int = 0,
) -> dict:
    """The values of `metrics`, all of which fit, for predictions x and references y.

    Returns:
        For `cmmd`: `cmmd`, `cmmd_unbiased`, `standard_error` and `error_bound`, see [`cmmd`]; None where a set is too
        small. `p_value`: `p_value`, `permutations`. `fd`: `frechet_distance`. `fd_infinity`: `fd_infinity`,
        `fd_infinity_standard_error`. `kid`: `kid`, `kid_std`. `notes`: what a reader must know of them.
    """
    values: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for metric in metrics:
            if metric == "cmmd":
                result = cmmd(x.moments, y.moments)
                values |= {
                    "cmmd": result.biased,
                    "cmmd_unbiased": result.unbiased,
                    "standard_error": result.standard_error,
                    "error_bound": result.error_bound,
                }
            elif metric == "p_value":
                test = permutation_test(x.kept(), y.kept(), permutations=permutations, seed=seed)
                values |= {"p_value": test.p_value, "permutations": test.permutations}
            elif metric == "fd":
                values["frechet_distance"] = frechet_distance(x.moments, y.moments)
            elif metric == "fd_infinity":
                limit = frechet_distance_at_infinity(x.kept(), y.moments, seed=seed)
                values |= {"fd_infinity": limit.value, "fd_infinity_standard_error": limit.standard_error}
            elif metric == "kid":
                mean, spread = kernel_distance(x.kept(), y.kept(), kid_subsets, kid_subset_size, seed)
                values |= {"kid": mean, "kid_std": spread}
    return {**values, "notes": sorted({str(warning.message) for warning in caught})}


def score_curve(x: Tensor, y: Embedded, metrics: Sequence[str], *, repeats: int = 8, seed: int = 0) -> dict:
    """Each metric of `CURVE_METRICS` against the number of predictions, the references being used whole.

    For n, n / 2, n / 4, ... predictions, down to `FEWEST_OF_CURVE`, up to `repeats` disjoint random subsets are
    scored; that they are disjoint makes their spread an honest error. KID takes as many references, drawn anew.

    Args:
        x: (n, d) float32 embeddings of the predictions, n >= 2 * `FEWEST_OF_CURVE`.
        y: the references; with embeddings for `kid`.

    Returns:
        `counts`, falling from n; for each series (`cmmd`, `cmmd_unbiased`, `frechet_distance`, `kid`) a list of
        the values of the subsets at each count; and `fd_limit`, see [`frechet_limit`], of the subsets of n / 10 images
        or more and more than dimensions; None where these are of fewer than 3 counts.
    """
    if len(x) < 2 * FEWEST_OF_CURVE:
        raise ValueError(f"a curve needs {2 * FEWEST_OF_CURVE} predictions or more; got {len(x)}")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more; got {repeats}")
    counts = [len(x) >> halvings for halvings in range(int(math.log2(len(x) / FEWEST_OF_CURVE)) + 1)]
    # Of their own, so that a metric draws the same subsets beside any others.
    generator, of_references = (torch.Generator().manual_seed(number) for number in (seed, seed + 1))
    curve: dict = {"counts": counts}
    for count in counts:
        order = torch.randperm(len(x), generator=generator)
        found: dict[str, list] = {}
        for subset in order.split(count)[: min(repeats, len(x) // count)]:
            for name, value in _curve_point(x[subset], y, metrics, of_references).items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            curve.setdefault(name, []).append(values)
    if "fd" in metrics:
        pairs = [
            (count, value)
            for count, values in zip(counts, curve["frechet_distance"], strict=True)
            for value in values
            if count > max(len(x) / 10, x.shape[1])
        ]
        enough = len({count for count, _ in pairs}) >= 3
        curve["fd_limit"] = frechet_limit(*map(list, zip(*pairs, strict=True))).value if enough else None
    return curve


def _curve_point(x: Tensor, y: Embedded, metrics: Sequence[str], generator: torch.Generator) -> dict:
    moments = Moments.zeros(x.shape[1]).update(x)
    point: dict[str, float | None] = {}
    if "cmmd" in metrics:
        result = cmmd(moments, y.moments)
        point |= {"cmmd": result.biased, "cmmd_unbiased": result.unbiased}
    if "fd" in metrics:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the picture marks where covariances are singular
            point["frechet_distance"] = frechet_distance(moments, y.moments)
    if "kid" in metrics:
        references = y.kept()
        chosen = torch.randperm(len(references), generator=generator)[: len(x)]
        point["kid"] = kid(x, references[chosen]).value
    return point
