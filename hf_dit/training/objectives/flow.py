"""Flow matching on straight paths (SiT's linear interpolant, rectified flow): velocity, and when it is trained.

Ma et al. 2024 (SiT, arXiv:2401.08740): x_t = alpha_t x_* + sigma_t e with alpha_t = 1 - t, sigma_t = t (equation 1 and
the linear row of section 3), the velocity v = alpha'_t x_* + sigma'_t e = e - x_* (equation 3) and its loss
|v_theta - alpha'_t x_* - sigma'_t e|^2 (equation 7). Their released code has the same path with the clock turned round
(noise at 0) and therefore the velocity's sign; diffusers has the paper's, as here.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...sampling.predictions import prediction_of
from .base import Objective, ObjectiveLosses, as_factor, mean_of_sample, split_output

# `mode` is one-to-one for scales in this range (Esser et al. 2024, section 3.1).
MODE_SCALES = (-1.0, 2 / (math.pi - 2))


@dataclass(frozen=True)
class FlowTimes:
    """The times t in (0, 1] that are trained, 0 being data and 1 noise: a draw of `density`, then the shift.

    `uniform` is SiT's and rectified flow's. The others are of Esser et al. 2024 (SD3, arXiv:2403.03206, section 3.1):
    `logit_normal`, t = sigmoid(n) with n of N(`logit_mean`, `logit_std`) (equation 19), where a positive mean goes
    towards noise; `mode`, t = 1 - u - s (cos^2(pi u / 2) - 1 + u) with s = `mode_scale` (equation 20); `cosmap`,
    t = 1 - 1 / (tan(pi u / 2) + 1) (equations 21 and 22). `shift` moves them towards noise for larger images,
    t -> shift t / (1 + (shift - 1) t) (equation 23).

    As scripts of diffusers turn the clock round on the way from a draw to a timestep, their positive `logit_mean` goes
    towards data.
    """

    density: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 1.0

    def __call__(self, rng: np.random.Generator) -> float:
        """One time of a generator."""
        return float(self.times(rng, 1)[0])

    def times(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,) float64 in (0, 1]."""
        if self.density == "logit_normal":
            t = 1 / (1 + np.exp(-(self.logit_mean + self.logit_std * rng.standard_normal(count))))
        else:
            u = 1 - rng.random(count)  # in (0, 1]
            t = self._of_uniform(u)
        t = np.clip(t, np.finfo(np.float32).tiny, 1.0)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _of_uniform(self, u: np.ndarray) -> np.ndarray:
        if self.density == "uniform":
            return u
        if self.density == "mode":
            return 1 - u - self.mode_scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        if self.density == "cosmap":
            return 1 - 1 / (np.tan(np.pi * u / 2) + 1)
        raise ValueError(f"density must be one of {', '.join(DENSITIES)}; got {self.density!r:.120}")


DENSITIES = ("uniform", "logit_normal", "mode", "cosmap")


class FlowObjective(Objective):
    """Mean squared error of the velocity e - x_*, at any time (SiT, equation 7, which has no weight).

    A timestep is `num_timesteps` times the time t, the scale of diffusers' flow schedulers; SiT's own code gives its
    network t itself.
    """

    prediction_type = "flow"

    def __init__(self, num_timesteps: int = 1000):
        self.num_timesteps = num_timesteps

    def to(self, device: torch.device | str) -> "FlowObjective":
        return self

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        time = as_factor(timestep / self.num_timesteps, clean)
        return (1 - time) * clean + time * noise

    def losses(self, output: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> ObjectiveLosses:
        prediction, _ = split_output(output, clean, noise, variance=False)
        time = as_factor(timestep / self.num_timesteps, clean)
        target = prediction_of("flow", clean, noise, 1 - time, time)
        mse = mean_of_sample(torch.square(prediction - target))
        return ObjectiveLosses(mse, mse, None)
