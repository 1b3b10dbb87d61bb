"""The table of scores: what each is, where it comes from, what it needs, what it gives; known without torch.

Settings, checks, the command's choices and help, tables of results and the README are made from it. A score of one's
own joins it by [`register_score`].
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hf_common.identity import same_code
from hf_common.tables import markdown_table

KEPT = ("moments", "embeddings", "nothing")  # what a score takes of a set: sums, every vector, or that there is one
NEEDS = {  # beside the vectors of an encoder -> what it is in words
    "unit vectors": "unit vectors",
    "logits": "the logits of classes",
    "spatial": "spatial features",
    "captions": "embeddings of captions",
}
BETTER = {"lower": "↓", "higher": "↑", "": ""}
COLOUR = "#[0-9A-Fa-f]{6}"
CITED_AS = r".+ \d{4}(, .+)?"

Fewest = Callable[[Any], tuple[int, int]]  # of the settings: predictions and references


@dataclass(frozen=True)
class Value:
    """One number of a score's result: its key, its title in tables, what is better, of `BETTER`, its error's key."""

    key: str
    title: str
    better: str = "lower"
    error: str | None = None


@dataclass(frozen=True)
class ScoreInfo:
    """One row of the table of scores.

    Args:
        name: what `--metrics` and `scores=` call it.
        words: what it is.
        paper: `"Heusel et al. 2017, arXiv:1706.08500"`.
        values: what it gives, in the order of tables.
        compute: `(predictions, references, settings) -> dict`, two `ScoredSet`s and an `Evaluation` to the keys of
            `values` and of their errors; others are facts, such as numbers of images. None: one of this package's.
        predictions, references: what it takes of each set, of `KEPT`.
        needs: beside the vectors, of `NEEDS`.
        fewest: by the settings the fewest predictions and references.
        fewest_words: why, where the settings say so.
        label: its name in figures.
        series: of `values` the curves against the number of images that `--curve` draws: (key, words, colour).
    """

    name: str
    words: str
    paper: str
    values: tuple[Value, ...]
    compute: Callable[..., dict] | None = None
    predictions: str = "moments"
    references: str = "moments"
    needs: tuple[str, ...] = ()
    fewest: Fewest = lambda settings: (1, 1)
    fewest_words: str = ""
    label: str = ""
    series: tuple[tuple[str, str, str], ...] = field(default=())


_FRECHET = "Heusel et al. 2017, arXiv:1706.08500"
_ROWS = [
    ScoreInfo(
        "cmmd",
        "CMMD, biased as published and unbiased, with its standard error",
        "Jayasumana et al. 2024, arXiv:2401.09603",
        (Value("cmmd", "CMMD"), Value("cmmd_unbiased", "CMMD unbiased", error="standard_error")),
        needs=("unit vectors",),
        label="CMMD",
        series=(("cmmd", "biased, as published", "#0072B2"), ("cmmd_unbiased", "unbiased", "#009E73")),
    ),
    ScoreInfo(
        "p_value",
        "permutation test of the CMMD: do both sets come from one distribution?",
        "Gretton et al. 2012, JMLR 13",
        (Value("p_value", "p-value", ""),),
        predictions="embeddings",
        references="embeddings",
        needs=("unit vectors",),
        fewest=lambda settings: (2, 2),
    ),
    ScoreInfo(
        "fd",
        "Frechet distance; with the encoder inception it is the FID",
        _FRECHET,
        (Value("frechet_distance", "FD"),),
        fewest=lambda settings: (2, 2),
        label="Frechet distance",
        series=(("frechet_distance", "Frechet distance", "#D55E00"),),
    ),
    ScoreInfo(
        "fd_infinity",
        "its limit for infinitely many predictions",
        "Chong & Forsyth 2020, arXiv:1911.07023",
        (Value("fd_infinity", "FD infinity", error="fd_infinity_standard_error"),),
        predictions="embeddings",
        fewest=lambda settings: (20, 2),
    ),
    ScoreInfo(
        "kid",
        "kernel distance of random subsets; with the encoder inception it is the KID",
        "Binkowski et al. 2018, arXiv:1801.01401",
        (Value("kid", "KID", error="kid_std"),),
        predictions="embeddings",
        references="embeddings",
        fewest=lambda settings: (settings.kid_subset_size, settings.kid_subset_size),
        fewest_words=", its kid_subset_size,",
        label="KID",
        series=(("kid", "unbiased", "#009E73"),),
    ),
    ScoreInfo(
        "sfid",
        "Frechet distance of spatial features of the FID network",
        "Nash et al. 2021, arXiv:2103.03841",
        (Value("sfid", "sFID"),),
        needs=("spatial",),
        fewest=lambda settings: (2, 2),
    ),
    ScoreInfo(
        "precision_recall",
        "improved precision and recall, in balls up to the 3rd neighbour",
        "Kynkaanniemi et al. 2019, arXiv:1904.06991",
        (
            Value("precision", "precision", "higher", "precision_standard_error"),
            Value("recall", "recall", "higher", "recall_standard_error"),
        ),
        predictions="embeddings",
        references="embeddings",
        fewest=lambda settings: (settings.precision_k + 2, settings.precision_k + 2),
        fewest_words=", its precision_k + 2,",
    ),
    ScoreInfo(
        "density_coverage",
        "density and coverage, in balls up to the 5th neighbour",
        "Naeem et al. 2020, arXiv:2002.09797",
        (
            Value("density", "density", "higher", "density_standard_error"),
            Value("coverage", "coverage", "higher", "coverage_standard_error"),
        ),
        predictions="embeddings",
        references="embeddings",
        fewest=lambda settings: (1, settings.density_k + 2),
        fewest_words=", its density_k + 2,",
    ),
    ScoreInfo(
        "inception_score",
        "Inception Score of the predictions, mean and spread of 10 parts",
        "Salimans et al. 2016, arXiv:1606.03498",
        (Value("inception_score", "IS", "higher", "inception_score_std"),),
        predictions="embeddings",
        references="nothing",
        needs=("logits",),
        fewest=lambda settings: (settings.inception_splits, 1),
        fewest_words=", its inception_splits,",
    ),
    ScoreInfo(
        "clip_score",
        "CLIPScore of the predictions and their captions, 2.5 max(cos, 0)",
        "Hessel et al. 2021, arXiv:2104.08718",
        (Value("clip_score", "CLIPScore", "higher", "clip_score_standard_error"),),
        predictions="embeddings",
        references="nothing",
        needs=("captions",),
    ),
]

SCORES: dict[str, ScoreInfo] = {info.name: info for info in _ROWS}


def register_score(info: ScoreInfo) -> ScoreInfo:
    """Add a score to the table, or take the place of the same one.

        def mean_distance(predictions, references, settings):
            return {"mean_distance": float((predictions.moments.mean - references.moments.mean).norm())}

        register_score(ScoreInfo("mean_distance", "distance of the means", "this work 2026",
                                 (Value("mean_distance", "means"),), mean_distance))

    `mean_distance` is then a score for `--metrics`, `Evaluation` and the metric `image_quality`.

    Raises:
        TypeError: `info` is no `ScoreInfo`, or has no `compute` that can be called.
        ValueError: a name that is no identifier or that another score has; no values, or a key that another score
            gives; needs, sets, directions, series or colours that there are not; a paper without a year.
    """
    if not isinstance(info, ScoreInfo):
        raise TypeError(f"info must be a ScoreInfo, got {type(info).__name__}")
    if not callable(info.compute):
        raise TypeError(f"compute of {info.name!r:.80} must be callable, got {info.compute!r:.80}")
    if not re.fullmatch(r"[A-Za-z_]\w*", info.name, re.ASCII):
        raise ValueError(f"name must be an identifier; got {info.name!r:.80}")
    known = SCORES.get(info.name)
    if known is not None and (known.compute is None or not same_code(known.compute, info.compute)):
        raise ValueError(f"there is a score {info.name!r} already")
    if not info.values:
        raise ValueError(f"{info.name} must give 1 value or more")
    given = {key: other.name for other in SCORES.values() for key in keys_of(other) if other.name != info.name}
    for key in keys_of(info):
        if key in given:
            raise ValueError(f"{info.name} gives {key!r:.80}, which {given[key]} gives already")
    checked: tuple[tuple[str, tuple[str, ...], Any], ...] = (
        ("predictions", (info.predictions,), KEPT),
        ("references", (info.references,), KEPT),
        ("needs", info.needs, NEEDS),
        ("better", tuple(value.better for value in info.values), BETTER),
    )
    for name, found, allowed in checked:
        for word in found:
            if word not in allowed:
                allowed_words = ", ".join(map(repr, allowed))
                raise ValueError(f"{name} of {info.name} must be of {allowed_words}; got {word!r:.80}")
    for key, _, colour in info.series:
        if key not in {value.key for value in info.values}:
            raise ValueError(f"series of {info.name} must be of the keys of its values; got {key!r:.80}")
        if not re.fullmatch(COLOUR, colour):
            raise ValueError(f"colours of {info.name} must be such as '#0072B2'; got {colour!r:.80}")
    if not re.fullmatch(CITED_AS, info.paper):
        raise ValueError(f"paper must be such as 'Heusel et al. 2017, arXiv:1706.08500'; got {info.paper!r:.120}")
    SCORES[info.name] = info
    return info


def keys_of(info: ScoreInfo) -> tuple[str, ...]:
    """The keys of its values and of their errors."""
    return tuple(key for value in info.values for key in (value.key, value.error) if key is not None)


def score_in_words(info: ScoreInfo) -> str:
    """What it is, and what it is defined for alone, where it is not defined for every encoder."""
    needs = [NEEDS[need] for need in info.needs]
    return f"{info.words} (needs {' and '.join(needs)})" if needs else info.words


def score_lines() -> str:
    """The scores in the words of a command's help, a line each."""
    wide = max(map(len, SCORES))
    return "\n".join(f"    {name:{wide}}  {score_in_words(info)}" for name, info in SCORES.items())


def readme_table() -> str:
    """The scores as the README shows them."""
    rows = []
    for info in SCORES.values():
        arrows = ", ".join(f"`{value.key}` {BETTER[value.better]}".strip() for value in info.values)
        errors = ", ".join(f"`{value.error}`" for value in info.values if value.error) or "–"
        stored = "yes" if info.references != "embeddings" else "no"
        rows.append([f"`{info.name}`", score_in_words(info), arrows, errors, stored, info.paper])
    heads = ["`--metrics`", "what it is", "gives (better: ↑ higher, ↓ lower)", "error", "from stored moments", "paper"]
    return markdown_table(heads, rows)
