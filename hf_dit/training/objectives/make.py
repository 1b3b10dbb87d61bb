"""The objectives by the names of `--prediction_type`: what a training scheduler stands for."""

from typing import TypeAlias

from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from .base import Objective
from .diffusion import DiffusionObjective
from .flow import FlowObjective

TrainingScheduler: TypeAlias = DDPMScheduler | FlowMatchEulerDiscreteScheduler


def make_objective(scheduler: TrainingScheduler, snr_gamma: float | None = None) -> Objective:
    """The objective that a training scheduler's class and config stand for.

    Raises:
        ValueError: `snr_gamma` for a flow, which has no such weight; a noise schedule that can't be trained.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return DiffusionObjective.from_scheduler(scheduler, snr_gamma)
    if snr_gamma is not None:
        raise ValueError(f"snr_gamma is for predictions of diffusion, not for a flow; got {snr_gamma}")
    return FlowObjective(scheduler.config.num_train_timesteps)
