"""What metrics of two sets of images share: any numbers of images, embedded as they come, kept as moments."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import datasets
import evaluate
import torch
from tqdm.auto import tqdm

from hf_common.images import to_rgb

from .encoders import Encoder, set_of_images
from .moments import Moments
from .statistics import Statistics
from .stored import Stored, fitted, is_stored, read_stored

BATCH_SIZE = 64
SIDES = ("predictions", "references")
BAR_DELAY = 2.0  # seconds that a set takes before its bar is shown

EncoderLike = str | os.PathLike | Callable | None  # of `make_encoder`; None: that of the configuration
Device = str | torch.device | None
ReferenceMoments = str | os.PathLike | tuple[Moments, dict[str, str]] | None
Counts = Mapping[str, int | None]  # images of each side; None: not known before they are read


def image_set_info(
    description: str, citation: str, inputs_description: str, *reference_urls: str
) -> evaluate.MetricInfo:
    """What `evaluate` shows of a metric; the first of the URLs is its home page."""
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs_description,
        features=datasets.Features({side: datasets.Image() for side in SIDES}),
        homepage=reference_urls[0],
        reference_urls=list(reference_urls),
        license="Apache-2.0",
    )


def describe_inputs(load: str, *, encoder: str, options: str = "", returns: str) -> str:
    """What `compute` takes and gives, for `evaluate` to show.

    Args:
        load: the line that loads the metric under its name, `name = evaluate.load(...)`.
        encoder: what it may be.
        options: lines on more arguments.
        returns: lines on the keys of the result.
    """
    name = load.partition(" ")[0]
    return f"""
Args:
    predictions: generated images, any number: a list, a data set column or another iterable of paths, encoded bytes,
        PIL images, arrays (H, W, C) or tensors (C, H, W) of uint8, uint16 or floating-point numbers in [0, 1]; one
        array of 4 dimensions; a folder, whose image files are taken; a zip, tar, Parquet, `.npz` or `.npy` file of
        images, or a pattern of such; or one of the files that stand for images, as for `reference_moments`.
    references: real images, any number.
    reference_moments: instead of `references`, what `moments` returned for them, or the file that its `save` wrote; or
        statistics of pytorch-fid, clean-fid, ADM, EDM, dgm-eval, torch-fidelity (`.npz`, `.pt`).
    reference_count: of how many images these are, where they are mean and covariance, which lack it.
    encoder: {encoder}
    batch_size: images that the encoder sees at a time. Does not change the result. Default: 64.
    device: where the encoder runs, if it is no callable. Default: an accelerator if there is one.
{options}Returns:
{returns}Examples:
    >>> import evaluate
    >>> {load}
    >>> {name}.compute(predictions=["a.png", "b.png"], references=dataset["image"])  # doctest: +SKIP

    References once, predictions many times:

    >>> references, metadata = {name}.moments(dataset["image"])  # doctest: +SKIP
    >>> references.save("references.safetensors", metadata)  # doctest: +SKIP
    >>> for images in checkpoints:  # doctest: +SKIP
    ...     {name}.compute(predictions=images, reference_moments="references.safetensors")
"""


class EmbeddedImages(NamedTuple):
    """Moments of the embeddings of a set of images, and the embeddings, (b, d) float32 each, if they are kept.

    notes: what readers of a score must know of a set that came as a file of another program.
    """

    moments: Moments | Statistics
    embeddings: list[torch.Tensor]
    notes: tuple[str, ...] = ()

    def merge(self, other: "EmbeddedImages") -> "EmbeddedImages":
        assert isinstance(self.moments, Moments) and isinstance(other.moments, Moments)  # of images
        return EmbeddedImages(self.moments.merge(other.moments), self.embeddings + other.embeddings)


class ImageSetMetric(evaluate.Metric, ABC):
    """
    Unlike other metrics it takes unequal numbers of predictions and references, and embeds them at once: nothing but
    moments is kept, O(d^2) memory, unless a metric sets `_keep`. It does not gather over the processes of
    `num_process`; merge their moments.

    A metric adds `CONFIGS`, of which the first is the default, `_info`, `_make_encoder`, and `compute`, which scores
    what `_both` returns and then calls `_forget`.
    """

    CONFIGS: tuple[str, ...]

    def __init__(
        self,
        config_name: str | None = None,
        encoder: EncoderLike = None,
        batch_size: int = BATCH_SIZE,
        device: Device = None,
        **kwargs: Any,  # of evaluate.Metric
    ):
        if config_name not in (None, "default", *self.CONFIGS):
            raise ValueError(
                f"the configuration must be one of {self.CONFIGS}, got {config_name!r}; or give encoder=..."
            )
        super().__init__(config_name=config_name, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process must be 1, got {self.num_process}: merge the moments of the processes instead"
            )
        if callable(encoder) and device is not None:
            raise ValueError(f"device is for models that are loaded here, a callable has its own, got {device!r}")
        self._config = self.CONFIGS[0] if self.config_name == "default" else self.config_name
        self._default, self._batch_size, self._device = encoder, batch_size, device
        self._keep = False  # the embeddings of all images
        self._encoder: Encoder | None = None
        self._encoder_key: tuple[EncoderLike, Device] = (None, None)  # what it was made from
        self._encoder_metadata: dict[str, str] = {}
        self._forget()

    @abstractmethod
    def _make_encoder(self, encoder: EncoderLike, device: Device) -> Encoder:
        """The encoder asked for; None: that of the configuration."""

    def add(
        self,
        *,
        prediction: object = None,
        reference: object = None,
        predictions: object = None,
        references: object = None,
        encoder: EncoderLike = None,
        device: Device = None,
    ) -> None:
        """Add one image to either set or to both. `evaluate.combine` calls them `predictions` and `references`."""
        used = self._select(encoder, device)
        given = {
            "predictions": predictions if prediction is None else prediction,
            "references": references if reference is None else reference,
        }
        images = {side: to_rgb(image, side[:-1]) for side, image in given.items() if image is not None}
        for side, image in images.items():
            self._waiting[side].append(image)
            if len(self._waiting[side]) >= self._batch_size:
                self._added[side] = self._collected(side, None, used, self._batch_size)
                self._waiting[side] = []

    def add_batch(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
    ) -> None:
        """Add images to either set or to both, also in unequal numbers. After an error nothing has been added."""
        sides = {"predictions": predictions, "references": references}
        given = {side: set_of_images(images, side) for side, images in sides.items() if images is not None}
        used = self._select(encoder, device)
        new = {side: self._embed(used, images, batch_size, side) for side, images in given.items()}
        for side, embedded in new.items():
            added = self._added[side]
            self._added[side] = embedded if added is None else added.merge(embedded)

    def moments(
        self,
        images: Iterable,
        *,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
    ) -> tuple[Moments, dict[str, str]]:
        """Moments of `images`, and metadata for their `save`: together they are `reference_moments` of `compute`."""
        images = set_of_images(images)
        used = self._select(encoder, device)
        embedded = self._embed(used, images, batch_size, "images").moments
        assert isinstance(embedded, Moments)
        return embedded, used.metadata

    def _both(
        self,
        predictions: Iterable | None,
        references: Iterable | None,
        reference_moments: ReferenceMoments,
        encoder: EncoderLike,
        batch_size: int | None,
        device: Device,
        check: Callable[[Counts], None],
        reference_count: int | None = None,
        paired: Mapping[str, Sequence[str]] | None = None,
    ) -> tuple[Encoder, EmbeddedImages, EmbeddedImages]:
        """
        The encoder, predictions and references: all that was added and all that is given here. Forgets nothing.
        `check` sees the numbers of images before one of those given here is embedded. `paired` names, by side, the
        scores that need embeddings; by default, of both sides, `keep_embeddings=True` where the metric keeps them.
        """
        if paired is None:
            paired = dict.fromkeys(SIDES, ["keep_embeddings=True"] if self._keep else [])
        given: dict[str, Any] = {"predictions": predictions, "references": references}
        files = {side: path for side, path in given.items() if _is_file_of_statistics(path)}
        if "references" in files and reference_moments is None:
            reference_moments, given["references"] = files["references"], None
        if reference_count is not None and not isinstance(reference_moments, (str, os.PathLike)):
            raise ValueError("reference_count is for a file of mean and covariance as reference_moments")
        if "predictions" in files:
            given["predictions"] = None
        given = {side: None if images is None else set_of_images(images, side) for side, images in given.items()}
        sides = [side for side in SIDES if given[side] is not None or self._holds(side)]
        if ("predictions" in sides) == ("predictions" in files):
            if "predictions" in sides:
                raise ValueError("predictions are given twice, as images and as a file of statistics")
            raise ValueError("predictions are missing: give them to compute, add or add_batch")
        if ("references" in sides) == (reference_moments is not None):
            raise ValueError(
                "references are given twice, as images and as reference_moments"
                if reference_moments is not None
                else "references are missing: give them to compute, add or add_batch, or give reference_moments"
            )
        stored = {} if reference_moments is None else {"references": _stored(reference_moments, reference_count)}
        if "predictions" in files:
            stored["predictions"] = read_stored(files["predictions"])
        for side, one in stored.items():
            if paired[side] and one.embeddings is None:
                raise ValueError(
                    f"{' and '.join(paired[side])}: scores of pairs need {side}, or their embeddings, not "
                    f"{'reference_moments' if side == 'references' else one.words}"
                )
        counts = {side: one.moments.n for side, one in stored.items() if one.embeddings is not None}
        check(counts | {side: self._count(side, given[side]) for side in sides})
        used = self._select(encoder, device)
        called = {"references": "reference_moments", "predictions": "predictions"}
        sets = {side: _of_stored(one, used, called[side]) for side, one in stored.items()}
        sets |= {side: self._collected(side, given[side], used, batch_size) for side in sides}
        return used, sets["predictions"], sets["references"]

    def _forget(self) -> None:
        self._added: dict[str, EmbeddedImages | None] = dict.fromkeys(SIDES)
        self._waiting: dict[str, list] = {side: [] for side in SIDES}  # RGB images that fill no batch yet

    def _holds(self, side: str) -> bool:
        return self._added[side] is not None or bool(self._waiting[side])

    def _count(self, side: str, images: Iterable | None) -> int | None:
        """How many images a side will have; None where an iterable does not say."""
        if images is not None and (not isinstance(images, Sized) or isinstance(images, (bytes, bytearray, dict))):
            return None
        added, given = self._added[side], () if images is None else images
        held = 0 if added is None else added.moments.n
        return (held or 0) + len(self._waiting[side]) + len(given)

    def __getstate__(self) -> dict:
        """Without the encoder, which may hold a network: another process makes it anew when it needs it."""
        return {**vars(self), "_encoder": None}

    def _select(self, encoder: EncoderLike, device: Device) -> Encoder:
        """The encoder asked for, else that of the images held, else the default; loaded once for calls in a row."""
        holds = any(self._holds(side) for side in SIDES)
        if holds and encoder is None and device is None:
            key = self._encoder_key
        else:
            chosen = self._default if encoder is None else encoder
            key = (chosen, self._device if device is None and not callable(chosen) else device)
        if key != self._encoder_key or self._encoder is None:
            made = self._make_encoder(*key)
            if holds:
                made.check(self._encoder_metadata, "the images added before")
            self._encoder, self._encoder_key, self._encoder_metadata = made, key, made.metadata
        return self._encoder

    def _collected(self, side: str, images: Iterable | None, used: Encoder, batch_size: int | None) -> EmbeddedImages:
        """All images of a side: those added, those waiting, and `images`."""
        collected = self._embed(used, self._waiting[side], batch_size, side)
        if images is not None:
            collected = collected.merge(self._embed(used, images, batch_size, side))
        added = self._added[side]
        return collected if added is None else added.merge(collected)

    def _embed(self, encoder: Encoder, images: Iterable, batch_size: int | None, name: str) -> EmbeddedImages:
        moments, kept = Moments.zeros(encoder.dim), []
        total = len(images) if isinstance(images, Sized) else None
        bar = tqdm(
            total=total,
            desc=f"{name}: {encoder.name}",
            unit="image",
            delay=BAR_DELAY,
            disable=not evaluate.utils.logging.is_progress_bar_enabled(),
        )
        with bar:
            for batch in encoder.encode_batches(images, self._batch_size if batch_size is None else batch_size, name):
                moments.update(batch)
                if self._keep:
                    kept.append(batch)
                bar.update(len(batch))
        return EmbeddedImages(moments, kept)


def _is_file_of_statistics(images: object) -> bool:
    return isinstance(images, (str, os.PathLike)) and is_stored(images)


def _stored(reference_moments: ReferenceMoments, count: int | None) -> Stored:
    """References that were embedded before."""
    if isinstance(reference_moments, (str, os.PathLike)):
        if not os.path.isfile(reference_moments):
            raise FileNotFoundError(f"no moments file at {os.fspath(reference_moments)}")
        return read_stored(reference_moments, count=count)
    kind = type(reference_moments).__name__
    if isinstance(reference_moments, tuple) and len(reference_moments) == 2:
        moments, metadata = reference_moments
        # Of this class, also where they come from a metric that was loaded elsewhere.
        if isinstance(metadata, dict) and all(hasattr(moments, part) for part in ("n", "sum", "outer")):
            embeddings = moments.embeddings if hasattr(moments, "embeddings") else None
            return Stored(Moments(moments.n, moments.sum, moments.outer), embeddings, metadata, "moments")
        kind = f"({type(moments).__name__}, {type(metadata).__name__})"
    raise TypeError(f"reference_moments must be a file, or moments with their metadata, got {kind}")


def _of_stored(stored: Stored, encoder: Encoder, name: str) -> EmbeddedImages:
    stored, notes = fitted(stored, encoder, name)
    return EmbeddedImages(stored.moments, [] if stored.embeddings is None else [stored.embeddings], tuple(notes))
