"""Sampling from a `DiTModel` with any guidance scale and any diffusers scheduler.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) in the form of the DiT paper and of diffusers,
`uncond + w (cond - uncond)`: `w = 0` is the *unconditional* model, `w = 1` the conditional model without guidance.
"""

import difflib
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor, unwrap_module
from torch import Tensor, nn

from ..models.dit import DiTModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
LEARNED_VARIANCES = ("learned", "learned_range")


class GuidancePass(NamedTuple):
    """What one call of the model computes for a batch of B images, in R rows, and how its output is put together."""

    images: Tensor  # (R,) int64: the image of each row
    labels: Tensor | None  # (R,) int64: its label, the null class in the unconditional rows
    conditional: Tensor  # (B,) int64: the row that holds an image's conditional prediction
    unconditional: Tensor  # (B,) int64: the row that holds its unconditional prediction
    scales: Tensor | None  # (B, 1, 1, 1) float32 or float64; None: no image needs both predictions


def plan_pass(
    labels: Sequence[int] | None,
    null_class_id: int | None,
    scales: Sequence[float],
    whole: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> GuidancePass:
    """The rows that B images with these labels and guidance scales need, conditional ones first.

    An image of scale 1 needs its conditional prediction alone; one of scale 0 the unconditional one alone, if guidance
    acts on the `whole` prediction. `labels` is `None` for an unconditional model, whose scales are all 1.
    """
    conditional = [i for i, scale in enumerate(scales) if scale != 0 or not whole]
    unconditional = [i for i, scale in enumerate(scales) if scale != 1]
    row_with_label = {image: row for row, image in enumerate(conditional)}
    row_without = {image: len(conditional) + row for row, image in enumerate(unconditional)}
    first = [row_with_label.get(i, row_without.get(i)) for i in range(len(scales))]
    second = [row_without.get(i, row_with_label.get(i)) for i in range(len(scales))]

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    guided = torch.promote_types(dtype, torch.float32)
    return GuidancePass(
        images=index(conditional + unconditional),
        labels=labels and index([labels[i] for i in conditional] + [null_class_id] * len(unconditional)),
        conditional=index(first),
        unconditional=index(second),
        scales=None if first == second else torch.tensor(scales, dtype=guided, device=device).view(-1, 1, 1, 1),
    )


def guide(output: Tensor, plan: GuidancePass, channels: int) -> Tensor:
    """(R, C, H, W) -> (B, C, H, W): the first `channels` guided, the others from the conditional prediction.

    Computed in float32 at least. An image whose two rows are one gets its values unchanged.
    """
    conditional = output[plan.conditional]
    if plan.scales is None:
        return conditional
    unconditional = output[plan.unconditional, :channels].to(plan.scales.dtype)
    guided = unconditional + plan.scales * (conditional[:, :channels] - unconditional)
    return torch.cat([guided.to(output.dtype), conditional[:, channels:]], dim=1)


def guidance_scales(guidance_scale: float | Sequence[float] | Tensor, prompts: int, per_prompt: int) -> list[float]:
    """One finite scale per image, from one for all, one per prompt, or one per image."""
    try:
        scales = torch.as_tensor(guidance_scale, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"guidance_scale must be a real number or a list of them, got {guidance_scale!r}") from error
    images = prompts * per_prompt
    if scales.ndim == 0:
        scales = scales.expand(images)
    elif scales.shape == (prompts,):
        scales = scales.repeat_interleave(per_prompt)
    elif scales.shape != (images,):
        allowed = " or ".join(str(count) for count in dict.fromkeys((prompts, images)))
        raise ValueError(f"guidance_scale must be one number or {allowed} numbers, got shape {tuple(scales.shape)}")
    if not scales.isfinite().all():
        raise ValueError(f"guidance_scale must be finite, got {guidance_scale}")
    return scales.tolist()


def label_table(id2label: Mapping[int, str]) -> dict[str, list[int]]:
    """Name -> class ids that bear it. `"white shark, man-eater"` can be called by the whole or by either part."""
    table: dict[str, list[int]] = {}
    for class_id, label in id2label.items():
        for name in dict.fromkeys(name.strip() for name in (label, *label.split(","))):
            if name:
                table.setdefault(name, []).append(class_id)
    return dict(sorted(table.items()))


def learned_variance(scheduler: SchedulerMixin) -> str | None:
    """`"learned"` or `"learned_range"` where the scheduler takes its variance from the model, else `None`."""
    # `from_config` keeps foreign entries: a DDIMScheduler made from a DDPMScheduler has `variance_type` in its config.
    if "variance_type" not in inspect.signature(type(scheduler).__init__).parameters:
        return None
    variance_type = scheduler.config["variance_type"]
    return variance_type if variance_type in LEARNED_VARIANCES else None


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


class DiTImagePipeline(DiffusionPipeline):
    """Images from a class-conditional or unconditional `DiTModel`, in pixel space or in the latent space of a VAE.

    Args:
        transformer: a `DiTModel`.
        scheduler: any diffusers scheduler with `scale_model_input` and `init_noise_sigma` (those for diffusion; the
            ones for flow matching have neither). One that expects a learned variance must be a `DDPMScheduler`, and
            the model must have been trained with `learn_sigma`; for all others the model's variance is left out.
        vae: decodes samples into images; its latent channels are the model's input channels. `None`: samples are
            images in [-1, 1].
        id2label: names of the classes, `{0: "tench, Tinca tinca", ...}`; commas separate synonyms. Saved with the
            pipeline (in `config.id2label`, whose keys are strings as in JSON; the property `id2label` has integers).

    `ValueError`: channels that do not fit, names for classes that the model does not have. `TypeError`: another
    model; the one of diffusers is converted by `from_diffusers`.

    `save_pretrained` and `from_pretrained` work on folders, where this package is installed. For the Hub, and for
    places without the package, `hf_dit.packaging.export_pipeline` saves the code too.

    After a call, `num_model_evaluations` is the number of samples that went through the transformer: two per image and
    step with guidance, one without.
    """

    model_cpu_offload_seq = "transformer->vae"
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
        # By name: the code that comes with an exported pipeline has a class of its own.
        if "DiTModel" not in (base.__name__ for base in type(unwrap_module(transformer)).__mro__):
            raise TypeError(
                f"transformer must be a DiTModel, got {type(transformer).__name__}; DiTModel.from_diffusers converts "
                "a DiTTransformer2DModel, DiTImagePipeline.from_diffusers a whole DiTPipeline"
            )
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
        self.register_to_config(id2label=id2label and {str(class_id): name for class_id, name in id2label.items()})
        self._class_ids = label_table(id2label or {})
        self.vae_scale_factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.num_model_evaluations = 0
        self._guidance_scale = None
        self._num_timesteps = 0
        self._interrupt = False

    @classmethod
    def from_diffusers(cls, pipeline: DiTPipeline | str | os.PathLike, **kwargs) -> "DiTImagePipeline":
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
        """The argument of the last call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Model calls of the last call (schedulers of second order need two for a step)."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`, which skips the steps that are left."""
        return self._interrupt

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class ids of one name or of several, spelled as in `id2label` (spaces at both ends are ignored).

        A name that no class or more than one class bears is a `ValueError`.
        """
        ids = []
        for name in [label] if isinstance(label, str) else label:
            found = self._class_ids.get(name.strip(), [])
            if not found and not self._class_ids:
                raise ValueError(f"class {name!r} has no id: this pipeline has no id2label")
            if not found:
                spellings = {known.lower(): known for known in self._class_ids}
                close = difflib.get_close_matches(name.strip().lower(), spellings, n=5)
                hint = f"; close: {', '.join(repr(spellings[match]) for match in close)}" if close else ""
                raise ValueError(f"class {name!r} is not among the {len(self._class_ids)} names of id2label{hint}")
            if len(found) > 1:
                raise ValueError(f"class {name!r} is the name of several classes: pass one of the ids {found}")
            ids += found
        return ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        *,
        guidance_scale: float | Sequence[float] | Tensor = 4.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
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
            class_labels: ids in [0, num_classes) or names as in `get_label_ids`, one or a list; a string is one name.
                `None` for an unconditional model, and only there.
            guidance_scale: any real number `w` of `uncond + w (cond - uncond)`, negative ones included; or one per
                label, or one per image. Beware: 0 is *unconditional* sampling (labels have no effect), and "without
                guidance" is 1; each of the two costs half of any other scale. A model without null class (trained
                without labels or without label dropout) has no scale but 1.
            num_inference_steps: from 1 to the scheduler's `num_train_timesteps`.
            timesteps: descending integers in [0, num_train_timesteps) in place of the scheduler's own choice for
                `num_inference_steps`; not every scheduler takes them.
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
                dict that it returns may hold other latents to go on with.
            callback_on_step_end_tensor_inputs: what the callback's dict holds.

        Samples have the transformer's dtype throughout, as is usual in diffusers: with a bfloat16 model they are
        rounded to bfloat16 after each step. Guidance itself is computed in float32.

        Returns:
            `images`: a list of PIL images, an array or a tensor.

        Raises:
            ValueError, TypeError: any argument outside what is said above, before the first step.
            RuntimeError, ImportError: attention that cannot run on this device, dtype or size.
        """
        transformer, scheduler, device = self.transformer, self.scheduler, self._execution_device
        dtype, in_channels = transformer.dtype, transformer.config.in_channels

        labels = self._labels(class_labels, batch_size)
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        prompts = batch_size if labels is None else len(labels)
        if labels is not None:
            labels = [label for label in labels for _ in range(num_images_per_prompt)]
        images = prompts * num_images_per_prompt
        scales = guidance_scales(guidance_scale, prompts, num_images_per_prompt)
        null_class_id = self._null_class_id(scales)
        channels = in_channels if cfg_channels == "all" else cfg_channels
        if not isinstance(channels, int) or not 1 <= channels <= in_channels:
            raise ValueError(f"cfg_channels must be 'all' or from 1 to {in_channels}, got {cfg_channels!r}")
        self._check_schedule(num_inference_steps, timesteps, guidance_interval, eta)
        variance = self._learned_variance()
        shape = (images, in_channels, *self._sample_size(height, width))
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        generator = self._generators(generator, images)
        self._check_output(output_type, callback_on_step_end_tensor_inputs)
        transformer.check_attention(height=shape[2], width=shape[3], device=device)

        if timesteps is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            scheduler.set_timesteps(timesteps=list(timesteps), device=device)
        step_arguments = {"generator": generator, "eta": eta}
        if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
            # DDIM's direction has to follow from the clipped image (as in the code of Dhariwal and Nichol 2021). By
            # default diffusers keeps the noise as it was predicted: the more steps, the farther samples drift away.
            step_arguments["use_clipped_model_output"] = True
        taken = inspect.signature(scheduler.step).parameters
        step_arguments = {name: value for name, value in step_arguments.items() if name in taken}

        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        latents = latents.to(device=device, dtype=dtype) * scheduler.init_noise_sigma

        whole = channels == in_channels
        guided = plan_pass(labels, null_class_id, scales, whole, device, dtype)
        unguided = plan_pass(labels, null_class_id, [1.0] * images, whole, device, dtype)
        low, high = (-math.inf, math.inf) if guidance_interval is None else guidance_interval

        self.num_model_evaluations = 0
        self._guidance_scale = guidance_scale
        self._interrupt = False
        steps = scheduler.timesteps.tolist()
        self._num_timesteps = len(steps)
        with evaluating(transformer):
            for i, t in enumerate(self.progress_bar(scheduler.timesteps)):
                if self.interrupt:
                    continue
                plan = guided if low <= steps[i] <= high else unguided
                model_input = scheduler.scale_model_input(latents, t)[plan.images]
                output = transformer(model_input, t, plan.labels, return_dict=False)[0]
                self.num_model_evaluations += len(model_input)
                if variance is None:
                    output = output[:, :in_channels]
                prediction = guide(output, plan, channels)
                if variance is not None and i == len(steps) - 1:
                    # DDPMScheduler adds noise after a last timestep other than 0; the last step has none.
                    prediction[:, in_channels:] = -1 if variance == "learned_range" else 0
                latents = scheduler.step(prediction, t, latents, **step_arguments, return_dict=False)[0]

                if callback_on_step_end is not None:
                    tensors = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, i, t, tensors)
                    if not isinstance(changed, dict):
                        raise TypeError(f"callback_on_step_end must return a dict, got {type(changed).__name__}")
                    latents = changed.get("latents", latents)

        if output_type != "latent" and self.vae is not None:
            shift = self.vae.config.shift_factor or 0.0
            latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift
            latents = self.vae.decode(latents, return_dict=False)[0]
        result = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _labels(self, class_labels: int | str | Sequence[int | str] | None, batch_size: int) -> list[int] | None:
        num_classes = self.transformer.config.num_classes
        if num_classes is None:
            if class_labels is not None:
                raise ValueError(f"class_labels must be None: the model is unconditional; got {class_labels!r}")
            if batch_size < 1:
                raise ValueError(f"batch_size must be at least 1, got {batch_size}")
            return None
        if class_labels is None:
            raise ValueError("class_labels are missing: the model is conditional (guidance_scale=0 ignores them)")
        if batch_size != 1:
            raise ValueError(
                f"batch_size is for unconditional models, got {batch_size}; this one samples one image per label, "
                "times num_images_per_prompt"
            )
        labels = []
        for label in class_labels if isinstance(class_labels, list | tuple) else [class_labels]:
            if isinstance(label, str):
                label = self.get_label_ids(label)[0]
            try:
                labels.append(operator.index(label))
            except TypeError:
                raise TypeError(
                    f"class_labels must be ids or names, or a list of them, got {type(label).__name__}"
                ) from None
            if not 0 <= labels[-1] < num_classes:
                raise ValueError(
                    f"class_labels must lie in [0, {num_classes}), got {labels[-1]}; guidance_scale=0 samples without "
                    "a class"
                )
        if not labels:
            raise ValueError("class_labels is empty")
        return labels

    def _null_class_id(self, scales: Sequence[float]) -> int | None:
        if all(scale == 1 for scale in scales):
            return None
        try:
            return self.transformer.null_class_id
        except ValueError as error:
            other = next(scale for scale in scales if scale != 1)
            raise ValueError(f"guidance_scale must be 1, got {other}: {error}") from None

    def _check_schedule(
        self,
        num_inference_steps: int,
        timesteps: Sequence[int] | None,
        guidance_interval: tuple[float, float] | None,
        eta: float,
    ) -> None:
        scheduler = self.scheduler
        name = type(scheduler).__name__
        # No base class tells the schedulers for diffusion from those for flow matching.
        if not hasattr(scheduler, "scale_model_input") or not hasattr(scheduler, "init_noise_sigma"):
            raise ValueError(f"scheduler must be one for diffusion, with scale_model_input; got {name}")
        trained = scheduler.config.num_train_timesteps
        if timesteps is None:
            if not isinstance(num_inference_steps, int) or not 1 <= num_inference_steps <= trained:
                raise ValueError(f"num_inference_steps must be from 1 to {trained}, got {num_inference_steps}")
        else:
            if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
                raise ValueError(f"timesteps cannot be given to {name}; DDPMScheduler is one that takes them")
            given = list(timesteps)
            descending = all(later < earlier for earlier, later in zip(given, given[1:], strict=False))
            if not given or not descending or not all(isinstance(t, int) and 0 <= t < trained for t in given):
                raise ValueError(f"timesteps must be descending integers in [0, {trained}), got {given}")
        if guidance_interval is not None:
            pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
            if not pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= trained:
                raise ValueError(
                    f"guidance_interval must be (low, high), 0 <= low <= high <= {trained}, got {guidance_interval}"
                )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        if eta != 0 and "eta" not in inspect.signature(scheduler.step).parameters:
            raise ValueError(f"eta must be 0 with {name}, which does not take it; got {eta}")

    def _learned_variance(self) -> str | None:
        variance = learned_variance(self.scheduler)
        if variance is not None:
            if not isinstance(self.scheduler, DDPMScheduler):
                raise ValueError(
                    f"scheduler {type(self.scheduler).__name__} cannot use variance_type={variance!r} of this model: "
                    "make it with variance_type=None, or take DDPMScheduler"
                )
            if not self.transformer.config.learn_sigma:
                raise ValueError(
                    f"scheduler expects a learned variance (variance_type={variance!r}), but transformer has "
                    "learn_sigma=False"
                )
        return variance

    def _sample_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the samples for those of the images."""
        default = self.transformer.config.sample_size
        default = (default, default) if isinstance(default, int) else default
        multiple = self.vae_scale_factor * self.transformer.config.patch_size
        sizes = []
        for name, pixels, own in (("height", height, default[0]), ("width", width, default[1])):
            pixels = own * self.vae_scale_factor if pixels is None else pixels
            if pixels < 1 or pixels % multiple:
                raise ValueError(f"{name} must be a multiple of {multiple}, got {pixels}")
            sizes.append(pixels // self.vae_scale_factor)
        return sizes[0], sizes[1]

    def _generators(
        self, generator: torch.Generator | Sequence[torch.Generator] | None, images: int
    ) -> torch.Generator | list[torch.Generator] | None:
        if generator is None or isinstance(generator, torch.Generator):
            return generator
        generators = list(generator)
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
