"""Classifier-free guidance: which rows a model computes for images of several scales, and what becomes of them.

Ho and Salimans 2022 (arXiv:2207.12598), in the form of the DiT paper and of diffusers, `uncond + w (cond - uncond)`:
`w = 0` is the *unconditional* model, `w = 1` the conditional model without guidance.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.dit import DiTModel


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
    first, second = row_without | row_with_label, row_with_label | row_without

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    guided = torch.promote_types(dtype, torch.float32)
    nulls = [] if null_class_id is None else [null_class_id] * len(unconditional)
    return GuidancePass(
        images=index(conditional + unconditional),
        labels=None if labels is None else index([*(labels[i] for i in conditional), *nulls]),
        conditional=index([first[i] for i in range(len(scales))]),
        unconditional=index([second[i] for i in range(len(scales))]),
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


def guided_null_class(transformer: DiTModel, scales: Sequence[float]) -> int | None:
    """The null class of the unconditional predictions; None where no scale needs one.

    Raises:
        ValueError: a scale needs it, and the model has none.
    """
    if all(scale == 1 for scale in scales):
        return None
    try:
        return transformer.null_class_id
    except ValueError as error:
        other = next(scale for scale in scales if scale != 1)
        raise ValueError(f"guidance_scale must be 1, got {other}: {error}") from None


def guided_channels(cfg_channels: int | str, in_channels: int) -> int:
    """How many channels of the predicted noise are guided: `"all"`, or the first n."""
    if isinstance(cfg_channels, str) and cfg_channels == "all":
        return in_channels
    try:
        channels = 0 if isinstance(cfg_channels, str) else operator.index(cfg_channels)
    except TypeError:
        channels = 0
    if not 1 <= channels <= in_channels:
        raise ValueError(f"cfg_channels must be 'all' or from 1 to {in_channels}, got {cfg_channels!r}")
    return channels
