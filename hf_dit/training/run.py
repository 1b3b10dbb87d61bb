"""One training from arguments to `results.json`: images, model, loop, sample grids, the pipeline that is left."""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler
from matplotlib.figure import Figure
from PIL import Image

from hf_common.arguments import parse_overrides
from hf_common.environment import hardware, versions
from hf_common.files import save_picture, sync_tree, write_json
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS

from .. import LIBRARIES
from ..models.dit import DiTModel
from ..models.sizes import DIT_SIZES, dit_config
from ..sampling.pictures import image_grid
from ..sampling.pipeline import DiTImagePipeline
from .checkpoints import claim_output_dir, finished_results
from .images import DataArguments, image_format, load_images, open_rows
from .latents import LatentMoments, cached_latents, latent_size
from .loop import PRECISIONS, STATE, DiTTrainer, DiTTrainingArguments
from .stream import PixelSamples, TrainingStream

# In these a process holds a part of the weights, not the whole model that is averaged, sampled and saved here.
SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
# The config entries that follow from the data or have a flag of their own.
FIXED = ("sample_size", "in_channels", "num_classes", "learn_sigma", "class_dropout_prob", "attention")


@dataclass
class ModelArguments:
    """Which network, and in which space it works."""

    model: str = field(
        default="dit-s-2",
        metadata={
            "help": f"A size to train from scratch ({', '.join(DIT_SIZES)}), or a folder or Hub id of a DiTModel to "
            "go on from."
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Other entries of a size's config: num_layers=4,dropout=0.1"}
    )
    attention: str | None = field(
        default=None,
        metadata={"help": "full, na7, swa64, na7*11,full, xformers:full, ... Default: the model's own, or else full."},
    )
    learn_sigma: bool = field(default=True, metadata={"help": "Learn the variance too, by the variational bound."})
    class_dropout_prob: float = field(
        default=0.1, metadata={"help": "Share of the labels that become the null class, which guidance needs."}
    )
    vae: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of an AutoencoderKL, to train on its latents. Default: on pixels."},
    )
    latent_cache_dir: str | None = field(
        default=None, metadata={"help": "Where latents are kept. Default: in the cache of datasets."}
    )

    def __post_init__(self):
        if not 0 <= self.class_dropout_prob < 1:
            raise ValueError(f"class_dropout_prob must lie in [0, 1); got {self.class_dropout_prob}")
        if self.config_overrides is not None and self.model not in DIT_SIZES:
            raise ValueError(
                f"config_overrides changes a size, one of {', '.join(DIT_SIZES)}; model={self.model!r} has its config"
            )
        model_overrides(self.config_overrides)


def train_dit(
    data: DataArguments,
    model: ModelArguments,
    args: DiTTrainingArguments,
    *,
    check_push: Callable[[], None] | None = None,
) -> dict:
    """Train, and write into `args.output_dir`:

    the pipeline (averaged weights, scheduler, autoencoder if any, class names), which
    `DiTImagePipeline.from_pretrained` loads; `results.json`; `loss_curve.png`; `samples/step-*.png`; the newest
    `checkpoint-*`.

    Args:
        check_push: called on the first process before anything else; what it raises (`ValueError`, `OSError`) is
            raised on all. Where it is given, `output_dir` may hold this very run, finished: it is left as it is, for
            a push that failed.

    Returns:
        The content of `results.json`, on every process.

    Raises:
        ValueError: arguments, images, labels or the output folder do not fit; before the training begins.
        RuntimeError, ImportError: the attention cannot run here (before images are decoded); a loss is not finite.
    """
    accelerator = make_accelerator(model, args)
    output_dir = Path(args.output_dir)

    def decided(decide: Callable[[], Any]) -> Any:
        return from_first_process(decide, accelerator.process_index, accelerator.num_processes)

    if check_push is not None:
        decided(check_push)
    check_guidance(data, model, args)
    vae = load_vae(model.vae)
    if data.resolution is not None:
        check_attention(model, accelerator, sample_shape(vae, (data.resolution, data.resolution)))
    rows = open_rows(data)
    form = image_format(rows, data)
    shape = sample_shape(vae, form.size)
    if data.resolution is None:
        check_attention(model, accelerator, shape)
    global_batch = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    steps = args.max_train_steps or max(1, -(-round(args.num_epochs * len(rows)) // global_batch))
    settings = run_settings(data, model, args, global_batch, accelerator.mixed_precision, steps)
    if check_push is not None:
        results = decided(lambda: finished_results(output_dir, settings, steps))
        if results is not None:
            accelerator.print(f"{output_dir.resolve()} holds this run, finished")
            accelerator.end_training()
            return results
    checkpoint = decided(lambda: claim_output_dir(output_dir, settings, steps, args.resume_from_checkpoint))

    torch.manual_seed(args.seed)  # of the initial weights
    network = load_network(model, shape, None if rows.labels is None else len(rows.label_names))
    if vae is None:
        loaded = load_images(rows, form, skip_corrupt=data.skip_corrupt, progress=accelerator.is_local_main_process)
        samples, labels = PixelSamples(loaded.images), loaded.labels
    else:
        vae.to(accelerator.device)
        folder = decided(
            lambda: cached_latents(
                rows,
                form,
                vae,
                model.latent_cache_dir,
                mirrored=data.random_flip,
                skip_corrupt=data.skip_corrupt,
                progress=True,
            ),
        )
        samples = LatentMoments(folder, vae.config)
        labels = None if rows.labels is None else torch.from_numpy(rows.labels)[samples.rows]
        accelerator.print(f"latents: {folder}")
    skipped = len(rows) - len(samples)
    if skipped:
        accelerator.print(f"{skipped} of {len(rows)} images can't be decoded and are left out")
    stream = TrainingStream(
        samples,
        labels,
        seed=args.seed,
        num_timesteps=args.ddpm_num_steps,
        class_dropout_prob=model.class_dropout_prob,
        random_flip=data.random_flip,
    )

    scheduler = make_scheduler(args, network.config.learn_sigma, latents=vae is not None)
    id2label = None if rows.label_names is None else dict(enumerate(rows.label_names))

    def sample(network: DiTModel) -> Image.Image:
        return sample_grid(network, scheduler, vae, id2label, args, PRECISIONS[accelerator.mixed_precision])

    trainer = DiTTrainer(network, stream, scheduler, args, accelerator, max_train_steps=steps, sample=sample)
    if checkpoint is not None:
        trainer.load_checkpoint(checkpoint, json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    elif args.resume_from_checkpoint is not None:
        accelerator.print(f"{output_dir} has no checkpoint yet: starting at step 0")
    if accelerator.is_main_process:
        write_json(output_dir / SETTINGS, settings)
    accelerator.init_trackers("train_dit", config={name: str(value) for name, value in settings.items()})
    trainer.train()
    trainer.save_samples()

    results = {
        "settings": settings,
        "steps": trainer.step,
        "loss": trainer.history[-1]["loss"],
        "history": smoothed(trainer.history),
        "images_per_second": trainer.images_per_second,  # of this call; None where it made fewer than two steps
        "processes": accelerator.num_processes,
        "train_images": len(samples),
        "skipped_images": skipped,
        "label_names": rows.label_names,
        "sample_shape": list(shape),
        "config": {name: value for name, value in network.config.items() if not name.startswith("_")},
        "from_hub": settings_from_hub(settings),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "hardware": hardware(accelerator.device),
        "versions": versions(LIBRARIES),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if accelerator.is_main_process:
        with trainer.averaged() as averaged:
            save_pipeline(DiTImagePipeline(averaged, scheduler, vae, id2label), output_dir)
        save_picture(plot_loss(results["history"]), output_dir / "loss_curve.png")
        write_json(output_dir / RESULTS, results)  # last: its presence says that the run is finished
    accelerator.wait_for_everyone()
    accelerator.print(f"pipeline, {RESULTS}, loss_curve.png, samples: {output_dir.resolve()}")
    accelerator.end_training()
    return results


def make_accelerator(model: ModelArguments, args: DiTTrainingArguments) -> Accelerator:
    """accelerate as the trainer needs it; a `ValueError` where its own configuration asks for something else."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        cpu=args.use_cpu,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        # accelerate's own way steps the learning rate once for each process.
        step_scheduler_with_optimizer=False,
        # The others wait for the first process while it encodes images.
        kwargs_handlers=[] if model.vae is None else [InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {list(PRECISIONS)}; got {accelerator.mixed_precision!r}")
    if accelerator.gradient_accumulation_steps != args.gradient_accumulation_steps:
        raise ValueError(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps}, but accelerate is configured to "
            f"{accelerator.gradient_accumulation_steps} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS); unset it"
        )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"accelerate is configured to {accelerator.distributed_type.value}; each process must hold the whole model"
        )
    return accelerator


def check_guidance(data: DataArguments, model: ModelArguments, args: DiTTrainingArguments) -> None:
    """Raise a `ValueError` where the sample grids ask for a guidance that the model can't give."""
    if not data.unconditional and model.class_dropout_prob == 0 and set(args.sample_guidance_scales) != {1.0}:
        raise ValueError(
            "class_dropout_prob=0 trains no null class, so that sample_guidance_scales can be 1 alone; "
            f"got {args.sample_guidance_scales}"
        )


def load_vae(name: str | None) -> AutoencoderKL | None:
    """The autoencoder in evaluation mode and float32, from safetensors alone."""
    if name is None:
        return None
    return AutoencoderKL.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)


def sample_shape(vae: AutoencoderKL | None, size: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of what the model denoises, for images of `size`."""
    return (3, *size) if vae is None else (vae.config.latent_channels, *latent_size(vae, size))


def check_attention(model: ModelArguments, accelerator: Accelerator, shape: tuple[int, int, int]) -> None:
    """Raise what the attention raises that cannot train samples of a shape on this device; see `DiTModel`."""
    if model.model in DIT_SIZES:
        config = dit_config(model.model, **model_overrides(model.config_overrides))
    else:
        config = DiTModel.load_config(model.model)
    if model.attention is not None:
        config["attention"] = model.attention
    with torch.device("meta"):  # no memory, no time
        network = DiTModel.from_config({**config, "in_channels": shape[0], "sample_size": shape[1:]})
    network.check_attention(
        height=shape[1],
        width=shape[2],
        device=accelerator.device,
        dtype=PRECISIONS[accelerator.mixed_precision],
        training=True,
    )


def load_network(model: ModelArguments, shape: tuple[int, int, int], num_classes: int | None) -> DiTModel:
    """The network that `model` names, for samples of a shape; initial weights from PyTorch's global generator.

    Raises:
        ValueError: the config of a trained model differs from what data and flags ask for.
    """
    channels, height, width = shape
    size = height if height == width else (height, width)
    if model.model in DIT_SIZES:
        return DiTModel.from_name(
            model.model,
            sample_size=size,
            in_channels=channels,
            num_classes=num_classes,
            learn_sigma=model.learn_sigma,
            class_dropout_prob=model.class_dropout_prob,
            attention=model.attention or "full",
            **model_overrides(model.config_overrides),
        )
    network = DiTModel.from_pretrained(model.model, use_safetensors=True)
    wanted = {
        "sample_size": size,
        "in_channels": channels,
        "num_classes": num_classes,
        "learn_sigma": model.learn_sigma,
    }
    found = {name: network.config[name] for name in wanted}
    if isinstance(found["sample_size"], list):  # as JSON has it
        found["sample_size"] = tuple(found["sample_size"])
    differences = [f"{name}={found[name]!r}, not {wanted[name]!r}" for name in wanted if found[name] != wanted[name]]
    if differences:
        raise ValueError(f"model {model.model!r} does not fit data and flags: it has {'; '.join(differences)}")
    if num_classes is not None and model.class_dropout_prob and not network.config.class_dropout_prob:
        raise ValueError(
            f"model {model.model!r} has no null class; class_dropout_prob must be 0, got {model.class_dropout_prob}"
        )
    if model.attention is not None:
        network.set_attn_processor(model.attention)
    return network


def model_overrides(text: str | None) -> dict:
    """`"num_layers=4, dropout=0.1"` -> entries of a `DiTModel`'s config, see [`parse_overrides`]."""
    allowed = [name for name in signature(DiTModel.__init__).parameters if name not in ("self", *FIXED)]
    return parse_overrides(text, allowed, strings=False)


def run_settings(
    data: DataArguments,
    model: ModelArguments,
    args: DiTTrainingArguments,
    global_batch: int,
    mixed_precision: str,
    max_train_steps: int,
) -> dict:
    """Everything that the weights after a number of steps depend on, as JSON values.

    How the global batch is split is no part of it, nor is what is written and shown; the number of steps is where the
    learning rate depends on it.
    """
    recipe = (
        "seed learning_rate lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon "
        "max_grad_norm use_ema ema_max_decay ema_inv_gamma ema_power prediction_type ddpm_num_steps "
        "ddpm_beta_schedule"
    ).split()
    settings = {
        **asdict(data),
        **asdict(model),
        **{name: getattr(args, name) for name in recipe},
        "global_batch": global_batch,
        "mixed_precision": mixed_precision,
    }
    del settings["cache_dir"], settings["latent_cache_dir"]
    if args.lr_needs_end:
        settings["max_train_steps"] = max_train_steps
    return settings


def settings_from_hub(settings: dict) -> list[str]:
    """Which of data set, model and autoencoder were named by their ids on the Hub."""
    names = ("dataset_name", "model", "vae")
    given = {name: settings[name] for name in names if settings[name] not in (None, *DIT_SIZES)}
    return [name for name, value in given.items() if not Path(value).exists()]


def make_scheduler(args: DiTTrainingArguments, learn_sigma: bool, *, latents: bool) -> DDPMScheduler:
    """The scheduler that is trained with and saved.

    Its predicted clean samples are clipped to [-1, 1] in pixel space, where every sample lies there, which keeps
    strong guidance in range (Ho et al. 2020); latents have no bounds (and DiT clips nothing).
    """
    return DDPMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        prediction_type=args.prediction_type,
        variance_type="learned_range" if learn_sigma else "fixed_small",
        clip_sample=not latents,
    )


def sample_grid(
    network: DiTModel,
    scheduler: DDPMScheduler,
    vae: AutoencoderKL | None,
    id2label: dict[int, str] | None,
    args: DiTTrainingArguments,
    dtype: torch.dtype,
) -> Image.Image:
    """Samples from the same noise at every call: a row a guidance scale, columns over the classes.

    DDIM, which draws nothing: two grids of a training differ by the weights alone. `dtype` is that of the training's
    attention, as a kernel may know half precision alone.
    """
    if dtype != network.dtype:
        # ModelMixin's own `to` warns of every cast.
        network = torch.nn.Module.to(copy.deepcopy(network), dtype)
    pipeline = DiTImagePipeline(network, DDIMScheduler.from_config(scheduler.config), vae, id2label)
    pipeline.set_progress_bar_config(disable=True)
    size, channels, count = network.config.sample_size, network.config.in_channels, args.num_sample_images
    size = (size, size) if isinstance(size, int) else size
    common = {
        "num_inference_steps": args.sample_steps,
        "latents": torch.randn((count, channels, *size), generator=torch.Generator().manual_seed(args.seed)),
    }
    if id2label is None:
        return image_grid(pipeline(guidance_scale=1, batch_size=count, **common).images, 1, count)
    labels = [column * len(id2label) // count for column in range(count)]
    scales = args.sample_guidance_scales
    images = [image for scale in scales for image in pipeline(labels, guidance_scale=scale, **common).images]
    return image_grid(
        images,
        len(scales),
        count,
        row_names=[f"guidance {scale:g}" for scale in scales],
        column_names=[id2label[label] for label in labels],
    )


def save_pipeline(pipeline: DiTImagePipeline, output_dir: Path) -> None:
    """`save_pretrained` under a temporary name, then one rename for each file and folder."""
    temporary = output_dir / ".pipeline.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    sync_tree(temporary)
    for path in temporary.iterdir():
        target = output_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    temporary.rmdir()


def smoothed(history: list[dict]) -> list[dict]:
    """The rows with `smoothed`, the mean `loss` of the last fifth of the rows so far (of the row itself at least).

    A fall like 1 / step stays in sight at its start and at its end; a window of one length shows one of them.
    """
    losses = [row["loss"] for row in history]
    windows = [losses[end - -(-end // 5) : end] for end in range(1, len(losses) + 1)]
    return [row | {"smoothed": sum(window) / len(window)} for row, window in zip(history, windows, strict=True)]


def plot_loss(history: list[dict]) -> Image.Image:
    """The loss over the steps and its smoothed curve; with a learned variance, the bound in a panel of its own."""
    parts = [("loss", "loss")] + ([("vb", "variational bound (bits per dimension)")] if "vb" in history[0] else [])
    figure = Figure(figsize=(5.5 * len(parts), 4), layout="constrained")
    steps = [row["step"] for row in history]
    for axes, (part, name) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        axes.plot(steps, [row[part] for row in history], color="C0", alpha=0.4, label=f"mean of {steps[0]} steps")
        if part == "loss":
            axes.plot(steps, [row["smoothed"] for row in history], color="C0", label="smoothed")
        axes.set(xlabel="optimizer step", ylabel=name, yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return Image.open(buffer)
