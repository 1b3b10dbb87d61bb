"""The noise schedule of a diffusion as tensors."""

from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from .base import same_tensors


@dataclass(frozen=True)
class NoiseSchedule:
    """What the losses need of a noise schedule of T steps: tensors (T,) float32, one value for each timestep t.

    With beta_t and abar_t = prod_{s<=t} (1 - beta_s), abar_{-1} = 1 (Ho et al. 2020, equations 4 and 7):

    signal, noise: x_t = signal * x_0 + noise * epsilon; sqrt(abar_t) and sqrt(1 - abar_t).
    posterior_clean: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0), sqrt(abar_{t-1}) beta_t / (1 - abar_t).
    log_variance_min: log of that posterior's variance (1 - abar_{t-1}) / (1 - abar_t) beta_t. At t = 0, where that is
        0, the value of t = 1 (Nichol and Dhariwal 2021).
    log_variance_max: log beta_t.
    """

    signal: Tensor
    noise: Tensor
    posterior_clean: Tensor
    log_variance_min: Tensor
    log_variance_max: Tensor

    @classmethod
    def from_scheduler(cls, scheduler: DDPMScheduler, *, terminal: bool = False) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler with `betas` (T,); `ValueError` for T < 2 or an abar_t of 0.

        `terminal`: the last timestep may be pure noise, with a beta of 1 (Lin et al. 2023, arXiv:2305.08891).
        """
        betas = scheduler.betas.double()
        if len(betas) < 2:
            raise ValueError(f"scheduler must have at least 2 training timesteps; got {len(betas)}")
        inside = betas[:-1] if terminal else betas
        if not bool((betas > 0).all() and (inside < 1).all() and (betas <= 1).all()):
            raise ValueError(
                f"scheduler must have betas between 0 and 1, neither included; got {betas.min()} to {betas.max()} "
                "(with rescale_betas_zero_snr, the last timestep is pure noise, which has no epsilon loss)"
            )
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        posterior_variance = (1 - before) / (1 - alpha_bar) * betas
        posterior_variance[0] = posterior_variance[1]
        return cls(
            signal=alpha_bar.sqrt().float(),
            noise=(1 - alpha_bar).sqrt().float(),
            posterior_clean=(before.sqrt() * betas / (1 - alpha_bar)).float(),
            log_variance_min=posterior_variance.log().float(),
            log_variance_max=betas.log().float(),
        )

    @property
    def num_timesteps(self) -> int:
        return len(self.signal)

    @property
    def snr(self) -> Tensor:
        """(T,) float32: the signal-to-noise ratio abar_t / (1 - abar_t)."""
        return torch.square(self.signal / self.noise)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(**same_tensors(self, device))
