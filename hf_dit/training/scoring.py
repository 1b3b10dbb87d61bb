"""Scores of samples while a model is trained, and the best model so far."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hf_common.files import publish_folder, temporary_name
from hf_common.sample_scores import SampleScorer

from ..models.dit import DiTModel
from ..sampling.pipeline import DiTImagePipeline
from .arguments import DataArguments
from .images import ImageFormat, ImageRows, open_rows, read_images
from .lora import merged
from .scoring_arguments import ScoringArguments

BEST = "best"  # the folder of the best pipeline


class SampleScores:
    """Draws samples from the same noise at every call, scores them and keeps the best pipeline.

    Args:
        args: what is scored.
        scorer: what scores.
        make_pipeline: the pipeline that samples with a model's averaged weights, and that is kept.
        output_dir: whose folder `best` holds the best pipeline, by `args.metric_for_best_model`.
        sample_steps: of each sample.
        seed: of the noise.
    """

    def __init__(
        self,
        args: ScoringArguments,
        scorer: SampleScorer,
        make_pipeline: Callable[[DiTModel], DiTImagePipeline],
        output_dir: Path,
        *,
        sample_steps: int,
        seed: int,
    ):
        self.args, self._scorer, self._make_pipeline = args, scorer, make_pipeline
        self._output_dir, self._steps, self._seed = output_dir, sample_steps, seed

    @property
    def every(self) -> int:
        """Steps between scores."""
        return self.args.eval_steps

    def prepare(self) -> None:
        """Embed the references and score some of them; a `ValueError` where that fails or the best has no score."""
        self._best_of(self._scorer.trial(self.args.eval_num_images))

    def row(self, network: DiTModel, step: int, rows: list[dict]) -> dict:
        """The `step` and its scores by name, that of the best model first; `rows` are those of earlier steps."""
        pipeline = self._make_pipeline(network)
        scores = self._scorer(self._samples(pipeline))
        name = self._best_of(scores)
        sign = -1 if self.args.greater_is_better else 1
        if all(sign * scores[name] < sign * row[name] for row in rows if name in row):
            folder = self._output_dir / BEST
            temporary = temporary_name(folder)
            pipeline.transformer = merged(pipeline.transformer)
            pipeline.save_pretrained(temporary)
            publish_folder(temporary, folder)
        return {"step": step, name: scores[name], **scores}

    def _best_of(self, scores: dict[str, float]) -> str:
        """The name of the score that tells which model is the best."""
        if not scores:
            raise ValueError(f"eval_metric {self.args.eval_metric!r:.120} gave no finite number")
        name = self.args.metric_for_best_model or next(iter(scores))
        if name not in scores:
            raise ValueError(f"metric_for_best_model must be one of {', '.join(scores)}; got {name!r:.80}")
        return name

    def _samples(self, pipeline: DiTImagePipeline) -> Iterator[Image.Image]:
        """PIL images; the noise of each is a function of the seed and its number."""
        classes, count = pipeline.transformer.config.num_classes, self.args.eval_num_images
        for start in range(0, count, self.args.eval_batch_size):
            numbers = range(start, min(start + self.args.eval_batch_size, count))
            generators = [torch.Generator().manual_seed(self._seed * 1_000_003 + number) for number in numbers]
            output: Any = pipeline(
                None if classes is None else [number % classes for number in numbers],
                guidance_scale=1.0 if classes is None else self.args.eval_guidance_scale,
                num_inference_steps=self._steps,
                batch_size=len(numbers) if classes is None else 1,
                generator=generators,
            )
            yield from output.images


def reference_images(args: ScoringArguments, rows: ImageRows, form: ImageFormat) -> Iterator[Image.Image]:
    """What samples are compared with, in the size of the training images.

    Raises:
        ValueError: there are no such images, or one cannot be decoded.
    """
    if args.eval_references is not None:
        where = Path(args.eval_references)
        is_images = where.is_dir() and not any(where.rglob("*.parquet"))
        data = DataArguments(
            dataset_name=None if is_images else args.eval_references,
            train_data_dir=args.eval_references if is_images else None,
            unconditional=True,
        )
        rows, form = open_rows(data), ImageFormat(form.size, True, True, True)
    if len(rows) > args.eval_max_references:
        rows = rows.some(args.eval_max_references)
    for _, pixels in read_images(rows, form, skip_corrupt=True):
        yield Image.fromarray(pixels.transpose(1, 2, 0))
