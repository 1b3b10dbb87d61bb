"""CMMD as a metric of `evaluate`: sets of images of unequal size, embedded as they come, kept as moments."""

import os
from collections.abc import Callable, Iterable

import datasets
import evaluate
import torch

from .encoders import Encoder, make_encoder
from .frechet import frechet_distance
from .images import to_rgb
from .mmd import cmmd
from .moments import Moments

_DESCRIPTION = """
CMMD compares two sets of images: the squared maximum mean discrepancy between their CLIP embeddings, with a Gaussian
kernel of bandwidth 10, times 1000 (Jayasumana et al., CVPR 2024). 0 for identical sets, 39.6 at most; lower is better.
It assumes no distribution, and needs fewer images than the Frechet Inception Distance. Configurations: `clip` (the
published metric), `siglip`, `align`. Values of different encoders cannot be compared.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: generated images, any number: a list, a data set column or another iterable of paths, PIL images,
        arrays (H, W, C) or tensors (C, H, W) of uint8, uint16 or floating-point numbers in [0, 1]; or one array of 4
        dimensions.
    references: real images, any number.
    reference_moments: instead of `references`, what `moments` returned for them, or the file that its `save` wrote.
    encoder: another encoder than the configuration's: `clip`, `siglip`, `align`, `dinov2`, the Hub id or folder of a
        vision model, or a callable from a list of RGB PIL images to a (b, d) floating tensor.
    batch_size: images that the encoder sees at a time. Does not change the result. Default: 64.
    device: where the encoder runs, if it is no callable. Default: an accelerator if there is one.
Returns:
    cmmd: the published, biased estimate, which depends on the number of images.
    cmmd_unbiased: the unbiased estimate, about 0 for sets of one distribution; None for one image.
    standard_error: of both, over the choice of the images; None for fewer than 4 images.
    error_bound: `cmmd` is computed from moments; over all pairs it is at most so much larger.
    frechet_distance: of the same (unit) embeddings; None for one image.
    n_predictions, n_references: how many images.
    encoder: Hub id, folder or name of the encoder.
Examples:
    >>> import evaluate
    >>> cmmd = evaluate.load("evaluate_metrics/cmmd", "clip")
    >>> cmmd.compute(predictions=["a.png", "b.png"], references=dataset["image"])  # doctest: +SKIP

    References once, predictions many times:

    >>> references, metadata = cmmd.moments(dataset["image"])  # doctest: +SKIP
    >>> references.save("references.safetensors", metadata)  # doctest: +SKIP
    >>> for images in checkpoints:  # doctest: +SKIP
    ...     cmmd.compute(predictions=images, reference_moments="references.safetensors")
"""

_CITATION = """
@inproceedings{jayasumana2024rethinking,
  title={Rethinking {FID}: Towards a Better Evaluation Metric for Image Generation},
  author={Jayasumana, Sadeep and Ramalingam, Srikumar and Veit, Andreas and Glasner, Daniel and Chakrabarti, Ayan and
          Kumar, Sanjiv},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages={9307--9315},
  year={2024}
}
"""

CONFIGS = ("clip", "siglip", "align")
BATCH_SIZE = 64
SIDES = ("predictions", "references")


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CMMD(evaluate.Metric):
    """
    `evaluate.load("evaluate_metrics/cmmd", "clip")`. `encoder`, `batch_size` and `device` may be given to
    `evaluate.load` as well, which `evaluate.combine` needs for `add` and `add_batch`.

    Unlike other metrics it takes unequal numbers of predictions and references, and embeds them at once: nothing but
    moments is kept, O(d^2) memory. It does not gather over the processes of `num_process`; merge their moments.
    """

    def __init__(
        self,
        config_name: str | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | torch.device | None = None,
        **kwargs,  # of evaluate.Metric
    ):
        if config_name not in (None, "default", *CONFIGS):
            raise ValueError(f"the configuration must be one of {CONFIGS}, got {config_name!r}; or give encoder=...")
        super().__init__(config_name=config_name, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process must be 1, got {self.num_process}: merge the moments of the processes instead"
            )
        if callable(encoder) and device is not None:
            raise ValueError(f"device is for models that are loaded here, a callable has its own, got {device!r}")
        configured = CONFIGS[0] if self.config_name == "default" else self.config_name
        self._default = configured if encoder is None else encoder
        self._batch_size, self._device = batch_size, device
        self._encoder: Encoder | None = None
        self._encoder_key = None  # what it was made from
        self._forget()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({side: datasets.Image() for side in SIDES}),
            homepage="https://arxiv.org/abs/2401.09603",
            reference_urls=["https://arxiv.org/abs/2401.09603"],
            license="Apache-2.0",
        )

    def add(
        self,
        *,
        prediction=None,
        reference=None,
        predictions=None,
        references=None,
        encoder: str | os.PathLike | Callable | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Add one image to either set or to both. `evaluate.combine` calls them `predictions` and `references`."""
        used = self._select(encoder, device)
        images = {
            "predictions": predictions if prediction is None else prediction,
            "references": references if reference is None else reference,
        }
        images = {side: to_rgb(image, side[:-1]) for side, image in images.items() if image is not None}
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
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        """Add images to either set or to both, also in unequal numbers. After an error nothing has been added."""
        used = self._select(encoder, device)
        batch_size = self._batch_size if batch_size is None else batch_size
        given = {"predictions": predictions, "references": references}
        new = {side: _embed(used, images, batch_size, side) for side, images in given.items() if images is not None}
        for side, moments in new.items():
            self._added[side] = moments if self._added[side] is None else self._added[side].merge(moments)

    def moments(
        self,
        images: Iterable,
        *,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Moments, dict[str, str]]:
        """Moments of `images`, and metadata for their `save`: together they are `reference_moments` of `compute`."""
        used = self._select(encoder, device)
        return _embed(used, images, self._batch_size if batch_size is None else batch_size, "images"), used.metadata

    def compute(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]] | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> dict:
        """
        The scores of what was added before and what is given here; then nothing is held any more. After an error what
        was added is still held. `ValueError`: a set has no images, both `references` and `reference_moments`, or
        `reference_moments` of another encoder or preprocessing.
        """
        given = {"predictions": predictions, "references": references}
        sides = [side for side in SIDES if given[side] is not None or self._holds(side)]
        if "predictions" not in sides:
            raise ValueError("predictions are missing: give them to compute, add or add_batch")
        if ("references" in sides) == (reference_moments is not None):
            raise ValueError(
                "references are given twice, as images and as reference_moments"
                if reference_moments is not None
                else "references are missing: give them to compute, add or add_batch, or give reference_moments"
            )
        used = self._select(encoder, device)
        batch_size = self._batch_size if batch_size is None else batch_size
        sets = {} if reference_moments is None else {"references": _load(reference_moments, used)}
        sets |= {side: self._collected(side, given[side], used, batch_size) for side in sides}
        for side, moments in sets.items():
            if moments.n == 0:
                raise ValueError(f"{side} hold no images")
        x, y = sets["predictions"], sets["references"]
        scores = cmmd(x, y)
        result = {
            "cmmd": scores.biased,
            "cmmd_unbiased": scores.unbiased,
            "standard_error": scores.standard_error,
            "error_bound": scores.error_bound,
            "frechet_distance": frechet_distance(x, y) if min(x.n, y.n) > 1 else None,
            "n_predictions": x.n,
            "n_references": y.n,
            "encoder": used.name,
        }
        self._forget()
        return result

    def _forget(self) -> None:
        self._added: dict[str, Moments | None] = dict.fromkeys(SIDES)
        self._waiting: dict[str, list] = {side: [] for side in SIDES}  # RGB images that fill no batch yet

    def _holds(self, side: str) -> bool:
        return self._added[side] is not None or bool(self._waiting[side])

    def _select(self, encoder: str | os.PathLike | Callable | None, device: str | torch.device | None) -> Encoder:
        """The encoder asked for, else that of the images held, else the default; loaded once for calls in a row."""
        holds = any(self._holds(side) for side in SIDES)
        if holds and encoder is None and device is None:
            return self._encoder
        chosen = self._default if encoder is None else encoder
        key = (chosen, self._device if device is None and not callable(chosen) else device)
        if key != self._encoder_key:
            made = make_encoder(*key)
            if holds:
                made.check(self._encoder.metadata, "the images added before")
            self._encoder, self._encoder_key = made, key
        return self._encoder

    def _collected(self, side: str, images: Iterable | None, used: Encoder, batch_size: int) -> Moments:
        """Moments of all images of a side: those added, those waiting, and `images`."""
        moments = _embed(used, self._waiting[side], batch_size, side)
        if images is not None:
            moments = moments.merge(_embed(used, images, batch_size, side))
        return moments if self._added[side] is None else self._added[side].merge(moments)


def _embed(encoder: Encoder, images: Iterable, batch_size: int, name: str) -> Moments:
    moments = Moments.zeros(encoder.dim)
    for batch in encoder.encode_batches(images, batch_size, name):
        moments.update(batch)
    return moments


def _load(reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]], encoder: Encoder) -> Moments:
    if isinstance(reference_moments, (str, os.PathLike)):
        moments, metadata = Moments.load(reference_moments)
    elif isinstance(reference_moments, tuple) and len(reference_moments) == 2:
        moments, metadata = reference_moments
    else:
        kind = type(reference_moments).__name__
        raise TypeError(f"reference_moments must be a file, or moments with their metadata, got {kind}")
    encoder.check(metadata, "reference_moments")
    return Moments(moments.n, moments.sum, moments.outer)  # of this file's class, also where another copy made them
