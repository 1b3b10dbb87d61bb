"""The variational bound that trains a learned variance (Nichol and Dhariwal 2021)."""

import math

import torch
from torch import Tensor

from .base import as_factor, mean_of_sample
from .schedule import NoiseSchedule


def variational_bound(
    schedule: NoiseSchedule, error: Tensor, variance: Tensor, clean: Tensor, timestep: Tensor
) -> Tensor:
    """The term of the bound for each sample's timestep, in bits per dimension.

    `variance` v interpolates the log variance between log_variance_min (v = -1) and log_variance_max (v = 1), Nichol
    and Dhariwal 2021, equations 4 to 6 and 15 to 16.

    Args:
        error: (B, C, H, W), clean minus predicted clean sample, without gradient: the bound trains the variance alone.
        variance, clean: (B, C, H, W).
        timestep: (B,) int64.

    Returns:
        (B,) float.
    """
    low = as_factor(schedule.log_variance_min[timestep], clean)
    high = as_factor(schedule.log_variance_max[timestep], clean)
    log_variance = low + (variance + 1) / 2 * (high - low)
    # The posterior's mean and the model's differ in x_0 alone; both means are x_0 itself at t = 0.
    weight = as_factor(schedule.posterior_clean[timestep], clean)
    kl = 0.5 * (log_variance - low - 1 + torch.exp(low - log_variance))
    kl = kl + 0.5 * torch.square(weight * error) * torch.exp(-log_variance)
    nll = -discretised_log_likelihood(clean, error, 0.5 * log_variance)
    return mean_of_sample(torch.where(timestep.view(-1, 1, 1, 1) == 0, nll, kl)) / math.log(2)


def discretised_log_likelihood(clean: Tensor, error: Tensor, log_std: Tensor) -> Tensor:
    """Log probability that a Gaussian around `clean - error` gives a value to its bin of the 256 levels in [-1, 1].

    The bins at both ends reach to infinity (Ho et al. 2020, equation 13). Probabilities are kept above 1e-12, as in
    the papers' implementations. Latents, which have no levels, are treated alike, as in DiT.

    # three tensors of one shape, float -> nats, <= 0
    """
    half, std = 1 / 255, torch.exp(log_std)
    upper, lower = (error + half) / std, (error - half) / std
    # By symmetry the difference is taken in the lower tail, where a float has digits left.
    mirror = error > 0
    inside = _normal_cdf(torch.where(mirror, -lower, upper)) - _normal_cdf(torch.where(mirror, -upper, lower))
    last = torch.where(clean > 0.999, _normal_cdf(-lower), inside)
    return torch.where(clean < -0.999, _normal_cdf(upper), last).clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    # Not torch.special.ndtr, which is 1 + erf and has no digits left in the lower tail.
    return 0.5 * torch.special.erfc(-x / math.sqrt(2))
