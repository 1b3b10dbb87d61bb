"""Several scores of two sets of images at once, as a metric of `evaluate`: FD, sFID, IS, precision, recall, others."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import evaluate
import torch

from evaluate_metrics.core.clip_score import PREFIX
from evaluate_metrics.core.encoders import Encoder, make_encoder, set_of_images
from evaluate_metrics.core.image_sets import (
    BATCH_SIZE,
    SIDES,
    Counts,
    Device,
    EmbeddedImages,
    EncoderLike,
    ImageSetMetric,
    ReferenceMoments,
    describe_inputs,
    image_set_info,
)
from evaluate_metrics.core.inception import WEIGHTS_SHA256, WEIGHTS_URL, inception_encoder
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.scoring.class_scores import class_means, class_notes, score_classes
from evaluate_metrics.scoring.registry import SCORES
from evaluate_metrics.scoring.scores import check_counts, gives, keeps, lacking, score, scored_set
from evaluate_metrics.scoring.settings import OF_CLASSES, Evaluation

_DESCRIPTION = """
Scores of generated images against real ones, from one embedding of each: Frechet distance, sFID, Inception Score,
improved precision and recall, density and coverage, KID, CMMD, CLIPScore. Configurations are protocols: `inception`
(the default), `inception-pytorch`, `inception-clean` (the network of the FID with three resizings of its input),
`fd-dinov2` (as FD-DINOv2 was published), `clip` (that of the CMMD), `clip-score` (as the CLIPScore was published).
Values of different ones cannot be compared.
"""

_KWARGS_DESCRIPTION = describe_inputs(
    'quality = evaluate.load("evaluate_metrics/image_quality")',
    encoder="""another encoder than the configuration's: the Hub id or folder of a vision model, a name of the CMMD's
        encoders, or a callable from a list of RGB PIL images to a (b, d) floating tensor.""",
    options="""\
    scores: some of those that the metric was loaded with. Default: all.
    captions: of `clip_score`, of every prediction in the order in which they came.
    prediction_classes, reference_classes: the class of each image, for the scores of each class.
    precision_k, density_k: neighbours. Default: 3 and 5, as published.
    inception_splits: parts of the Inception Score. Default: 10.
    kid_subsets, kid_subset_size: of the KID. Default: 100 subsets of 1000 images.
    permutations, seed: of the permutation test and of subsets. Default: 999 and 0.
""",
    returns="""\
    The keys of each score: `frechet_distance`, `sfid`, `inception_score`, `precision`, `recall`, `density`,
    `coverage`, `kid`, `cmmd`, ..., with `..._standard_error` or `..._std` where there is an error.
    per_class: if classes are given, of each its numbers of images, CMMD and Frechet distance.
    n_predictions, n_references: how many images.
    encoder, preprocessing, digest: what made the embeddings; values of different digests do not compare.
    notes: what a reader must know of the values.
""",
)

_CITATION = """
@inproceedings{kynkaanniemi2019improved,
  title={Improved Precision and Recall Metric for Assessing Generative Models},
  author={Kynk{\\"a}{\\"a}nniemi, Tuomas and Karras, Tero and Laine, Samuli and Lehtinen, Jaakko and Aila, Timo},
  booktitle={Advances in Neural Information Processing Systems},
  year={2019}
}
"""

RESIZED = {"inception": "tensorflow", "inception-pytorch": "pytorch", "inception-clean": "clean"}
SETTINGS = (
    "precision_k", "density_k", "inception_splits", "kid_subsets", "kid_subset_size", "permutations", "seed",
)  # fmt: skip
ENOUGH = 1 << 62  # images, where their number is not known yet
OF_FEATURES = ("fd", "precision_recall", "density_coverage")
DEFAULTS = {
    **dict.fromkeys(RESIZED, ("fd", "sfid", "inception_score", "precision_recall", "density_coverage")),
    "fd-dinov2": OF_FEATURES,
    "clip": ("cmmd", "precision_recall", "density_coverage"),
    "clip-score": ("clip_score",),
}


@dataclass(eq=False)
class KeptMoments(Moments):
    """Moments that hold the (n, d) embeddings beside their sums, for scores that need them; `save` leaves them out."""

    embeddings: torch.Tensor


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ImageQuality(ImageSetMetric):
    """
    `evaluate.load("evaluate_metrics/image_quality", "inception", scores=["fd", "precision_recall"])`. `encoder`,
    `batch_size` and `device` may be given to `evaluate.load` as well; and there alone `scores`, of the table of scores
    (default: those usual for the configuration; of another encoder those that it allows), `normalize`, whether the
    vectors of `encoder` are divided by their norm (default: as the configuration has it, `clip` alone), `weights` and
    `sha256` of the FID network, and `keep_embeddings`, which scores of classes need.
    """

    CONFIGS = tuple(DEFAULTS)

    def __init__(
        self,
        config_name: str | None = None,
        scores: Sequence[str] | None = None,
        encoder: EncoderLike = None,
        batch_size: int = BATCH_SIZE,
        device: Device = None,
        normalize: bool | None = None,
        weights: str | os.PathLike = WEIGHTS_URL,
        sha256: str = WEIGHTS_SHA256,
        keep_embeddings: bool = False,
        **kwargs: Any,  # of evaluate.Metric
    ):
        super().__init__(config_name, encoder, batch_size, device, **kwargs)
        self._weights, self._sha256, self._asked = weights, sha256, scores is not None
        self._normalize = self._config == "clip" if normalize is None else normalize
        if isinstance(scores, str):
            raise ValueError(f"scores must be a list of names, got {scores!r}")
        self.scores = tuple(DEFAULTS[self._config] if scores is None else scores)
        unknown = [str(name) for name in self.scores if name not in SCORES]
        if unknown or not self.scores:
            raise ValueError(f"scores must be of {', '.join(SCORES)}; got {', '.join(unknown) or 'none'}")
        self._keep = keep_embeddings or any(keeps(self.scores))

    def _info(self) -> evaluate.MetricInfo:
        papers = [f"https://arxiv.org/abs/{number}" for number in ("1904.06991", "2002.09797", "1606.03498")]
        return image_set_info(_DESCRIPTION, _CITATION, _KWARGS_DESCRIPTION, *papers)

    def _make_encoder(self, encoder: EncoderLike, device: Device) -> Encoder:
        if encoder is None and self._config in RESIZED:
            spatial = any("spatial" in SCORES[name].needs for name in self.scores)
            return inception_encoder(self._weights, self._sha256, RESIZED[self._config], device, spatial=spatial)
        return make_encoder(self._config if encoder is None else encoder, device, normalize=self._normalize)

    def moments(
        self,
        images: Iterable,
        *,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
    ) -> tuple[Moments, dict[str, str]]:
        """
        Moments of `images`, and metadata for their `save`: together they are `reference_moments` of `compute`. In this
        process they hold the embeddings too, where a score needs them; the file that `save` writes has the moments.
        """
        used = self._select(encoder, device)
        found = self._embed(used, set_of_images(images), batch_size, "images")
        moments = found.moments
        assert isinstance(moments, Moments)  # of images
        if not found.embeddings:
            return moments, used.metadata
        return KeptMoments(moments.n, moments.sum, moments.outer, torch.cat(found.embeddings)), used.metadata

    def compute(
        self,
        *,
        predictions: Iterable | None = None,
        references: Iterable | None = None,
        reference_moments: ReferenceMoments = None,
        scores: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        prediction_classes: Sequence | None = None,
        reference_classes: Sequence | None = None,
        encoder: EncoderLike = None,
        batch_size: int | None = None,
        device: Device = None,
        reference_count: int | None = None,
        **settings: Any,  # of `Evaluation`
    ) -> dict:
        """
        The scores of what was added before and what is given here; then nothing is held any more. After an error what
        was added is still held. `ValueError`: an unknown score or setting, one that the encoder, the numbers of images
        or `reference_moments` do not allow, captions or classes of another number than images.
        """
        captions = _texts(captions)
        asked = self._asked_scores(scores, captions)
        given = _settings(asked, settings)
        per_class = _both_classes(prediction_classes, reference_classes, self._keep, asked)

        def check(counts: Counts) -> None:
            m, n = counts.get("predictions"), counts.get("references")
            # What is not asked for by name counts only where the encoder allows it.
            counted = asked if self._asked else self._fitting(asked, self._select(encoder, device))[0]
            for name in counted:  # a set of unknown size is checked when it has come
                check_counts(name, ENOUGH if m is None else m, ENOUGH if n is None else n, given)
            x_classes, y_classes = per_class or (None, None)
            _check_lengths(m, {"captions": captions, "prediction_classes": x_classes})
            _check_lengths(n, {"reference_classes": y_classes})
            self._fitting(asked, self._select(encoder, device))

        paired = _paired(asked, per_class is not None)
        used, x, y = self._both(
            predictions, references, reference_moments, encoder, batch_size, device, check, reference_count, paired
        )
        check({"predictions": x.moments.n, "references": y.moments.n})
        fitting, left_out = self._fitting(asked, used)
        result = _scored(used, x, y, fitting, given, captions, per_class)
        self._forget()
        facts: dict = {"n_predictions": x.moments.n, "n_references": y.moments.n}
        facts |= {"encoder": used.name, "preprocessing": used.preprocessing, "digest": used.digest}
        return {**result, **facts, "notes": [*left_out, *x.notes, *y.notes, *result["notes"]]}

    def _asked_scores(self, scores: Sequence[str] | None, captions: Sequence[str] | None) -> list[str]:
        if isinstance(scores, str):
            raise ValueError(f"scores must be a list of names, got {scores!r}")
        asked = list(self.scores if scores is None else scores)
        others = [name for name in asked if name not in self.scores]
        if others or not asked:
            got = ", ".join(map(str, others)) or "none"
            raise ValueError(f"scores must be of those loaded, {', '.join(self.scores)}; got {got}")
        with_captions = [name for name in asked if "captions" in SCORES[name].needs]
        if captions is None and with_captions:
            raise ValueError(f"{with_captions[0]} needs captions, one of each prediction")
        if captions is not None and not with_captions:
            raise ValueError(f"captions have no effect on {', '.join(asked)}; scores must have clip_score")
        return asked

    def _fitting(self, asked: list[str], used: Encoder) -> tuple[list[str], list[str]]:
        """The scores that the encoder allows, and notes on the rest; an error where they were asked for by name."""
        missing = {name: lacking(name, gives(used)) for name in asked}
        refused = [f"{words}, which {used.name} doesn't give" for words in missing.values() if words is not None]
        if refused and (self._asked or len(refused) == len(asked)):
            raise ValueError("; ".join(refused))
        return [name for name in asked if missing[name] is None], refused


def _settings(asked: Sequence[str], settings: dict) -> Evaluation:
    unknown = [name for name in settings if name not in SETTINGS]
    if unknown:
        raise TypeError(f"compute() takes {', '.join(SETTINGS)} beside its named arguments; got {unknown[0]!r}")
    return Evaluation(metrics=asked, **settings)


def _texts(captions: Iterable[str] | None) -> list[str] | None:
    if captions is None:
        return None
    if isinstance(captions, str) or not isinstance(captions, Iterable):
        raise ValueError(f"captions must be a list of texts, one of each prediction; got {captions!r:.80}")
    found = list(captions)
    for number, caption in enumerate(found):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"captions[{number}] must be a text that is not empty; got {caption!r:.80}")
    return found


def _scored(
    used: Encoder,
    x: EmbeddedImages,
    y: EmbeddedImages,
    asked: Sequence[str],
    settings: Evaluation,
    captions: Sequence[str] | None,
    per_class: tuple[list[str], list[str]] | None,
) -> dict:
    vectors = None
    if captions is not None and used.captions is not None:
        vectors = used.captions([PREFIX + caption for caption in captions])
    predicted, real = (
        scored_set(one.moments, torch.cat(one.embeddings) if one.embeddings else None, used.parts, used.head, of)
        for one, of in ((x, vectors), (y, None))
    )
    result = score(predicted, real, asked, settings)
    if per_class is not None:
        of_classes = [name for name in asked if name in OF_CLASSES]
        by_class = score_classes(predicted.kept(), real.kept(), *per_class, of_classes)
        result |= {**class_means(by_class), "per_class": by_class}
        result["notes"] += class_notes(by_class, predicted.moments.dim)
    return result


def _paired(asked: Sequence[str], per_class: bool) -> dict[str, list[str]]:
    """By side, what needs embeddings."""
    return {
        side: [name for name in asked if keeps([name])[place]] + ["per_class"] * per_class
        for place, side in enumerate(SIDES)
    }


def _both_classes(
    predictions: Sequence | None, references: Sequence | None, keep: bool, asked: Sequence[str]
) -> tuple[list[str], list[str]] | None:
    if predictions is None and references is None:
        return None
    if predictions is None or references is None:
        raise ValueError("prediction_classes and reference_classes must both be given, or neither")
    if not keep or not set(asked) & set(OF_CLASSES):
        raise ValueError(
            f"scores of classes need one of {', '.join(OF_CLASSES)}, and a metric loaded with keep_embeddings=True"
        )
    return [str(name) for name in predictions], [str(name) for name in references]


def _check_lengths(count: int | None, given: dict[str, Sequence | None]) -> None:
    for name, values in given.items():
        if count is not None and values is not None and len(values) != count:
            raise ValueError(f"{name} must be as many as their images, {count}; got {len(values)}")
