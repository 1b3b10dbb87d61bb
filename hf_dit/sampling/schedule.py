"""What a call of the pipeline asks of its scheduler: timesteps, the variance, the arguments of a step."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, SchedulerMixin

LEARNED_VARIANCES = ("learned", "learned_range")


def learned_variance(scheduler: SchedulerMixin) -> str | None:
    """`"learned"` or `"learned_range"` where the scheduler takes its variance from the model, else `None`."""
    # `from_config` keeps foreign entries: a DDIMScheduler made from a DDPMScheduler has `variance_type` in its config.
    if "variance_type" not in inspect.signature(type(scheduler).__init__).parameters:
        return None
    variance_type = scheduler.config["variance_type"]
    return variance_type if variance_type in LEARNED_VARIANCES else None


def used_variance(scheduler: SchedulerMixin, learn_sigma: bool) -> str | None:
    """[`learned_variance`] of a scheduler for a model that learns one or not; a `ValueError` if they do not fit."""
    variance = learned_variance(scheduler)
    if variance is not None:
        if not isinstance(scheduler, DDPMScheduler):
            raise ValueError(
                f"scheduler {type(scheduler).__name__} cannot use variance_type={variance!r} of this model: "
                "make it with variance_type=None, or take DDPMScheduler"
            )
        if not learn_sigma:
            raise ValueError(
                f"scheduler expects a learned variance (variance_type={variance!r}), but transformer has "
                "learn_sigma=False"
            )
    return variance


def check_schedule(
    scheduler: SchedulerMixin,
    num_inference_steps: int,
    timesteps: Sequence[int] | None,
    guidance_interval: tuple[float, float] | None,
    eta: float,
) -> None:
    """Raise a `ValueError` for what the scheduler can't take, or an interval outside of its timesteps."""
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


def set_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[int] | None, device: torch.device
) -> None:
    """Give the scheduler so many steps, or these very timesteps."""
    if timesteps is None:
        scheduler.set_timesteps(num_inference_steps, device=device)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps), device=device)


def step_arguments(
    scheduler: SchedulerMixin, generator: torch.Generator | list[torch.Generator] | None, eta: float
) -> dict:
    """What the scheduler's `step` takes besides prediction, timestep and sample."""
    arguments = {"generator": generator, "eta": eta}
    if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
        # DDIM's direction has to follow from the clipped image (as in the code of Dhariwal and Nichol 2021). By
        # default diffusers keeps the noise as it was predicted: the more steps, the farther samples drift away.
        arguments["use_clipped_model_output"] = True
    taken = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in arguments.items() if name in taken}
