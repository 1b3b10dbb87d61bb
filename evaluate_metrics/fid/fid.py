"""FID as a metric of `evaluate`: any number of images on either side, any encoder, references as a small file."""

import os
from collections.abc import Iterable
from typing import Any

import evaluate
import torch

from evaluate_metrics.core.encoders import Encoder, make_encoder
from evaluate_metrics.core.frechet import check_subsets, frechet_distance, kernel_distance
from evaluate_metrics.core.image_sets import (
    BATCH_SIZE,
    Counts,
    Device,
    EncoderLike,
    ImageSetMetric,
    ReferenceMoments,
    describe_inputs,
    image_set_info,
)
from evaluate_metrics.core.inception import WEIGHTS_SHA256, WEIGHTS_URL, inception_encoder

_DESCRIPTION = """
The Frechet distance of two sets of images: the distance between the Gaussians that have the mean and covariance of
their embeddings. With the Inception network of 2015-12-05 it is the Frechet Inception Distance (FID). 0 for identical
sets; lower is better. It is biased upwards for few images: values of other numbers of images, encoders or resizings
cannot be compared. Configurations, of how images are resized for the network: `tensorflow` (the default, as first
published), `pytorch` (as pytorch-fid), `clean` (as clean-fid).
"""

_KWARGS_DESCRIPTION = describe_inputs(
    'fid = evaluate.load("evaluate_metrics/fid")',
    encoder="""another encoder than the FID network: `clip`, `siglip`, `align`, `dinov2`, `tiny` (no network, for
        trying out), the Hub id or folder of a vision model, or a callable from a list of RGB PIL images to a (b, d)
        floating tensor. Its embeddings are taken as they are, not normalised.""",
    options="""\
    kid_subsets, kid_subset_size: of the KID. Default: 100 subsets of 1000 images, as published.
""",
    returns="""\
    frechet_distance: the FID, or the distance of another encoder's embeddings.
    kid, kid_std: if loaded with `keep_embeddings=True`, mean and standard deviation over the subsets.
    n_predictions, n_references: how many images; None where a file of mean and covariance lacks the number.
    encoder: "inception", Hub id, folder or name of the encoder.
    preprocessing: what was done to images before the network.
    digest: of the weights and the preprocessing; values of others do not compare.
    notes: of files of other programs, which name no encoder, what is taken on trust; else absent.
""",
)

_CITATION = """
@inproceedings{heusel2017gans,
  title={{GANs} Trained by a Two Time-Scale Update Rule Converge to a Local {Nash} Equilibrium},
  author={Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp},
  booktitle={Advances in Neural Information Processing Systems},
  year={2017}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class FID(ImageSetMetric):
    """
    `evaluate.load("evaluate_metrics/fid", "clean")`. `encoder`, `batch_size` and `device` may be given to
    `evaluate.load` as well, which `evaluate.combine` needs for `add` and `add_batch`; and there alone `weights` and
    `sha256`, file or URL of the network's weights and the digest that it must have, and `keep_embeddings`, which the
    KID needs.
    """

    CONFIGS = ("tensorflow", "pytorch", "clean")

    def __init__(
        self,
        config_name: str | None = None,
        encoder: EncoderLike = None,
        batch_size: int = BATCH_SIZE,
        device: Device = None,
        weights: str | os.PathLike = WEIGHTS_URL,
        sha256: str = WEIGHTS_SHA256,
        keep_embeddings: bool = False,
        **kwargs: Any,  # of evaluate.Metric
    ):
        super().__init__(config_name, encoder, batch_size, device, **kwargs)
        self._weights, self._sha256, self._keep = weights, sha256, keep_embeddings

    def _info(self) -> evaluate.MetricInfo:
        papers = "https://arxiv.org/abs/1706.08500", "https://arxiv.org/abs/2104.11222"
        return image_set_info(_DESCRIPTION, _CITATION, _KWARGS_DESCRIPTION, *papers)

    def _make_encoder(self, encoder: EncoderLike, device: Device) -> Encoder:
        if encoder is None:
            return inception_encoder(self._weights, self._sha256, self._config, device)
        return make_encoder(encoder, device, normalize=False)

    def compute(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        reference_moments: ReferenceMoments = None,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        reference_count: int | None = None,
    ) -> dict:
        """
        The distance between what was added before and what is given here; then nothing is held any more. After an
        error what was added is still held. `ValueError`: a set has fewer than 2 images (for the KID, than
        `kid_subset_size`), both `references` and `reference_moments`, or `reference_moments` of another encoder or
        preprocessing, or where the KID needs images.
        """

        def check(counts: Counts) -> None:
            known = [count for count in counts.values() if count is not None]
            for side, count in counts.items():
                if count is not None and count < 2:
                    raise ValueError(f"{side} must hold 2 images or more for a covariance, got {count}")
            if self._keep:
                check_subsets(kid_subsets, kid_subset_size, min(known, default=None), "kid_")

        used, x, y = self._both(
            predictions, references, reference_moments, encoder, batch_size, device, check, reference_count
        )
        check({"predictions": x.moments.n, "references": y.moments.n})
        result = {"frechet_distance": frechet_distance(x.moments, y.moments)}
        if self._keep:
            embeddings = torch.cat(x.embeddings), torch.cat(y.embeddings)
            result["kid"], result["kid_std"] = kernel_distance(*embeddings, kid_subsets, kid_subset_size)
        self._forget()
        return {
            **result,
            "n_predictions": x.moments.n,
            "n_references": y.moments.n,
            "encoder": used.name,
            "preprocessing": used.preprocessing,
            "digest": used.digest,
            **({"notes": [*x.notes, *y.notes]} if x.notes or y.notes else {}),
        }
