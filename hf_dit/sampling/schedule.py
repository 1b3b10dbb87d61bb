"""What a call of the pipeline asks of its scheduler: noise schedule, timesteps, variance, the arguments of a step."""

import copy
import inspect
import itertools
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .predictions import prediction_of

LEARNED_VARIANCES = ("learned", "learned_range")
WITH_LEARNED_VARIANCE = (DDPMScheduler, DDPMParallelScheduler)  # the others that know the word cut it off
LARGEST_ERROR, MEASURED_STEPS = 0.05, 20  # of a pixel in [-1, 1], after so many steps


def learned_variance(scheduler: SchedulerMixin) -> str | None:
    """`"learned"` or `"learned_range"` where the scheduler takes its variance from the model, else `None`."""
    # `from_config` keeps foreign entries: a DDIMScheduler made from a DDPMScheduler has `variance_type` in its config.
    if "variance_type" not in inspect.signature(type(scheduler).__init__).parameters:
        return None
    variance_type = scheduler.config["variance_type"]
    return variance_type if variance_type in LEARNED_VARIANCES else None


def scheduler_of_call(scheduler: SchedulerMixin, learn_sigma: bool) -> tuple[SchedulerMixin, str | None]:
    """A scheduler of one call's own, and its [`learned_variance`]; one that can't use it gets the mean alone.

    A call that works on a copy leaves other calls, of other threads, alone.

    Raises:
        ValueError: the scheduler needs a variance that the model has not learned.
    """
    own, variance = copy.deepcopy(scheduler), learned_variance(scheduler)
    if variance is None:
        return own, None
    if not isinstance(scheduler, WITH_LEARNED_VARIANCE):
        own.register_to_config(variance_type=None)
        return own, None
    if not learn_sigma:
        raise ValueError(
            f"scheduler expects a learned variance (variance_type={variance!r}), but transformer has learn_sigma=False"
        )
    return own, variance


def noise_levels(scheduler: SchedulerMixin) -> Tensor | None:
    """(T,) float64: abar_t of a scheduler's noise schedule (Ho et al. 2020, equation 4); None where it has none."""
    # Not `alphas_cumprod`, which some classes keep from 0 where the betas do not.
    betas = getattr(scheduler, "betas", None)
    return torch.cumprod(1 - betas.double().cpu(), dim=0) if isinstance(betas, Tensor) else None


class TrainedOn(NamedTuple):
    """What the network of a pipeline was trained to predict, and at which noise levels."""

    prediction_type: str  # one of `predictions.PREDICTIONS`
    num_timesteps: int
    levels: Tensor | None  # the [`noise_levels`] of diffusion

    @classmethod
    def of_scheduler(cls, scheduler: SchedulerMixin) -> "TrainedOn":
        """What the scheduler that a pipeline is made with stands for."""
        kind = predicted_with(scheduler)
        timesteps = scheduler.config.get("num_train_timesteps", 1000)
        return cls(kind, timesteps, None if kind == "flow" else noise_levels(scheduler))


def predicted_with(scheduler: SchedulerMixin) -> str:
    """What a scheduler takes its model's output for: `epsilon`, `sample`, `v_prediction`, `flow`, or its own word."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    # No base class tells the schedulers for flow matching; those that know nothing else have this method alone.
    if hasattr(scheduler, "scale_noise") or (kind == "flow_prediction" and scheduler.config.get("use_flow_sigmas")):
        return "flow"
    return kind


def check_scheduler(scheduler: SchedulerMixin, trained: TrainedOn) -> None:
    """Raise a `ValueError` that names the scheduler unless it samples a model that was trained so.

    Measured: with the exact predictions of one image in [-1, 1], `MEASURED_STEPS` steps must come out at that image.
    """
    name = type(scheduler).__name__
    if not hasattr(scheduler, "scale_noise") and not hasattr(scheduler, "scale_model_input"):
        raise ValueError(f"scheduler must be one for diffusion or flow matching; got {name}")
    predicted, wanted = predicted_with(scheduler), trained.prediction_type
    if predicted != wanted:
        flow = "; prediction_type='flow_prediction' with use_flow_sigmas=True is that of DPMSolver and UniPC"
        raise ValueError(
            f"scheduler {name} takes prediction_type={predicted!r}; this pipeline was made for {wanted!r}"
            f"{flow if wanted == 'flow' else ''}"
        )
    if wanted != "flow":
        _check_levels(scheduler, trained)
    elif (timesteps := scheduler.config.get("num_train_timesteps")) != trained.num_timesteps:
        raise ValueError(
            f"scheduler {name} has num_train_timesteps={timesteps}; this pipeline was made with "
            f"{trained.num_timesteps}"
        )
    try:
        error = _measured_error(scheduler, trained)
    except Exception as failure:  # of any kind: schedulers for other tasks want other arguments and shapes
        words = f"{type(failure).__name__}: {failure}".split("\n")[0][:200]
        raise ValueError(f"scheduler {name} cannot be used: with exact predictions it ends in {words}") from failure
    if not error < LARGEST_ERROR:
        raise ValueError(
            f"scheduler {name} cannot be used as it is configured: {MEASURED_STEPS} steps with exact predictions of "
            f"an image in [-1, 1] end {error:.2g} away from it (at most {LARGEST_ERROR})"
        )


def _check_levels(scheduler: SchedulerMixin, trained: TrainedOn) -> None:
    """Raise a `ValueError` where the noise schedule is not that of the training, or says nothing at its end."""
    name, found, levels = type(scheduler).__name__, noise_levels(scheduler), trained.levels
    if levels is None:
        raise ValueError(f"scheduler {name} cannot be used: the pipeline was made with one without a noise schedule")
    if trained.prediction_type == "epsilon" and levels[-1] <= 0:
        raise ValueError(
            f"scheduler {name} cannot be used: the last timestep is pure noise (rescale_betas_zero_snr), of which a "
            "model with prediction_type='epsilon' says nothing"
        )
    if not (found is None or (found.shape == levels.shape and torch.allclose(found, levels, rtol=1e-3, atol=1e-7))):
        kept = "num_train_timesteps, beta_start, beta_end, beta_schedule and trained_betas"
        raise ValueError(
            f"scheduler {name} has another noise schedule than the one that this pipeline was made with: give "
            f"{name}.from_config that one's {kept}, too, which from_config leaves out where they are defaults"
        )


@torch.no_grad()
def _measured_error(scheduler: SchedulerMixin, trained: TrainedOn) -> float:
    """Largest error of a pixel after some steps of a scheduler like this one, on the CPU."""
    fixed = {}
    if learned_variance(scheduler) is not None:
        fixed["variance_type"] = "fixed_small" if isinstance(scheduler, WITH_LEARNED_VARIANCE) else None
    scheduler = type(scheduler).from_config(scheduler.config, **fixed)
    generator = torch.Generator().manual_seed(0)
    clean = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    set_timesteps(scheduler, min(MEASURED_STEPS, trained.num_timesteps), None, torch.device("cpu"))
    sample = torch.randn(clean.shape, generator=generator) * initial_scale(scheduler)
    of_step = step_arguments(scheduler, generator, eta=0.0)
    for t, time in zip(scheduler.timesteps, model_times(scheduler), strict=True):
        signal, noise_level = _signal_and_noise(trained, float(time))
        noise = (scaled_input(scheduler, sample, t).double() - signal * clean) / noise_level
        exact = prediction_of(trained.prediction_type, clean, noise, signal, noise_level)
        sample = scheduler.step(exact.float(), t, sample, **of_step, return_dict=False)[0]
    return float((sample - clean).abs().max())


def _signal_and_noise(trained: TrainedOn, time: float) -> tuple[Tensor, Tensor]:
    """What weighs clean sample and noise at a time of the model, float64."""
    if trained.levels is None:
        level = torch.tensor(time / trained.num_timesteps, dtype=torch.float64)
        return 1 - level, level
    # Between two timesteps a noise level is that of the schedulers that use such: the logarithm of sigma is linear.
    logs = ((1 - trained.levels) / trained.levels.clamp(min=1e-30)).log() / 2
    below = int(min(max(time, 0), len(logs) - 1))
    sigma = torch.lerp(logs[below], logs[min(below + 1, len(logs) - 1)], time - below).exp()
    return 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()


def initial_scale(scheduler: SchedulerMixin) -> float | Tensor:
    """What multiplies noise of variance 1 to become the scheduler's first sample."""
    return getattr(scheduler, "init_noise_sigma", 1.0)


def scaled_input(scheduler: SchedulerMixin, sample: Tensor, t: Tensor) -> Tensor:
    """What the model gets of a scheduler's sample."""
    return scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample


def model_times(scheduler: SchedulerMixin) -> Tensor:
    """The time that the model gets at each of the scheduler's timesteps."""
    if scheduler.config.get("use_flow_sigmas"):
        # Their timesteps are cut to whole numbers, which a flow is not trained at.
        times = scheduler.sigmas[: len(scheduler.timesteps)] * scheduler.config.num_train_timesteps
        return times.to(device=scheduler.timesteps.device, dtype=torch.float32)
    return scheduler.timesteps


def integer_in(name: str, value: Any, low: int, high: int) -> int:
    """`value`, an integer of Python, of numpy or in a tensor, as an `int`; a `ValueError` outside the range."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return number


def checked_steps(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[float] | Tensor | None
) -> tuple[int, list[float] | None]:
    """The number of steps, and the timesteps if given; a `ValueError` for what the scheduler can't take."""
    name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if timesteps is None:
        return integer_in("num_inference_steps", num_inference_steps, 1, trained), None
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(f"timesteps cannot be given to {name}; DDPMScheduler is one that takes them")
    kind = f"numbers in (0, {trained}]" if flow else f"integers in [0, {trained})"
    message = f"timesteps must be descending {kind}, got {timesteps}"
    try:
        given: list[float] = [_number(timestep, whole=not flow) for timestep in timesteps]
    except (TypeError, ValueError):
        raise ValueError(message) from None
    inside = (0 < timestep <= trained if flow else 0 <= timestep < trained for timestep in given)
    descending = all(later < earlier for earlier, later in itertools.pairwise(given))
    if not given or not descending or not all(inside):
        raise ValueError(message)
    return len(given), given


def _number(value: Any, *, whole: bool) -> float:
    return operator.index(value) if whole else float(value)


def check_latents(name: str, latents: Any, shape: tuple[int, ...]) -> None:
    """Raise a `TypeError` or `ValueError` that names them unless these are samples of the shape."""
    if not isinstance(latents, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(latents).__name__}")
    if tuple(latents.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(latents.shape)}")


def check_schedule(scheduler: SchedulerMixin, guidance_interval: tuple[float, float] | None, eta: float) -> None:
    """Raise a `ValueError` for an interval outside of the scheduler's timesteps, or an eta that it doesn't take."""
    name, trained = type(scheduler).__name__, scheduler.config.num_train_timesteps
    if guidance_interval is not None:
        pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
        pair = pair and all(isinstance(end, Real) for end in guidance_interval)
        if not pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= trained:
            raise ValueError(
                f"guidance_interval must be (low, high), 0 <= low <= high <= {trained}, got {guidance_interval}"
            )
    if not isinstance(eta, Real) or not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if eta != 0 and "eta" not in inspect.signature(scheduler.step).parameters:
        raise ValueError(f"eta must be 0 with {name}, which does not take it; got {eta}")


def set_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: list[float] | None, device: torch.device
) -> None:
    """Give the scheduler so many steps, or these very timesteps.

    n Euler steps of a flow are of one length, from 1 to 0 before the shift, as in SiT and as diffusers' own pipelines
    ask for. The scheduler's default grid has n - 1 such steps and one of 0.001, and shifts its end twice.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) and not scheduler.config.use_dynamic_shifting:
        shift, scale = scheduler.shift, scheduler.config.num_train_timesteps
        if timesteps is None:
            sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        else:  # the scheduler shifts what it is given
            times = [timestep / scale for timestep in timesteps]
            sigmas = [time / (shift - (shift - 1) * time) for time in times]
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    elif timesteps is None:
        scheduler.set_timesteps(num_inference_steps, device=device)
    else:
        scheduler.set_timesteps(timesteps=timesteps, device=device)


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
