"""Sampling from a `DiTModel` with any guidance scale (`guidance.py`) and any diffusers scheduler (`schedule.py`)."""

import json
import math
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..models.dit import DiTModel
from ..models.sizes import height_and_width
from .caching import caching_of_pass, forget_caches
from .guidance import guidance_scales, guide, guided_channels, guided_null_class, plan_pass
from .labels import checked_labels, ids_of_names, label_table
from .lora import DiTLoraLoaderMixin, check_transformer
from .schedule import (
    TrainedOn,
    check_latents,
    check_schedule,
    check_scheduler,
    checked_steps,
    initial_scale,
    integer_in,
    model_times,
    scaled_input,
    scheduler_of_call,
    set_timesteps,
    step_arguments,
)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# What a saved folder says of its class, and the file that leads there.
SAVED_CLASS = ["hf_dit_pipeline", "DiTImagePipeline"]
SAVED_FILE = 'from hf_dit import DiTImagePipeline\n\n__all__ = ["DiTImagePipeline"]\n'


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again afterwards."""
    training = [submodule for submodule in module.modules() if submodule.training]
    for submodule in training:
        submodule.training = False
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True


class _CallState(threading.local):
    """What a callback may change, of the calls of one thread."""

    guidance_scale: float | Sequence[float] | Tensor | None = None
    interrupt: bool = False

    def __reduce__(self):  # a copy of a pipeline has a state of its own
        return _CallState, ()


class DiTImagePipeline(DiffusionPipeline, DiTLoraLoaderMixin):
    """Images from a class-conditional or unconditional `DiTModel`, in pixel space or in the latent space of a VAE.

    Args:
        transformer: a `DiTModel`.
        scheduler: a diffusers scheduler for what the model was trained to predict: one for diffusion with the model's
            noise schedule and `prediction_type`, or one for flow matching. It may be replaced by any other of the same
            kind that comes out at an image whose exact predictions it is given, which the first call measures; others
            are refused. A learned variance is what `DDPMScheduler` uses,
            of a model trained with `learn_sigma`; all others leave the model's variance out.
        vae: decodes samples into images; its latent channels are the model's input channels. `None`: samples are
            images in [-1, 1].
        id2label: names of the classes, `{0: "tench, Tinca tinca", ...}`; commas separate synonyms. Saved with the
            pipeline (in `config.id2label`, whose keys are strings as in JSON; the property `id2label` has integers).

    `ValueError`: channels that do not fit, names for classes that the model does not have. `TypeError`: another
    model; the one of diffusers is converted by `from_diffusers`.

    `save_pretrained` and `from_pretrained` work where this package is installed. For places without it,
    `hf_dit.export_pipeline` saves the code too. `DiffusionPipeline.from_pretrained` looks for classes of diffusers
    alone, or in a file of the folder if it is given `trust_remote_code=True`: with that it loads both kinds, since
    `save_pretrained` writes `hf_dit_pipeline.py`, an import of this class.

    LoRA: `load_lora_weights`, `save_lora_weights`, `set_adapters`, `fuse_lora`, `unload_lora_weights` as in diffusers.
    `transformer.enable_cache` works with one thread at a time.

    After a call, `num_model_evaluations` is the number of samples that went through the transformer: two per image and
    step with guidance, one without. Threads may call one pipeline at the same time; `num_model_evaluations` and
    `num_timesteps` are then those of the last call that began.
    """

    model_cpu_offload_seq = "transformer->vae"  # type: ignore[assignment]  # None in the base, which most replace
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: DiTModel | ModelMixin,  # diffusers reads this; the check below says why not DiTModel alone
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
    ):
        super().__init__()
        check_transformer(transformer)
        if vae is not None and vae.config.latent_channels != transformer.config.in_channels:
            raise ValueError(
                f"vae has {vae.config.latent_channels} latent channels, transformer has "
                f"{transformer.config.in_channels} input channels: they must be equal"
            )
        if id2label is not None:
            num_classes = transformer.config.num_classes or 0
            id2label = {int(class_id): label for class_id, label in id2label.items()}
            wrong = [class_id for class_id in id2label if not 0 <= class_id < num_classes]
            if wrong:
                raise ValueError(f"id2label names class {wrong[0]}, but transformer has {num_classes} classes")
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        names = None if id2label is None else {str(class_id): name for class_id, name in id2label.items()}
        self.register_to_config(id2label=names)
        self._class_ids = label_table(id2label or {})
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.num_model_evaluations = 0
        self._num_timesteps = 0
        self._state = _CallState()
        self._trained = TrainedOn.of_scheduler(scheduler)
        self._measured: tuple[type, str] | None = (
            None  # class and config of the last scheduler that was found to be fit
        )

    @classmethod
    def from_diffusers(cls, pipeline: DiTPipeline | str | os.PathLike, **kwargs: Any) -> "DiTImagePipeline":
        """The pipeline with the weights, VAE, scheduler and class names of diffusers' `DiTPipeline`.

        `pipeline` is that pipeline, or what its `from_pretrained` loads (`kwargs`: its arguments), for example
        `"facebook/DiT-XL-2-256"`. A loaded `DiTPipeline` remembers one class per name only; from a path or id, all
        names are read.
        """
        if isinstance(pipeline, str | os.PathLike):
            id2label = DiTPipeline.load_config(pipeline, **kwargs).get("id2label")
            pipeline = DiTPipeline.from_pretrained(pipeline, **kwargs)
        elif kwargs:
            raise TypeError(f"{', '.join(kwargs)}: only for a pipeline that is loaded, got {type(pipeline).__name__}")
        elif pipeline.labels:
            synonyms: dict[int, list[str]] = {}
            for name, class_id in pipeline.labels.items():
                synonyms.setdefault(class_id, []).append(name)
            id2label = {class_id: ", ".join(synonyms[class_id]) for class_id in sorted(synonyms)}
        else:
            id2label = None
        return cls(DiTModel.from_diffusers(pipeline.transformer), pipeline.scheduler, pipeline.vae, id2label)

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write `model_index.json`, and beside it the file in which `DiffusionPipeline` finds this class."""
        super().to_json_file(json_file_path)
        if (type(self).__module__.partition(".")[0], type(self).__name__) == ("hf_dit", SAVED_CLASS[1]):
            path = Path(json_file_path)
            index = json.loads(path.read_text(encoding="utf-8")) | {"_class_name": SAVED_CLASS}
            (path.parent / f"{SAVED_CLASS[0]}.py").write_text(SAVED_FILE, encoding="utf-8")
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        """What diffusers reads of a folder: it needs no code of the folder where this class is at hand already."""
        config = super()._dict_from_json_file(json_file)
        return config | {"_class_name": SAVED_CLASS[1]} if config.get("_class_name") == SAVED_CLASS else config

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes, as given."""
        names = self.config.id2label
        return names and {int(class_id): name for class_id, name in names.items()}

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name, for the names (whole or one of the synonyms) that mean one class."""
        return {name: ids[0] for name, ids in self._class_ids.items() if len(ids) == 1}

    @property
    def guidance_scale(self) -> float | Sequence[float] | Tensor | None:
        """The argument of the last call, or what a callback has set `_guidance_scale` to since."""
        return self._guidance_scale

    @property
    def _guidance_scale(self) -> float | Sequence[float] | Tensor | None:
        return self._state.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, scale: float | Sequence[float] | Tensor | None) -> None:
        self._state.guidance_scale = scale

    @property
    def num_timesteps(self) -> int:
        """Model calls of the last call (schedulers of second order need two for a step)."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`, which skips the steps that are left."""
        return self._interrupt

    @property
    def _interrupt(self) -> bool:
        return self._state.interrupt

    @_interrupt.setter
    def _interrupt(self, interrupt: bool) -> None:
        self._state.interrupt = interrupt

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class ids of one name or of several, spelled as in `id2label` (spaces at both ends are ignored).

        A name that no class or more than one class bears is a `ValueError`.
        """
        return ids_of_names(self._class_ids, [label] if isinstance(label, str) else label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        *,
        guidance_scale: float | Sequence[float] | Tensor = 4.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | Tensor | None = None,
        guidance_interval: tuple[float, float] | None = None,
        cfg_channels: int | str = "all",
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 1,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["DiTImagePipeline", int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Sample images.

        Args:
            class_labels: ids in [0, num_classes) or names as in `get_label_ids`, one or a list, range, array or
                tensor (nested ones count as flat); a string is one name. `None` for an unconditional model, and only
                there.
            guidance_scale: any real number `w` of `uncond + w (cond - uncond)`, negative ones included; or one per
                label, or one per image. Beware: 0 is *unconditional* sampling (labels have no effect), and "without
                guidance" is 1; each of the two costs half of any other scale. A model without null class (trained
                without labels or without label dropout) has no scale but 1.
            num_inference_steps: from 1 to the scheduler's `num_train_timesteps`.
            timesteps: descending integers in [0, num_train_timesteps) in place of the scheduler's own choice for
                `num_inference_steps`; not every scheduler takes them. Of a flow: numbers in (0, num_train_timesteps].
            guidance_interval: `(low, high)` in training timesteps, both included, 0 <= low <= high <=
                num_train_timesteps. Outside, the scale is 1 at the cost of one pass (Kynkäänniemi et al. 2024,
                arXiv:2404.07724, who give the interval in noise levels: with the linear schedule of DiT, their
                (0.34, 1.02) is (99, 262)).
            cfg_channels: the predicted noise is guided in `"all"` its channels or in the first n; the rest is the
                conditional one, as is a learned variance. 3 is the code of the DiT paper; scale 0 then needs two
                passes. At scale 0 with all channels, the variance is the unconditional one too.
            height, width: of the images, multiples of `patch_size` and of the VAE's reduction; default: the model's
                `sample_size`.
            batch_size: images of an unconditional model.
            num_images_per_prompt: images for each label (for each of `batch_size`), one after another.
            eta: noise of DDIM (Song et al. 2021, equation 16), in [0, 1]; 0 with schedulers that do not take it.
            generator: source of the initial noise and of a stochastic scheduler's noise. With a list, one per image,
                an image does not depend on the rest of its batch.
            latents: initial noise of variance 1 in place of the generator's, (images, in_channels, height, width) of
                the samples; it is scaled as the scheduler wants it.
            output_type: `"pil"`, `"np"` (B, height, width, channels) float32 in [0, 1], `"pt"` (B, channels, height,
                width) in [0, 1] or `"latent"`: the samples as they are, before the VAE.
            return_dict: an output object, or a tuple of one element.
            callback_on_step_end: called as `callback(pipeline, step, timestep, {"latents": ...})` after each step; the
                dict that it returns may hold other latents to go on with. It may set `pipeline._guidance_scale`, which
                then holds from the next step on, and `pipeline._interrupt`.
            callback_on_step_end_tensor_inputs: what the callback's dict holds.

        Samples have the transformer's dtype throughout, as is usual in diffusers: with a bfloat16 model they are
        rounded to bfloat16 after each step. Guidance itself is computed in float32.

        Returns:
            `images`: a list of PIL images, an array or a tensor.

        Raises:
            ValueError, TypeError: any argument outside what is said above, before the first step.
            RuntimeError, ImportError: attention that cannot run on this device, dtype or size.
        """
        transformer, device = self.transformer, self._execution_device
        dtype, in_channels = transformer.dtype, transformer.config.in_channels

        labels = checked_labels(class_labels, batch_size, transformer.config.num_classes, self.get_label_ids)
        prompts = operator.index(batch_size) if labels is None else len(labels)
        num_images_per_prompt = integer_in("num_images_per_prompt", num_images_per_prompt, 1, sys.maxsize)
        if labels is not None:
            labels = [label for label in labels for _ in range(num_images_per_prompt)]
        images = prompts * num_images_per_prompt
        scales = guidance_scales(guidance_scale, prompts, num_images_per_prompt)
        null_class_id = guided_null_class(transformer, scales)
        channels = guided_channels(cfg_channels, in_channels)
        self._check_scheduler()
        scheduler, variance = scheduler_of_call(self.scheduler, transformer.config.learn_sigma)
        num_inference_steps, timesteps = checked_steps(scheduler, num_inference_steps, timesteps)
        check_schedule(scheduler, guidance_interval, eta)
        shape = (images, in_channels, *self._sample_size(height, width))
        if latents is not None:
            check_latents("latents", latents, shape)
        generator = self._generators(generator, images)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        transformer.check_attention(height=shape[2], width=shape[3], device=device)

        for one in (scheduler, self.scheduler):  # whose timesteps are those of the last call, as in other pipelines
            set_timesteps(one, num_inference_steps, timesteps, device)
        of_step = step_arguments(scheduler, generator, eta)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device=device, dtype=dtype) * initial_scale(scheduler)

        whole = channels == in_channels
        guided = plan_pass(labels, null_class_id, scales, whole, device, dtype)
        unguided = plan_pass(labels, null_class_id, [1.0] * images, whole, device, dtype)
        low, high = (-math.inf, math.inf) if guidance_interval is None else guidance_interval

        self.num_model_evaluations = 0
        self._guidance_scale = guidance_scale
        self._interrupt = False
        steps, times = scheduler.timesteps.tolist(), model_times(scheduler)
        self._num_timesteps = len(steps)
        forget_caches(transformer)
        with evaluating(transformer):
            for i, t in enumerate(self.progress_bar(scheduler.timesteps)):
                if self.interrupt:
                    continue
                plan = guided if low <= steps[i] <= high else unguided
                model_input = scaled_input(scheduler, latents, t)[plan.images]
                with caching_of_pass(transformer, len(model_input)):
                    output = transformer(model_input, times[i], plan.labels, return_dict=False)[0]
                self.num_model_evaluations += len(model_input)
                if variance is None:
                    output = output[:, :in_channels]
                prediction = guide(output, plan, channels)
                if variance is not None and i == len(steps) - 1:
                    # DDPMScheduler adds noise after a last timestep other than 0; the last step has none.
                    prediction[:, in_channels:] = -1 if variance == "learned_range" else 0
                latents = scheduler.step(prediction, t, latents, **of_step, return_dict=False)[0]

                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, i, t, tensors)
                    if not isinstance(changed, dict):
                        raise TypeError(f"callback_on_step_end must return a dict, got {type(changed).__name__}")
                    latents = changed.get("latents", latents)
                    check_latents("latents of callback_on_step_end", latents, shape)
                    changed_scales = guidance_scales(self._guidance_scale, prompts, num_images_per_prompt)
                    if changed_scales != scales:
                        scales, null_class_id = changed_scales, guided_null_class(transformer, changed_scales)
                        guided = plan_pass(labels, null_class_id, scales, whole, device, dtype)

        if output_type != "latent" and self.vae is not None:
            latents = self._decode(latents)
        result = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _check_scheduler(self) -> None:
        """[`check_scheduler`], once for a class and config."""
        key = (type(self.scheduler), repr(sorted(self.scheduler.config.items())))
        if key != self._measured:
            check_scheduler(self.scheduler, self._trained)
            self._measured = key

    def _decode(self, latents: Tensor) -> Tensor:
        shift = self.vae.config.shift_factor or 0.0
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents, return_dict=False)[0]

    def _sample_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the samples for those of the images."""
        default = height_and_width(self.transformer.config.sample_size)
        multiple = self.vae_scale_factor * self.transformer.config.patch_size
        sizes = []
        for name, pixels, own in (("height", height, default[0]), ("width", width, default[1])):
            pixels = own * self.vae_scale_factor if pixels is None else operator.index(pixels)
            if pixels < 1 or pixels % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple}, got {pixels}")
            sizes.append(pixels // self.vae_scale_factor)
        return sizes[0], sizes[1]

    def _generators(
        self, generator: torch.Generator | Sequence[torch.Generator] | None, images: int
    ) -> torch.Generator | list[torch.Generator] | None:
        if generator is None or isinstance(generator, torch.Generator):
            return generator
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        wrong = [one for one in generators if not isinstance(one, torch.Generator)]
        if wrong:
            raise TypeError(f"generator must be a torch.Generator, or one per image, got {wrong[0]!r:.120}")
        if len(generators) != images:
            raise ValueError(f"generator must be one, or one per image ({images}), got {len(generators)}")
        return generators

    def _check_output(self, output_type: str, tensor_inputs: Sequence[str]) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        image_channels = self.transformer.config.in_channels if self.vae is None else self.vae.config.out_channels
        if output_type == "pil" and image_channels not in (1, 3):
            raise ValueError(
                f"output_type 'pil' needs images of 1 or 3 channels, got {image_channels}: give the pipeline a vae, "
                "or take 'np', 'pt' or 'latent'"
            )
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be among {self._callback_tensor_inputs}, got {unknown}"
            )
