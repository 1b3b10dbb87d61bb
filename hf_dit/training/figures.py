"""What a training shows: grids of samples, the curve of the loss."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..models.dit import DiTModel
from ..models.sizes import height_and_width
from ..sampling.pictures import image_grid
from ..sampling.pipeline import DiTImagePipeline
from .arguments import DiTTrainingArguments
from .objectives.make import TrainingScheduler


def sampling_pipeline(
    network: DiTModel,
    scheduler: TrainingScheduler,
    vae: AutoencoderKL | None,
    id2label: dict[int, str] | None,
    dtype: torch.dtype,
) -> DiTImagePipeline:
    """A pipeline without bars: by DDIM, or a flow's own Euler steps, which draw nothing.

    `dtype` is that of the training's attention, as a kernel may know half precision alone.
    """
    if dtype != network.dtype:
        # ModelMixin's own `to` warns of every cast.
        network = torch.nn.Module.to(copy.deepcopy(network), dtype)
    sampler = DDIMScheduler.from_config(scheduler.config) if isinstance(scheduler, DDPMScheduler) else scheduler
    pipeline = DiTImagePipeline(network, sampler, vae, id2label)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_grid(
    network: DiTModel,
    scheduler: TrainingScheduler,
    vae: AutoencoderKL | None,
    id2label: dict[int, str] | None,
    args: DiTTrainingArguments,
    dtype: torch.dtype,
) -> Image.Image:
    """Samples from the same noise at every call: a row a guidance scale, columns over the classes.

    Two grids of a training differ by the weights alone.
    """
    pipeline = sampling_pipeline(network, scheduler, vae, id2label, dtype)
    size, count = height_and_width(network.config.sample_size), args.num_sample_images
    common: dict[str, Any] = {
        "num_inference_steps": args.sample_steps,
        "latents": torch.randn(
            (count, network.config.in_channels, *size), generator=torch.Generator().manual_seed(args.seed)
        ),
    }
    if id2label is None:
        output: Any = pipeline(guidance_scale=1, batch_size=count, **common)
        return image_grid(output.images, 1, count)
    labels = [column * len(id2label) // count for column in range(count)]
    scales = args.sample_guidance_scales
    outputs: list[Any] = [pipeline(labels, guidance_scale=scale, **common) for scale in scales]
    images = [image for output in outputs for image in output.images]
    return image_grid(
        images,
        len(scales),
        count,
        row_names=[f"guidance {scale:g}" for scale in scales],
        column_names=[id2label[label] for label in labels],
    )


def smoothed(history: list[dict]) -> list[dict]:
    """The rows with `smoothed`, the mean `loss` of the last fifth of the rows so far (of the row itself at least).

    A fall like 1 / step stays in sight at its start and at its end; a window of one length shows one of them.
    """
    losses = [row["loss"] for row in history]
    windows = [losses[end - -(-end // 5) : end] for end in range(1, len(losses) + 1)]
    return [row | {"smoothed": sum(window) / len(window)} for row, window in zip(history, windows, strict=True)]


def plot_loss(history: list[dict], scored: Sequence[dict] = (), greater_is_better: bool = False) -> Figure:
    """The loss over the steps and its smoothed curve; the bound of a learned variance and the scores in own panels."""
    parts = [("loss", "loss")] + ([("vb", "variational bound (bits per dimension)")] if "vb" in history[0] else [])
    panels = len(parts) + bool(scored)
    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    axes_of_all = figure.subplots(1, panels, squeeze=False)[0]
    steps = [row["step"] for row in history]
    for axes, (part, name) in zip(axes_of_all, parts, strict=False):
        marker = "o" if len(steps) == 1 else None  # a line of one point is not seen
        values = [row[part] for row in history]
        axes.plot(steps, values, color="C0", alpha=0.4, marker=marker, label=f"mean of {steps[0]} steps")
        if part == "loss":
            axes.plot(steps, [row["smoothed"] for row in history], color="C0", marker=marker, label="smoothed")
        axes.set(xlabel="optimizer step", ylabel=name, yscale="log")
        axes.xaxis.set_major_locator(whole_steps())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    if scored:
        plot_scores(axes_of_all[-1], scored, greater_is_better)
    return figure


def whole_steps() -> MaxNLocator:
    """Ticks at whole steps, as many as fit."""
    return MaxNLocator("auto", steps=(1, 2, 2.5, 5, 10), integer=True, min_n_ticks=1)


def score_names(row: dict) -> list[str]:
    """The scores of a row, without its step, errors, numbers of images (`n_...`) and of neighbours (`..._k`)."""
    beside = ("step", "standard_error", "error_bound")
    return [
        name
        for name in row
        if name not in beside and not name.startswith("n_") and not name.endswith(("_standard_error", "_k"))
    ]


def standard_error(row: dict, name: str) -> float:
    """Of a score; 0 where it has none. The one without a name is the CMMD's."""
    return row.get("standard_error" if name.startswith("cmmd") else f"{name}_standard_error", 0.0)


def plot_scores(axes: Axes, scored: Sequence[dict], greater_is_better: bool = False) -> None:
    """The first score over the steps, with its standard error where there is one; the best is marked."""
    name = next(key for key in scored[0] if key != "step")
    rows = [row for row in scored if name in row]
    steps, values = [row["step"] for row in rows], [row[name] for row in rows]
    errors = [standard_error(row, name) for row in rows]
    axes.errorbar(steps, values, yerr=errors if any(errors) else None, color="C1", marker="o", capsize=3, label=name)
    best = (max if greater_is_better else min)(range(len(values)), key=values.__getitem__)
    which = "highest" if greater_is_better else "lowest"
    label = f"{which}, step {steps[best]}"
    axes.plot(steps[best], values[best], "*", color="C2", markersize=14, zorder=3, clip_on=False, label=label)
    axes.xaxis.set_major_locator(whole_steps())
    axes.set(xlabel="optimizer step", ylabel=f"{name} of samples")
    axes.set_ylim(bottom=min(0, *(value - error for value, error in zip(values, errors, strict=True))))
    axes.grid(alpha=0.3)
    axes.legend()
