"""Scores of two sets of embeddings: the chosen metrics, and the same against the number of images."""

import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hf_common.plugins import in_one_line

from ..core.clip_score import SCALE, clip_score
from ..core.density_coverage import density_coverage, expected_coverage
from ..core.encoders import Encoder
from ..core.frechet import frechet_distance, frechet_distance_at_infinity, frechet_limit, kernel_distance
from ..core.inception_score import inception_score
from ..core.mmd import cmmd, kid, permutation_test
from ..core.moments import Moments
from ..core.precision_recall import precision_recall
from ..core.statistics import Statistics, part_of
from .registry import NEEDS, SCORES, ScoreInfo, keys_of
from .settings import FEWEST_OF_CURVE, Evaluation

HEAD_ROWS = 4096  # vectors whose logits are made at a time
# What a row of results has beside scores, which none may give.
OF_ROWS = frozenset(
    "encoder weights preprocessing normalized digest dtype dim predictions n_predictions references n_references "
    "embedding_seconds notes curve per_class".split()
)


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """What an encoder made of a set of n images.

    Attributes:
        moments: of the features.
        embeddings: the features themselves, (n, d) float32 on the CPU; None where moments are all there is.
        spatial: moments of spatial features, where the encoder gives them.
        head: (classes, d), the logits of features, where the encoder has one.
        captions: (n, d) embeddings of the images' captions, where there are such.
    """

    moments: Moments | Statistics
    embeddings: Tensor | None = None
    spatial: Moments | Statistics | None = None
    head: Tensor | None = None
    captions: Tensor | None = None

    def kept(self) -> Tensor:
        """The embeddings; a `RuntimeError` where they were not kept."""
        if self.embeddings is None:
            raise RuntimeError("only moments were kept")
        return self.embeddings

    def logits(self) -> Tensor:
        """(n, classes) float32, without bias."""
        assert self.head is not None  # else the score does not fit
        return torch.cat([rows @ self.head.T.to(rows.dtype) for rows in self.kept().split(HEAD_ROWS)])


def scored_set(
    moments: Moments | Statistics,
    embeddings: Tensor | None,
    parts: Mapping[str, slice],
    head: Tensor | None = None,
    captions: Tensor | None = None,
) -> ScoredSet:
    """The set, of moments and embeddings of whole vectors, whose parts are [`Encoder.parts`]."""
    found = {name: part_of(moments, part) if len(parts) > 1 else moments for name, part in parts.items()}
    features = None if embeddings is None else embeddings[:, parts["features"]]
    return ScoredSet(found["features"], features, found.get("spatial"), head, captions)


def gives(encoder: Encoder) -> frozenset[str]:
    """What of `NEEDS` an encoder gives."""
    there = {
        "unit vectors": encoder.normalized,
        "logits": encoder.head is not None,
        "spatial": "spatial" in encoder.parts,
        "captions": encoder.captions is not None,
    }
    return frozenset(name for name, given in there.items() if given)


def lacking(metric: str, given: Collection[str]) -> str | None:
    """What a score needs and an encoder does not give, in words; None if it is defined for the encoder."""
    missing = [NEEDS[need] for need in SCORES[metric].needs if need not in given]
    return f"{metric} is defined for {' and '.join(missing)}" if missing else None


def keeps(metrics: Sequence[str], curve: bool = False, per_class: bool = False) -> tuple[bool, bool]:
    """Whether the embeddings of predictions and of references are needed beside their moments."""
    infos = [SCORES[metric] for metric in metrics]
    predictions = curve or per_class or any(info.predictions == "embeddings" for info in infos)
    return predictions, per_class or any(info.references == "embeddings" for info in infos)


def check_counts(metric: str, predictions: int, references: int, settings: Evaluation) -> None:
    """`ValueError` unless a score is defined for so many images."""
    info = SCORES[metric]
    least = _least(info, settings)
    fewest = min(predictions, references)
    if least[0] == least[1] and fewest < least[0]:
        raise ValueError(
            f"{metric} needs {least[0]} images or more{info.fewest_words} in each set; the smaller one has {fewest}"
        )
    for role, needed, there in zip(("predictions", "references"), least, (predictions, references), strict=True):
        if there < needed:
            why = info.fewest_words.rstrip(",")
            raise ValueError(f"{metric} needs {needed} {role} or more{why}; there are {there}")


def _least(info: ScoreInfo, settings: Evaluation) -> tuple[int, int]:
    try:
        predictions, references = info.fewest(settings)
        return int(predictions), int(references)
    except Exception as error:  # of any kind: it may be someone's code
        raise ValueError(
            f"fewest of score {info.name!r} must give two numbers of images; it failed: {in_one_line(error)}"
        ) from error


def score(x: ScoredSet, y: ScoredSet, metrics: Sequence[str], settings: Evaluation | None = None) -> dict:
    """The values of `metrics`, all of which fit, for predictions x and references y.

    Returns:
        The keys of each metric's row in `SCORES` and facts beside them, None where a set is too small for a value; and
        `notes`: what a reader must know of them.
    """
    values: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for metric in metrics:
            values |= computed(SCORES[metric])(x, y, settings or Evaluation(metrics=metrics))
    return {**values, "notes": sorted({str(warning.message) for warning in caught})}


def computed(info: ScoreInfo) -> Callable[..., dict]:
    """What computes a score; one of someone's own raises a `ValueError` where it fails or gives what is no result."""
    return BUILT_IN[info.name] if info.compute is None else partial(_own, info)


def _own(info: ScoreInfo, x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    assert info.compute is not None  # else it is one of this package's
    try:
        found = dict(info.compute(x, y, settings))
        for key in keys_of(info):
            found[key] = None if found[key] is None else float(found[key])
        json.dumps(found)
    except Exception as error:  # of any kind: it is someone's code
        raise ValueError(
            f"score {info.name!r} must give numbers {', '.join(keys_of(info))}; it failed: {in_one_line(error)}"
        ) from error
    for other in SCORES.values():
        taken = sorted(found.keys() & {*keys_of(other)}) if other.name != info.name else []
        if taken:
            raise ValueError(f"score {info.name!r} gives {taken[0]!r}, which is of {other.name}")
    if found.keys() & OF_ROWS:
        raise ValueError(f"score {info.name!r} gives {sorted(found.keys() & OF_ROWS)[0]!r}, which every row has")
    return found


# --- One function a score: predictions, references, settings -> keys of its row ---


def _cmmd(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    result = cmmd(x.moments, y.moments)
    return {
        "cmmd": result.biased,
        "cmmd_unbiased": result.unbiased,
        "standard_error": result.standard_error,
        "error_bound": result.error_bound,
    }


def _p_value(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    test = permutation_test(x.kept(), y.kept(), permutations=settings.permutations, seed=settings.seed)
    return {"p_value": test.p_value, "permutations": test.permutations}


def _fd(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    return {"frechet_distance": frechet_distance(x.moments, y.moments)}


def _fd_infinity(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    limit = frechet_distance_at_infinity(x.kept(), y.moments, seed=settings.seed)
    return {"fd_infinity": limit.value, "fd_infinity_standard_error": limit.standard_error}


def _kid(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    mean, spread = kernel_distance(x.kept(), y.kept(), settings.kid_subsets, settings.kid_subset_size, settings.seed)
    return {"kid": mean, "kid_std": spread}


def _sfid(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    assert x.spatial is not None and y.spatial is not None  # else it does not fit
    return {"sfid": frechet_distance(x.spatial, y.spatial)}


def _precision_recall(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    result = precision_recall(x.kept(), y.kept(), settings.precision_k)
    return {
        "precision": result.precision,
        "precision_standard_error": result.precision_error,
        "recall": result.recall,
        "recall_standard_error": result.recall_error,
        "precision_k": result.k,
    }


def _density_coverage(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    result = density_coverage(x.kept(), y.kept(), settings.density_k)
    return {
        "density": result.density,
        "density_standard_error": result.density_error,
        "coverage": result.coverage,
        "coverage_standard_error": result.coverage_error,
        "coverage_expected": expected_coverage(result.n_x, result.n_y, result.k),
        "density_k": result.k,
    }


def _inception_score(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    result = inception_score(x.logits(), settings.inception_splits)
    return {
        "inception_score": result.mean, "inception_score_std": result.spread, "inception_splits": result.splits,
    }  # fmt: skip


def _clip_score(x: ScoredSet, y: ScoredSet, settings: Evaluation) -> dict:
    assert x.captions is not None  # else it does not fit
    result = clip_score(x.kept(), x.captions)
    return {
        "clip_score": result.mean, "clip_score_standard_error": result.standard_error, "clip_score_scale": SCALE,
    }  # fmt: skip


BUILT_IN: dict[str, Callable[..., dict]] = {
    "cmmd": _cmmd,
    "p_value": _p_value,
    "fd": _fd,
    "fd_infinity": _fd_infinity,
    "kid": _kid,
    "sfid": _sfid,
    "precision_recall": _precision_recall,
    "density_coverage": _density_coverage,
    "inception_score": _inception_score,
    "clip_score": _clip_score,
}


# --- Against the number of images ---


def score_curve(x: Tensor, y: ScoredSet, metrics: Sequence[str], *, repeats: int = 8, seed: int = 0) -> dict:
    """Each of the metrics that has series in `SCORES` against the number of predictions, with all references.

    For n, n / 2, n / 4, ... predictions, down to `FEWEST_OF_CURVE`, up to `repeats` disjoint random subsets are
    scored; that they are disjoint makes their spread an honest error. KID takes as many references, drawn anew.

    Args:
        x: (n, d) float32 embeddings of the predictions, n >= 2 * `FEWEST_OF_CURVE`.
        y: the references; with embeddings for `kid`.

    Returns:
        `counts`, falling from n; for each series of the metrics a list of the values of the subsets at each count; and
        `fd_limit`, see [`frechet_limit`], of the subsets of n / 10 images or more and more than dimensions; None where
        these are of fewer than 3 counts.
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


def _curve_point(x: Tensor, y: ScoredSet, metrics: Sequence[str], generator: torch.Generator) -> dict:
    subset = ScoredSet(Moments.zeros(x.shape[1]).update(x), x)
    point: dict[str, float | None] = {}
    for metric in metrics:
        info = SCORES[metric]
        if not info.series:
            continue
        if metric == "kid":  # of all pairs, with as many references
            references = y.kept()
            chosen = torch.randperm(len(references), generator=generator)[: len(x)]
            found: dict = {"kid": kid(x, references[chosen]).value}
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the picture marks where covariances are singular
                found = computed(info)(subset, y, Evaluation(metrics=metrics))
        point |= {key: found[key] for key, *_ in info.series}
    return point
