"""CMMD as a metric of `evaluate`: any number of images on either side, any encoder, references as a small file."""

import os
from collections.abc import Callable, Iterable

import datasets
import evaluate
import torch

from evaluate_metrics.core.encoders import Encoder, make_encoder
from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.image_sets import BATCH_SIZE, ImageSetMetric
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments

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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CMMD(ImageSetMetric):
    """
    `evaluate.load("evaluate_metrics/cmmd", "clip")`. `encoder`, `batch_size` and `device` may be given to
    `evaluate.load` as well, which `evaluate.combine` needs for `add` and `add_batch`.
    """

    def __init__(
        self,
        config_name: str | None = None,
        encoder: str | os.PathLike | Callable | None = None,
        batch_size: int = BATCH_SIZE,
        device: str | torch.device | None = None,
        **kwargs,  # of evaluate.Metric
    ):
        super().__init__(config_name, CONFIGS, encoder, batch_size, device, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({side: datasets.Image() for side in ("predictions", "references")}),
            homepage="https://arxiv.org/abs/2401.09603",
            reference_urls=["https://arxiv.org/abs/2401.09603"],
            license="Apache-2.0",
        )

    def _make_encoder(
        self, encoder: str | os.PathLike | Callable | None, device: str | torch.device | None
    ) -> Encoder:
        return make_encoder(self._config if encoder is None else encoder, device)

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
        used, predicted, real = self._both(predictions, references, reference_moments, encoder, batch_size, device)
        x, y = predicted.moments, real.moments
        for side, moments in (("predictions", x), ("references", y)):
            if moments.n == 0:
                raise ValueError(f"{side} hold no images")
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
