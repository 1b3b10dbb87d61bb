"""Two sources of images, any encoders, any metrics: checks first, then embeddings on all processes, then scores."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from hf_common.plugins import import_source, in_one_line

from ..core.encoders import ENCODERS, Encoder, make_encoder
from ..core.inception import RESIZINGS, inception_encoder
from ..core.stored import fitted
from .embedding import Embedded, EmbeddingCache, embed
from .scores import fits, keeps, score, score_curve
from .settings import FEWEST_OF_CURVE, Evaluation
from .sources import ImageSource, MomentsSource

Source = ImageSource | MomentsSource

ROLES = ("predictions", "references")
INCEPTIONS = {("inception" if name == "tensorflow" else f"inception-{name}"): name for name in RESIZINGS}


@dataclass(frozen=True)
class Encoded:
    """What one encoder gave: facts, the metadata of its moments, and `references` and, if any, `predictions`."""

    facts: dict
    metadata: dict[str, str]
    sets: dict[str, Embedded]


def open_encoder(spec: str, settings: Evaluation, device: torch.device) -> Encoder:
    """The encoder that a name stands for.

    Args:
        spec: `inception`, `inception-pytorch` or `inception-clean`, the FID network with one of three resizings of its
            input; `module:function` or `file.py:function`, the file from the working folder, of a callable, see
            [`make_encoder`]; or all that `make_encoder` takes.

    Raises:
        ValueError: the function can't be imported; names what its file lacks.
    """
    dtype = getattr(torch, settings.dtype)
    if spec in INCEPTIONS:
        return inception_encoder(
            settings.inception_weights, settings.inception_sha256, INCEPTIONS[spec], device=device, dtype=dtype
        )
    if re.fullmatch(r".+\.py:\w+|[\w.]+:\w+", spec):
        return _imported_encoder(spec, settings.normalize)
    if callable(ENCODERS.get(spec)):
        return make_encoder(spec, normalize=settings.normalize)
    return make_encoder(spec, device=device, dtype=dtype, normalize=settings.normalize)


def _imported_encoder(spec: str, normalize: bool) -> Encoder:
    """The encoder of `module:function` or `file.py:function`; what its code raises is told in one line."""
    source, name = spec.rsplit(":", 1)
    try:
        function: Callable = getattr(import_source(source), name)
    except Exception as error:  # of any kind: it is someone's code
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == source and Path(f"{source}.py").is_file():
            hint = f"; the file in this folder is {source}.py:{name}"
        raise ValueError(f"encoder {spec!r} can't be imported: {in_one_line(error)}{hint}") from error
    if not callable(function):
        raise ValueError(f"encoder {spec!r} must be a callable, is {type(function).__name__}")
    try:
        return make_encoder(function, normalize=normalize)
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"encoder {spec!r} failed on its first image: {in_one_line(error)}") from error


def check_sources(predictions: Source, references: Source, settings: Evaluation) -> None:
    """Raise a ValueError for what these sources can't give, before any model is loaded."""
    needed = _keeps_embeddings(settings)
    for role, source, kept in zip(("predictions", "references"), (predictions, references), needed, strict=True):
        if isinstance(source, MomentsSource) and kept and source.stored.embeddings is None:
            raise ValueError(
                f"{role}: {source.name} is a file of {source.stored.words}; {_reasons(settings, role)} needs the "
                "images, or their embeddings (--save_embeddings)"
            )
    counts = [source.count for source in (predictions, references) if source.count is not None]
    fewest = min(counts, default=math.inf)
    least = {"fd": 2, "fd_infinity": 2, "p_value": 2, "kid": settings.kid_subset_size}
    for metric in settings.metrics:
        if fewest < least.get(metric, 1):
            size = ", its kid_subset_size," if metric == "kid" else ""
            raise ValueError(
                f"{metric} needs {least[metric]} images or more{size} in each set; the smaller one has {fewest}"
            )
    for name, asked, least_predictions in (
        ("fd_infinity", "fd_infinity" in settings.metrics, 20),
        ("a curve", settings.curve, 2 * FEWEST_OF_CURVE),
    ):
        if asked and predictions.count is not None and predictions.count < least_predictions:
            raise ValueError(f"{name} needs {least_predictions} predictions or more; there are {predictions.count}")


def embed_sources(
    predictions: Source,
    references: Source,
    encoders: Sequence[str],
    settings: Evaluation,
    progress: bool = False,
) -> list[Encoded]:
    """[`embed_sets`] of one set of predictions."""
    return embed_sets([predictions], references, encoders, settings, progress)


def embed_sets(
    predictions: Sequence[Source],
    references: Source,
    encoders: Sequence[str],
    settings: Evaluation,
    progress: bool = False,
) -> list[Encoded]:
    """Embed all sources with each encoder, on all processes of `accelerate`, which must all call this.

    Args:
        predictions: any number of sets to score against the one of references, which is embedded once. None: the
            references alone are embedded, for what is to be kept of them.

    Returns:
        For each encoder an entry for each set of predictions, in this order.

    Raises:
        ValueError: sources that don't fit the metrics or encoders, or images that can't be read or embedded; named.
        OSError: an encoder can't be had.
    """
    for scored in predictions:
        check_sources(scored, references, settings)
    state, found = PartialState(), []
    for spec in encoders:
        with state.local_main_process_first():
            encoder = open_encoder(spec, settings, state.device)
        if not any(fits(metric, encoder.normalized) for metric in settings.metrics):
            raise ValueError(f"{', '.join(settings.metrics)}: defined for unit vectors, which {spec} doesn't give")
        stored = [source for source in (*predictions, references) if isinstance(source, MomentsSource)]
        for source in stored:  # before hours of embedding
            fitted(source.stored, encoder, source.name)
        embedded: dict[str, Embedded] = {}
        alone: tuple[None] = (None,)
        for one in predictions or alone:
            started = time.perf_counter()
            sets = {} if one is None else {"predictions": _embed(one, "predictions", encoder, settings, progress)}
            if not embedded:
                embedded = {"references": _embed(references, "references", encoder, settings, progress)}
            seconds = time.perf_counter() - started
            facts = _facts(spec, encoder, settings, one, references, seconds)
            found.append(Encoded(facts, {**encoder.metadata, "dtype": settings.dtype}, sets | embedded))
    return found


def _facts(
    spec: str, encoder: Encoder, settings: Evaluation, predictions: Source | None, references: Source, seconds: float
) -> dict:
    return {
        "encoder": spec,
        **{key: value for key, value in encoder.metadata.items() if key not in ("encoder", "probe")},
        "normalized": encoder.normalized,
        "dtype": settings.dtype,
        "dim": encoder.dim,
        **({} if predictions is None else {"predictions": predictions.name, "n_predictions": predictions.count}),
        "references": references.name,
        "n_references": references.count,
        "embedding_seconds": seconds,
    }


def score_sources(encoded: Sequence[Encoded], settings: Evaluation) -> list[dict]:
    """Of each encoder its facts, values and notes, see [`score`], and the curve if it is asked for; in one process."""
    return [{**one.facts, **_score(one, settings)} for one in encoded]


def evaluate_sources(
    predictions: Source, references: Source, encoders: Sequence[str], settings: Evaluation
) -> list[dict]:
    """[`embed_sources`], then [`score_sources`]."""
    return score_sources(embed_sources(predictions, references, encoders, settings), settings)


def _embed(source: Source, role: str, encoder: Encoder, settings: Evaluation, progress: bool) -> Embedded:
    if isinstance(source, MomentsSource):
        stored, notes = fitted(source.stored, encoder, source.name)
        return Embedded(stored.moments, stored.embeddings, tuple(notes))
    cache = None
    if settings.cache_dir is not None:
        cache = EmbeddingCache(settings.cache_dir, encoder, getattr(torch, settings.dtype))
    return embed(
        source,
        encoder,
        batch_size=settings.batch_size,
        keep=_keeps_embeddings(settings)[ROLES.index(role)],
        cache=cache,
        progress=progress,
        num_workers=settings.num_workers,
    )


def _keeps_embeddings(settings: Evaluation) -> tuple[bool, bool]:
    """Whether the embeddings of predictions and of references are kept."""
    predictions, references = keeps(settings.metrics, settings.curve)
    return predictions or settings.save_embeddings, references or settings.save_embeddings


def _score(encoded: Encoded, settings: Evaluation) -> dict:
    normalized, x, y = encoded.facts["normalized"], encoded.sets["predictions"], encoded.sets["references"]
    metrics = [metric for metric in settings.metrics if fits(metric, normalized)]
    values = score(
        x,
        y,
        metrics,
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    values["notes"] = [
        f"{metric} is defined for unit vectors, which this encoder doesn't give"
        for metric in settings.metrics
        if not fits(metric, normalized)
    ] + [*x.notes, *y.notes, *values["notes"]]
    if settings.curve:
        values["curve"] = score_curve(x.kept(), y, metrics, repeats=settings.curve_repeats, seed=settings.seed)
    return values


def _reasons(settings: Evaluation, role: str) -> str:
    reasons = [metric for metric in settings.metrics if keeps([metric], False)[ROLES.index(role)]]
    return " and ".join(reasons or ["the curve" if settings.curve else "save_embeddings"])
