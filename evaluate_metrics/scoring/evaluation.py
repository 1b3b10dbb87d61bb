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
from .annotations import captions_of, classes_of
from .class_scores import class_means, class_notes, score_classes
from .embedding import Embedded, EmbeddingCache, embed
from .registry import SCORES
from .scores import check_counts, gives, keeps, lacking, score, score_curve, scored_set
from .settings import FEWEST_OF_CURVE, OF_CLASSES, Evaluation
from .sources import ImageSource, MomentsSource

INCEPTIONS = {("inception" if name == "tensorflow" else f"inception-{name}"): name for name in RESIZINGS}


@dataclass(frozen=True)
class Encoded:
    """What one encoder gave: facts of it, the metadata of its moments, and `predictions` and `references`.

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


def check_sources(
    predictions: ImageSource | MomentsSource, references: ImageSource | MomentsSource, settings: Evaluation
) -> None:
    """Raise a ValueError for what these sources can't give, before any model is loaded."""
    needed = keeps(settings.metrics, settings.curve, settings.per_class)
    for role, source, kept in zip(("predictions", "references"), (predictions, references), needed, strict=True):
        if isinstance(source, MomentsSource) and kept:
            raise ValueError(
                f"{role}: {source.name} is a file of moments; {_reasons(settings, role)} needs the images"
            )
    for metric in settings.metrics:
        check_counts(metric, len(predictions), len(references), settings)
    if settings.curve and len(predictions) < 2 * FEWEST_OF_CURVE:
        raise ValueError(f"a curve needs {2 * FEWEST_OF_CURVE} predictions or more; there are {len(predictions)}")


def embed_sources(
    predictions: ImageSource | MomentsSource,
    references: ImageSource | MomentsSource,
    encoders: Sequence[str],
    settings: Evaluation,
    progress: bool = False,
) -> list[Encoded]:
    """Embed both sources with each encoder, on all processes of `accelerate`, which must all call this.

    Raises:
        ValueError: sources that don't fit the metrics or encoders, or images that can't be read or embedded; named.
        OSError: an encoder can't be had.
    """
    check_sources(predictions, references, settings)
    captions, classes = None, None
    if any("captions" in SCORES[metric].needs for metric in settings.metrics):
        captions = captions_of(_images(predictions), settings.caption_column)
    if settings.per_class:
        classes = classes_of(_images(predictions)), classes_of(_images(references))
    state, found = PartialState(), []
    for spec in encoders:
        started = time.perf_counter()
        with state.local_main_process_first():
            encoder = open_encoder(spec, settings, state.device)
        _check_fit(spec, encoder, settings)
        vectors = None
        if captions is not None and encoder.captions is not None:
            vectors = encoder.captions([PREFIX + caption for caption in captions])
        sets = _embed_both(predictions, references, encoder, settings, progress)
        facts = {
            "encoder": spec,
            **{key: value for key, value in encoder.metadata.items() if key not in ("encoder", "probe")},
            "digest": encoder.digest,
            "normalized": encoder.normalized,
            "dtype": settings.dtype,
            "dim": len(range(encoder.dim)[encoder.parts["features"]]),
            "n_predictions": len(predictions),
            "n_references": len(references),
            "embedding_seconds": time.perf_counter() - started,
        }
        metadata = {**encoder.metadata, "dtype": settings.dtype}
        more = gives(encoder), encoder.parts, encoder.head, vectors, classes
        found.append(Encoded(facts, metadata, sets, *more))
    return found


def _images(source: ImageSource | MomentsSource) -> ImageSource:
    assert isinstance(source, ImageSource)  # else it was refused
    return source


def _check_fit(spec: str, encoder: Encoder, settings: Evaluation) -> None:
    missing = [lacking(metric, gives(encoder)) for metric in settings.metrics]
    if all(missing):
        raise ValueError(f"{'; '.join(filter(None, missing))}, which {spec} doesn't give")


def score_sources(encoded: Sequence[Encoded], settings: Evaluation) -> list[dict]:
    """Of each encoder its facts, values and notes, see [`score`], and the curve if it is asked for; in one process."""
    return [{**one.facts, **_score(one, settings)} for one in encoded]


def evaluate_sources(
    predictions: ImageSource | MomentsSource,
    references: ImageSource | MomentsSource,
    encoders: Sequence[str],
    settings: Evaluation,
) -> list[dict]:
    """[`embed_sources`], then [`score_sources`]."""
    return score_sources(embed_sources(predictions, references, encoders, settings), settings)


def _embed_both(
    predictions: ImageSource | MomentsSource,
    references: ImageSource | MomentsSource,
    encoder: Encoder,
    settings: Evaluation,
    progress: bool,
) -> dict[str, Embedded]:
    sources = {"predictions": predictions, "references": references}
    for source in sources.values():
        if isinstance(source, MomentsSource):
            encoder.check(source.metadata, source.name)
            if source.moments.dim != encoder.dim:
                raise ValueError(f"{source.name} has {source.moments.dim} dimensions, {encoder.name} {encoder.dim}")
    cache = None
    if settings.cache_dir is not None:
        cache = EmbeddingCache(settings.cache_dir, encoder, getattr(torch, settings.dtype))
    embedded = {}
    needed = keeps(settings.metrics, settings.curve, settings.per_class)
    for (role, source), kept in zip(sources.items(), needed, strict=True):
        if isinstance(source, MomentsSource):
            embedded[role] = Embedded(source.moments, None)
        else:
            embedded[role] = embed(
                source, encoder, batch_size=settings.batch_size, keep=kept, cache=cache, progress=progress
            )
    return embedded


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
    if settings.curve:
        values["curve"] = score_curve(x.kept(), y, metrics, repeats=settings.curve_repeats, seed=settings.seed)
    if encoded.classes is not None:
        of_classes = [metric for metric in metrics if metric in OF_CLASSES]
        by_class = score_classes(x.kept(), y.kept(), *encoded.classes, of_classes)
        values |= {**class_means(by_class), "per_class": by_class}
        notes += class_notes(by_class, x.moments.dim)
    return {**values, "notes": notes + values["notes"]}


def _reasons(settings: Evaluation, role: str) -> str:
    place = ("predictions", "references").index(role)
    reasons = [metric for metric in settings.metrics if keeps([metric])[place]]
    return " and ".join(reasons or ["per_class" if settings.per_class else "the curve"])
