"""FID as a metric of `evaluate`: any number of images on either side, any encoder, references as a small file."""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import datasets
import evaluate
import torch

from .encoders import Encoder, make_encoder
from .frechet import frechet_distance, kernel_distance
from .images import to_rgb
from .inception import WEIGHTS_SHA256, WEIGHTS_URL, inception_encoder
from .moments import Moments

_DESCRIPTION = """
The Frechet distance of two sets of images: the distance between the Gaussians that have the mean and covariance of
their embeddings. With the Inception network of 2015-12-05 it is the Frechet Inception Distance (FID). 0 for identical
sets; lower is better. It is biased upwards for few images: values of other numbers of images, encoders or resizings
cannot be compared. Configurations, of how images are resized for the network: `tensorflow` (the default, as first
published), `pytorch` (as pytorch-fid), `clean` (as clean-fid).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: generated images, any number: a list, a data set column or another iterable of paths, PIL images,
        arrays (H, W, C) or tensors (C, H, W) of uint8, uint16 or floating-point numbers in [0, 1]; or one array of 4
        dimensions.
    references: real images, any number.
    reference_moments: instead of `references`, what `moments` returned for them, or the file that its `save` wrote.
    encoder: another encoder than the FID network: the Hub id or folder of a vision model, or a callable from a list
        of RGB PIL images to a (b, d) floating tensor. Its embeddings are taken as they are, not normalised.
    batch_size: images that the encoder sees at a time. Does not change the result. Default: 64.
    device: where the encoder runs. Default: an accelerator if there is one.
    kid_subsets, kid_subset_size: of the KID. Default: 100 subsets of 1000 images, as published.
Returns:
    frechet_distance: the FID, or the distance of another encoder's embeddings.
    kid, kid_std: if loaded with `keep_embeddings=True`, mean and standard deviation over the subsets.
    n_predictions, n_references: how many images.
    encoder: "inception", Hub id, folder or name of the encoder.
    preprocessing: what was done to images before the network.
Examples:
    >>> import evaluate
    >>> fid = evaluate.load("evaluate_metrics/fid")
    >>> fid.compute(predictions=["a.png", "b.png"], references=dataset["image"])  # doctest: +SKIP

    References once, predictions many times:

    >>> references, metadata = fid.moments(dataset["image"])  # doctest: +SKIP
    >>> references.save("references.safetensors", metadata)  # doctest: +SKIP
    >>> for images in checkpoints:  # doctest: +SKIP
    ...     fid.compute(predictions=images, reference_moments="references.safetensors")
"""

_CITATION = """
@inproceedings{heusel2017gans,
  title={{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash} Equilibrium},
  author={Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp},
  booktitle={Advances in Neural Information Processing Systems},
  year={2017}
}
"""

CONFIGS = ("tensorflow", "pytorch", "clean")
BATCH_SIZE = 64
SIDES = ("predictions", "references")


class _Embedded(NamedTuple):
    moments: Moments
    embeddings: torch.Tensor | None  # (n, d) float32 where they are kept

    def merge(self, other: "_Embedded") -> "_Embedded":
        kept = None if self.embeddings is None else torch.cat((self.embeddings, other.embeddings))
        return _Embedded(self.moments.merge(other.moments), kept)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class FID(evaluate.Metric):
    """
    `evaluate.load("evaluate_metrics/fid", "clean")`. `encoder`, `batch_size` and `device` may be given to
    `evaluate.load` as well, which `evaluate.combine` needs for `add` and `add_batch`; and there alone `weights` and
    `sha256`, file or URL of the network's weights and the digest that it must have, and `keep_embeddings`.

    Unlike other metrics it takes unequal numbers of predictions and references, and embeds them at once: nothing but
    moments is kept, O(d^2) memory, unless `keep_embeddings=True`, which the KID needs, keeps the embeddings too. It
    does not gather over the processes of `num_process`; merge their moments.
    """

    def __init__(
        self,
        config_name: str | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | torch.device | None = None,
        weights: str | os.PathLike = WEIGHTS_URL,
        sha256: str = WEIGHTS_SHA256,
        keep_embeddings: bool = False,
        **kwargs,  # of evaluate.Metric
    ):
        if config_name not in (None, "default", *CONFIGS):
            raise ValueError(f"the configuration must be one of {CONFIGS}, got {config_name!r}; or give encoder=...")
        super().__init__(config_name=config_name, **kwargs)
        if self.num_process != 1:
            raise ValueError(
                f"num_process must be 1, got {self.num_process}: merge the moments of the processes instead"
            )
        self._resizing = CONFIGS[0] if self.config_name == "default" else self.config_name
        self._default = "inception" if encoder is None else encoder
        self._batch_size, self._device = batch_size, device
        self._weights, self._sha256, self._keep = weights, sha256, keep_embeddings
        self._encoder: Encoder | None = None
        self._encoder_key = None  # what it was made from
        self._forget()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({side: datasets.Image() for side in SIDES}),
            homepage="https://arxiv.org/abs/1706.08500",
            reference_urls=["https://arxiv.org/abs/1706.08500", "https://arxiv.org/abs/2104.11222"],
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
        new = {
            side: self._embed(used, images, batch_size, side) for side, images in given.items() if images is not None
        }
        for side, embedded in new.items():
            self._added[side] = embedded if self._added[side] is None else self._added[side].merge(embedded)

    def moments(
        self,
        images: Iterable,
        *,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> tuple[Moments, dict[str, str]]:
        """Moments of `images` and the metadata that their `save` takes: the `reference_moments` of `compute`."""
        used = self._select(encoder, device)
        batch_size = self._batch_size if batch_size is None else batch_size
        return self._embed(used, images, batch_size, "images").moments, used.metadata

    def compute(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]] | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
    ) -> dict:
        """
        The distance between what was added before and what is given here; then nothing is held any more. After an
        error what was added is still held. `ValueError`: a set has fewer than 2 images (for the KID, than
        `kid_subset_size`), both `references` and `reference_moments`, or `reference_moments` of another encoder or
        preprocessing, or where the KID needs images.
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
        if self._keep and reference_moments is not None:
            raise ValueError("keep_embeddings=True asks for the KID, which needs references, not reference_moments")
        used = self._select(encoder, device)
        batch_size = self._batch_size if batch_size is None else batch_size
        sets = {} if reference_moments is None else {"references": _load(reference_moments, used)}
        sets |= {side: self._collected(side, given[side], used, batch_size) for side in sides}
        for side, embedded in sets.items():
            if embedded.moments.n < 2:
                raise ValueError(f"{side} must hold 2 images or more for a covariance, got {embedded.moments.n}")
        x, y = sets["predictions"], sets["references"]
        result = {"frechet_distance": frechet_distance(x.moments, y.moments)}
        if self._keep:
            result["kid"], result["kid_std"] = kernel_distance(
                x.embeddings, y.embeddings, kid_subsets, kid_subset_size
            )
        self._forget()
        return {
            **result,
            "n_predictions": x.moments.n,
            "n_references": y.moments.n,
            "encoder": used.name,
            "preprocessing": used.preprocessing,
        }

    def _forget(self) -> None:
        self._added: dict[str, _Embedded | None] = dict.fromkeys(SIDES)
        self._waiting: dict[str, list] = {side: [] for side in SIDES}  # RGB images that fill no batch yet

    def _holds(self, side: str) -> bool:
        return self._added[side] is not None or bool(self._waiting[side])

    def _select(self, encoder: str | os.PathLike | Callable | None, device: str | torch.device | None) -> Encoder:
        """The encoder asked for, else that of the images held, else the default; loaded once for calls in a row."""
        holds = any(self._holds(side) for side in SIDES)
        if holds and encoder is None and device is None:
            return self._encoder
        key = (self._default if encoder is None else encoder, self._device if device is None else device)
        if key != self._encoder_key:
            if key[0] == "inception":
                made = inception_encoder(self._weights, self._sha256, self._resizing, key[1])
            else:
                made = make_encoder(*key, normalize=False)
            if holds:
                made.check(self._encoder.metadata, "the images added before")
            self._encoder, self._encoder_key = made, key
        return self._encoder

    def _collected(self, side: str, images: Iterable | None, used: Encoder, batch_size: int) -> _Embedded:
        """All images of a side: those added, those waiting, and `images`."""
        embedded = self._embed(used, self._waiting[side], batch_size, side)
        if images is not None:
            embedded = embedded.merge(self._embed(used, images, batch_size, side))
        return embedded if self._added[side] is None else self._added[side].merge(embedded)

    def _embed(self, encoder: Encoder, images: Iterable, batch_size: int, name: str) -> _Embedded:
        moments, kept = Moments.zeros(encoder.dim), [torch.empty(0, encoder.dim)]
        for batch in encoder.encode_batches(images, batch_size, name):
            moments.update(batch)
            if self._keep:
                kept.append(batch)
        return _Embedded(moments, torch.cat(kept) if self._keep else None)


def _load(reference_moments: str | os.PathLike | tuple[Moments, dict[str, str]], encoder: Encoder) -> _Embedded:
    if isinstance(reference_moments, (str, os.PathLike)):
        moments, metadata = Moments.load(reference_moments)
    elif isinstance(reference_moments, tuple) and len(reference_moments) == 2:
        moments, metadata = reference_moments
    else:
        kind = type(reference_moments).__name__
        raise TypeError(f"reference_moments must be a file, or moments with their metadata, got {kind}")
    encoder.check(metadata, "reference_moments")
    # Of this file's class, also where another copy made them.
    return _Embedded(Moments(moments.n, moments.sum, moments.outer), None)
