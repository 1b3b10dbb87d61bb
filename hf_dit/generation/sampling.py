"""One batch after the other: what the pipeline is called with, and what it may not return."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_common.environment import hardware

from ..attention.spec import format_attn_spec
from ..models.sizes import height_and_width
from ..models.weights import weights_digest
from ..sampling.pipeline import DiTImagePipeline
from ..studies.cells import image_seeds
from ..studies.schedulers import default_scheduler, sampling_scheduler, scheduler_class
from ..studies.study import FOREIGN, class_ids, plain_config
from .arguments import GUIDANCE_SCALE, ImageArguments, SamplerArguments
from .plan import batch_starts, image_labels


class Batch(NamedTuple):
    """Labels and seeds of images that are sampled together."""

    labels: list[int] | None
    seeds: list[int]


class Sampler:
    """A pipeline with everything that is the same for all images, and the labels and seeds of each.

    Attributes:
        settings: everything that the images depend on, as JSON values.
        labels: (batches * batch_size,) int64, or None for an unconditional model.
        class_names: of all classes of the model, all different; none for an unconditional one.
        shape: of an image, (H, W, C).

    Raises:
        ValueError, TypeError, RuntimeError, ImportError: labels, steps, scheduler, guidance or attention that the
            pipeline can't have; it was called for one step.
    """

    def __init__(self, pipeline: DiTImagePipeline, images: ImageArguments, sampler: SamplerArguments):
        # Its scheduler and progress bar are its own.
        self.pipeline, self.images, self.arguments = copy.copy(pipeline), images, sampler
        transformer, trained = pipeline.transformer, pipeline.scheduler
        config = transformer.config
        if sampler.attention is not None:
            try:
                transformer.set_attn_processor(sampler.attention)
            except ValueError as error:
                raise ValueError(f"--attention: {error}") from error
        self.class_names = all_class_names(pipeline)
        ids = self._class_ids()
        scheduler = default_scheduler(trained) if sampler.scheduler is None else sampler.scheduler
        scheduler_class(scheduler, trained)
        self.pipeline.scheduler = sampling_scheduler(scheduler, trained, config.learn_sigma)
        self.pipeline.set_progress_bar_config(disable=True)
        self.shape = image_shape(pipeline)
        self.settings: dict[str, Any] = {
            "num_images": images.num_images,
            "seed": images.seed,
            "batch_size": sampler.batch_size,
            "class_labels": ids if ids is None or ids != list(range(config.num_classes)) else None,
            "class_sampling": None if ids is None else images.class_sampling,
            "class_counts": images.class_counts,
            "guidance_scale": self._guidance_scale(),
            "num_inference_steps": sampler.num_inference_steps,
            "scheduler": scheduler,
            "guidance_interval": sampler.guidance_interval,
            "cfg_channels": sampler.cfg_channels,
            "attention": format_attn_spec(list(transformer.attn_processors.values())) or FOREIGN,
            "dtype": sampler.dtype,
            "image_shape": list(self.shape),
            "trained_with": _scheduler_settings(trained),
            "weights": weights_digest(transformer, pipeline.vae),
        }
        count = len(batch_starts(images.num_images, sampler.batch_size)) * sampler.batch_size
        self.seeds = image_seeds(images.seed, count)
        self.labels: np.ndarray | None = None
        if ids is not None:
            self.labels = image_labels(count, ids, images.class_sampling, images.class_counts, images.seed)
        self._try()

    @property
    def hardware(self) -> str:
        return hardware(self.pipeline.transformer.device)

    def sample(self, start: int) -> np.ndarray:  # -> (batch_size, H, W, C) uint8
        """The batch that begins with image `start`, rounded as the pipeline rounds PIL images.

        Batches are cut from the numbers of the images: an image has the same ones beside it whoever samples it, for
        products of matrices may round differently with other rows beside them.

        Raises:
            RuntimeError: a pixel is not a number.
        """
        pixels = self._call(self._batch(start, self.arguments.batch_size)).images
        if np.isnan(pixels).any():
            number = start + int(np.isnan(pixels).any(axis=(1, 2, 3)).argmax())
            raise RuntimeError(
                f"image {number} has pixels that are no numbers; with --dtype {self.arguments.dtype} the model may "
                "exceed what that can hold: take float32 or bfloat16"
            )
        return (pixels * 255).round().astype(np.uint8)

    def _try(self) -> None:
        """One step of the first image: whatever the pipeline refuses, it refuses now."""

        def interrupt(pipeline: DiTImagePipeline, *_: object) -> dict:
            pipeline._interrupt = True
            return {}

        self._call(self._batch(0, 1), output_type="latent", callback_on_step_end=interrupt)

    def _batch(self, start: int, size: int) -> Batch:
        part = slice(start, start + size)
        return Batch(None if self.labels is None else self.labels[part].tolist(), self.seeds[part])

    def _call(self, batch: Batch, **arguments: Any) -> Any:
        interval, channels = self.settings["guidance_interval"], self.settings["cfg_channels"]
        device = self.pipeline.transformer.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Of schedulers that take no generator, such as a flow's `stochastic_sampling`, the noise is the batch's.
            torch.manual_seed(batch.seeds[0])
            return self.pipeline(
                batch.labels,
                batch_size=1 if batch.labels is not None else len(batch.seeds),
                guidance_scale=self.settings["guidance_scale"],
                num_inference_steps=self.settings["num_inference_steps"],
                guidance_interval=None if interval is None else tuple(interval),
                cfg_channels=channels if channels == "all" else int(channels),
                # On the CPU, whose numbers are the same beside any accelerator.
                generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
                **{"output_type": "np", **arguments},
            )

    def _guidance_scale(self) -> float:
        config = self.pipeline.transformer.config
        guided = config.num_classes is not None and config.class_dropout_prob > 0
        default = GUIDANCE_SCALE if guided else 1.0
        return default if self.arguments.guidance_scale is None else float(self.arguments.guidance_scale)

    def _class_ids(self) -> list[int] | None:
        """Those that occur; None for an unconditional model."""
        num_classes, labels = self.pipeline.transformer.config.num_classes, self.images.class_labels
        if num_classes is None:
            if labels is not None or self.images.class_counts is not None:
                raise ValueError("--class_labels and --class_counts: the model is unconditional")
            return None
        if labels is None:
            return list(range(num_classes))
        try:
            return class_ids(self.pipeline, [int(label) if label.isdecimal() else label for label in labels])
        except ValueError as error:
            raise ValueError(f"--class_labels: {error}") from error


def image_shape(pipeline: DiTImagePipeline) -> tuple[int, int, int]:
    """(H, W, C) of the pipeline's images; a `ValueError` for channels that no image file has."""
    config = pipeline.transformer.config
    height, width = (side * pipeline.vae_scale_factor for side in height_and_width(config.sample_size))
    channels = config.in_channels if pipeline.vae is None else pipeline.vae.config.out_channels
    if channels not in (1, 3):
        raise ValueError(f"the pipeline must make images of 1 or 3 channels; it has no vae and {channels} channels")
    return height, width, channels


def all_class_names(pipeline: DiTImagePipeline) -> list[str]:
    """The names of the model's classes by their ids, all different: `class 3` where there is none, `crane (134)`."""
    given = pipeline.id2label or {}
    names = [given.get(place, f"class {place}") for place in range(pipeline.transformer.config.num_classes or 0)]
    return [name if names.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(names)]


def _scheduler_settings(scheduler: SchedulerMixin) -> dict:
    return {"class": type(scheduler).__name__, **plain_config(scheduler.config)}


def known_before_loading(images: ImageArguments, sampler: SamplerArguments) -> dict:
    """Those of [`Sampler.settings`] that the flags alone say."""
    known: dict[str, Any] = {
        "num_images": images.num_images,
        "seed": images.seed,
        "batch_size": sampler.batch_size,
        "num_inference_steps": sampler.num_inference_steps,
        "guidance_interval": sampler.guidance_interval,
        "cfg_channels": sampler.cfg_channels,
        "dtype": sampler.dtype,
        "class_counts": images.class_counts,
    }
    chosen: Sequence[tuple[str, Any]] = [
        ("guidance_scale", sampler.guidance_scale),
        ("scheduler", sampler.scheduler),
    ]
    return known | {name: value for name, value in chosen if value is not None}
