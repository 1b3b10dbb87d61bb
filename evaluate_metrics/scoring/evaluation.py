"""Two sources of images, any encoders, any metrics: checks first, then embeddings on all processes, then scores."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from hf_common.plugins import import_source, in_one_line

from ..core.clip_score import PREFIX
from ..core.encoders import ENCODERS, Encoder, make_encoder
from ..core.inception import RESIZINGS, inception_encoder
from ..core.stored import fitted
from .annotations import captions_of, classes_of
from .class_scores import class_means, class_notes, score_classes
from .embedding import Embedded, EmbeddingCache, embed
from .registry import SCORES
from .scores import check_counts, gives, keeps, lacking, score, score_curve, scored_set
from .settings import FEWEST_OF_CURVE, OF_CLASSES, Evaluation
from .sources import ImageSource, MomentsSource

Source = ImageSource | MomentsSource

ENOUGH = 1 << 62  # images, where a file does not say how many it is of
ROLES = ("predictions", "references")
INCEPTIONS = {("inception" if name == "tensorflow" else f"inception-{name}"): name for name in RESIZINGS}


@dataclass(frozen=True)
class Encoded:
    """What one encoder gave: facts, the metadata of its moments, and `references` and, if any, `predictions`.

    gives, parts, head: what else it has, see [`gives`] and [`Encoder`]. captions: embeddings of those of the
    predictions. classes: of each image of both sets, where scores of classes are asked for.
    """

    facts: dict
    metadata: dict[str, str]
    sets: dict[str, Embedded]
    gives: frozenset[str] = frozenset()
    parts: Mapping[str, slice] = field(default_factory=dict)
    head: Tensor | None = None
    captions: Tensor | None = None
    classes: tuple[list[str], list[str]] | None = None


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
        weights = settings.inception_weights, settings.inception_sha256
        spatial = any("spatial" in SCORES[metric].needs for metric in settings.metrics)
        return inception_encoder(*weights, INCEPTIONS[spec], device=device, dtype=dtype, spatial=spatial)
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
    counts = [ENOUGH if source.count is None else source.count for source in (predictions, references)]
    for metric in settings.metrics:
        check_counts(metric, counts[0], counts[1], settings)
    if settings.curve and counts[0] < 2 * FEWEST_OF_CURVE:
        raise ValueError(f"a curve needs {2 * FEWEST_OF_CURVE} predictions or more; there are {counts[0]}")


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
    captions: dict[int, list[str]] = {}
    classes: dict[int, tuple] = {}
    for number, scored in enumerate(predictions):
        check_sources(scored, references, settings)
        if any("captions" in SCORES[metric].needs for metric in settings.metrics):
            captions[number] = captions_of(scored, settings.caption_column)
        if settings.per_class:
            classes[number] = classes_of(scored), classes_of(references)
    state, found, allowed = PartialState(), [], set[str]()
    for spec in encoders:
        with state.local_main_process_first():
            encoder = open_encoder(spec, settings, state.device)
        allowed |= _check_fit(spec, encoder, settings)
        if spec == encoders[-1]:
            _check_parts(allowed, settings, encoders)
        stored = [source for source in (*predictions, references) if isinstance(source, MomentsSource)]
        for source in stored:  # before hours of embedding
            fitted(source.stored, encoder, source.name)
        embedded: dict[str, Embedded] = {}
        alone: tuple[None] = (None,)
        for number, one in enumerate(predictions or alone):
            started, vectors = time.perf_counter(), None
            if number in captions and encoder.captions is not None:
                vectors = encoder.captions([PREFIX + caption for caption in captions[number]])
            sets = {} if one is None else {"predictions": _embed(one, "predictions", encoder, settings, progress)}
            if not embedded:
                embedded = {"references": _embed(references, "references", encoder, settings, progress)}
            seconds = time.perf_counter() - started
            facts = _facts(spec, encoder, settings, one, references, seconds)
            metadata = {**encoder.metadata, "dtype": settings.dtype}
            more = gives(encoder), encoder.parts, encoder.head, vectors, classes.get(number)
            found.append(Encoded(facts, metadata, sets | embedded, *more))
    return found


def _facts(
    spec: str, encoder: Encoder, settings: Evaluation, predictions: Source | None, references: Source, seconds: float
) -> dict:
    return {
        "encoder": spec,
        **{key: value for key, value in encoder.metadata.items() if key not in ("encoder", "probe", "parts")},
        "digest": encoder.digest,
        "normalized": encoder.normalized,
        "dtype": settings.dtype,
        "dim": len(range(encoder.dim)[encoder.parts["features"]]),
        **({} if predictions is None else {"predictions": predictions.name, "n_predictions": predictions.count}),
        "references": references.name,
        "n_references": references.count,
        "embedding_seconds": seconds,
    }


def _check_fit(spec: str, encoder: Encoder, settings: Evaluation) -> set[str]:
    """The metrics that an encoder allows; a `ValueError` where it allows none."""
    missing = {metric: lacking(metric, gives(encoder)) for metric in settings.metrics}
    if all(missing.values()):
        raise ValueError(f"{'; '.join(filter(None, missing.values()))}, which {spec} doesn't give")
    return {metric for metric, words in missing.items() if words is None}


def _check_parts(allowed: set[str], settings: Evaluation, encoders: Sequence[str]) -> None:
    """A `ValueError` where none of the metrics that any encoder allows has a curve, or scores of classes."""
    drawn = {metric for metric in SCORES if SCORES[metric].series}
    for flag, asked, having in (("curve", settings.curve, drawn), ("per_class", settings.per_class, {*OF_CLASSES})):
        if asked and not allowed & having:
            refused = ", ".join(metric for metric in settings.metrics if metric in having)
            raise ValueError(f"{flag} has nothing to show: {refused} is not defined for {', '.join(encoders)}")


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
    predictions, references = keeps(settings.metrics, settings.curve, settings.per_class)
    return predictions or settings.save_embeddings, references or settings.save_embeddings


def _score(encoded: Encoded, settings: Evaluation) -> dict:
    sets = [encoded.sets[role] for role in ("predictions", "references")]
    captions = (encoded.captions, None)
    x, y = (
        scored_set(one.moments, one.embeddings, encoded.parts, encoded.head, vectors)
        for one, vectors in zip(sets, captions, strict=True)
    )
    missing = {metric: lacking(metric, encoded.gives) for metric in settings.metrics}
    metrics = [metric for metric in settings.metrics if missing[metric] is None]
    values = score(x, y, metrics, settings)
    notes = [f"{words}, which this encoder doesn't give" for words in missing.values() if words is not None]
    notes += [note for one in sets for note in one.notes]
    if settings.curve:
        values["curve"] = score_curve(x.kept(), y, metrics, repeats=settings.curve_repeats, seed=settings.seed)
    of_classes = [metric for metric in metrics if metric in OF_CLASSES]
    if encoded.classes is not None and of_classes:
        by_class = score_classes(x.kept(), y.kept(), *encoded.classes, of_classes)
        values |= {**class_means(by_class), "per_class": by_class}
        notes += class_notes(by_class, x.moments.dim)
    return {**values, "notes": notes + values["notes"]}


def _reasons(settings: Evaluation, role: str) -> str:
    reasons = [metric for metric in settings.metrics if keeps([metric])[ROLES.index(role)]]
    others = [name for name in ("per_class", "save_embeddings") if getattr(settings, name)]
    return " and ".join(reasons or ["the curve" if settings.curve else others[0]])
