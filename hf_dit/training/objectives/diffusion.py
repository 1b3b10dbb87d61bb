"""Objectives of diffusion: noise, clean sample or v, with min-SNR weights and the bound of a learned variance."""

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ...sampling.predictions import prediction_of
from .base import Objective, ObjectiveLosses, as_factor, mean_of_sample, split_output
from .schedule import NoiseSchedule
from .variance import variational_bound

DIFFUSION_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """The weight of a prediction's squared error that is min(SNR, gamma) on the clean sample's, of the same shape.

    Hang et al. 2023, arXiv:2303.09556, section 3.4. With |e - e'|^2 = SNR |x0 - x0'|^2 and |v - v'|^2 = (SNR + 1)
    |x0 - x0'|^2 that is min(SNR, gamma) / SNR for `epsilon`, min(SNR, gamma) / (SNR + 1) for `v_prediction`. It is 0
    where the SNR is.
    """
    least = snr.clamp(max=gamma)
    per_clean = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}
    return least / per_clean[prediction_type]


class DiffusionObjective(Objective):
    """Mean squared error of a prediction at the integer timesteps of a noise schedule.

    Where the network's output has twice the channels, its second half learns the variance: `loss = mse + vb` with the
    [`variational_bound`], whose weight 1 is DiT's.

    Args:
        schedule: of T timesteps.
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
        snr_gamma: of the [`min_snr_weight`] on `mse` (5 in the paper); None: the weight is 1.

    Raises:
        ValueError: another prediction type, or `epsilon` on a schedule that ends at pure noise.
    """

    def __init__(self, schedule: NoiseSchedule, prediction_type: str = "epsilon", snr_gamma: float | None = None):
        if prediction_type not in DIFFUSION_PREDICTIONS:
            raise ValueError(f"prediction_type must be one of {list(DIFFUSION_PREDICTIONS)}; got {prediction_type!r}")
        if prediction_type == "epsilon" and not bool((schedule.signal > 0).all()):
            raise ValueError(
                "prediction_type 'epsilon' can't be trained at a timestep of pure noise; got a signal of 0"
            )
        self.schedule, self.prediction_type, self.snr_gamma = schedule, prediction_type, snr_gamma
        self._weight = None if snr_gamma is None else min_snr_weight(schedule.snr, snr_gamma, prediction_type)

    @classmethod
    def from_scheduler(cls, scheduler: DDPMScheduler, snr_gamma: float | None = None) -> "DiffusionObjective":
        """What a scheduler's config says: its betas and its `prediction_type`."""
        kind = scheduler.config.prediction_type
        return cls(NoiseSchedule.from_scheduler(scheduler, terminal=kind != "epsilon"), kind, snr_gamma)

    def to(self, device: torch.device | str) -> "DiffusionObjective":
        return DiffusionObjective(self.schedule.to(device), self.prediction_type, self.snr_gamma)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        signal, level = (as_factor(values[timestep], clean) for values in (self.schedule.signal, self.schedule.noise))
        return signal * clean + level * noise

    def losses(self, output: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> ObjectiveLosses:
        prediction, variance = split_output(output, clean, noise, variance=True)
        signal, level = (as_factor(values[timestep], clean) for values in (self.schedule.signal, self.schedule.noise))
        target = prediction_of(self.prediction_type, clean, noise, signal, level)
        mse = mean_of_sample(torch.square(prediction - target))
        if self._weight is not None:
            mse = mse * self._weight[timestep].to(mse.dtype)
        if variance is None:
            return ObjectiveLosses(mse, mse, None)
        # Clean minus predicted clean. Through x_t it would lose digits where the signal is weak; x_t cancels.
        error = target - prediction.detach()
        if self.prediction_type == "epsilon":
            error = -error * level / signal
        elif self.prediction_type == "v_prediction":
            error = -error * level
        vb = variational_bound(self.schedule, error, variance, clean, timestep)
        return ObjectiveLosses(mse + vb, mse, vb)
