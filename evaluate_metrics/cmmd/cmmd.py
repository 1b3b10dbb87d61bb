"""CMMD as a metric of `evaluate`: any number of images on either side, any encoder, references as a small file."""

from collections.abc import Iterable

import evaluate

from evaluate_metrics.core.encoders import Encoder, make_encoder
from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.image_sets import (
    Counts,
    Device,
    EncoderLike,
    ImageSetMetric,
    ReferenceMoments,
    describe_inputs,
    image_set_info,
)
from evaluate_metrics.core.mmd import cmmd

_DESCRIPTION = """
CMMD compares two sets of images: the squared maximum mean discrepancy between their CLIP embeddings, with a Gaussian
kernel of bandwidth 10, times 1000 (Jayasumana et al., CVPR 2024). 0 for identical sets, 39.6 at most; lower is better.
It assumes no distribution, and needs fewer images than the Frechet Inception Distance. Configurations: `clip` (the
published metric), `siglip`, `align`. Values of different encoders cannot be compared.
"""

_KWARGS_DESCRIPTION = describe_inputs(
    'cmmd = evaluate.load("evaluate_metrics/cmmd", "clip")',
    encoder="""another encoder than the configuration's: `clip`, `siglip`, `align`, `dinov2`, `tiny` (no network, for
        trying out), the Hub id or folder of a vision model, or a callable from a list of RGB PIL images to a (b, d)
        floating tensor.""",
    returns="""\
    cmmd: the published, biased estimate, which depends on the number of images.
    cmmd_unbiased: the unbiased estimate, about 0 for sets of one distribution; None for one image.
    standard_error: of both, over the choice of the images; None for fewer than 4 images.
    error_bound: `cmmd` is computed from moments; over all pairs it is at most so much larger.
    frechet_distance: of the same (unit) embeddings, biased upwards for few images; None for one image.
    n_predictions, n_references: how many images; None where a file of mean and covariance lacks the number.
    encoder: Hub id, folder or name of the encoder.
    preprocessing, digest: what was done to images, and a digest of this and the weights: others do not compare.
    notes: of files of other programs, which name no encoder, what is taken on trust; else absent.
""",
)

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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CMMD(ImageSetMetric):
    """
    `evaluate.load("evaluate_metrics/cmmd", "clip")`. `encoder`, `batch_size` and `device` may be given to
    `evaluate.load` as well, which `evaluate.combine` needs for `add` and `add_batch`.
    """

    CONFIGS = ("clip", "siglip", "align")

    def _info(self) -> evaluate.MetricInfo:
        return image_set_info(_DESCRIPTION, _CITATION, _KWARGS_DESCRIPTION, "https://arxiv.org/abs/2401.09603")

    def _make_encoder(self, encoder: EncoderLike, device: Device) -> Encoder:
        made = make_encoder(self._config if encoder is None else encoder, device)
        if not made.normalized:
            raise ValueError(f"encoder {encoder!r} gives no unit vectors, which CMMD is defined for")
        return made

    def compute(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        reference_moments: ReferenceMoments = None,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
        reference_count: int | None = None,
    ) -> dict:
        """
        The scores of what was added before and what is given here; then nothing is held any more. After an error what
        was added is still held. `ValueError`: a set has no images, both `references` and `reference_moments`, or
        `reference_moments` of another encoder or preprocessing.
        """
        used, predicted, real = self._both(
            predictions,
            references,
            reference_moments,
            encoder,
            batch_size,
            device,
            _no_side_is_empty,
            reference_count,
        )
        x, y = predicted.moments, real.moments
        _no_side_is_empty({"predictions": x.n, "references": y.n})
        scores = cmmd(x, y)
        notes = [*predicted.notes, *real.notes]
        result = {
            "cmmd": scores.biased,
            "cmmd_unbiased": scores.unbiased,
            "standard_error": scores.standard_error,
            "error_bound": scores.error_bound,
            # Beside what was asked for: without its own warning of few images.
            "frechet_distance": frechet_distance(x, y, warn=False) if 1 not in (x.n, y.n) else None,
            "n_predictions": x.n,
            "n_references": y.n,
            "encoder": used.name,
            "preprocessing": used.preprocessing,
            "digest": used.digest,
            **({"notes": notes} if notes else {}),
        }
        self._forget()
        return result


def _no_side_is_empty(counts: Counts) -> None:
    for side, count in counts.items():
        if count == 0:
            raise ValueError(f"{side} hold no images")
