"""Training losses of a diffusion model, pure: noise MSE, and the variational bound that trains the variance."""

import math
from dataclasses import dataclass, fields

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from .arguments import PREDICTION_TYPES


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
    def from_scheduler(cls, scheduler: DDPMScheduler) -> "NoiseSchedule":
        """The schedule of a diffusers scheduler with `betas` (T,); `ValueError` for T < 2 or an abar_t of 0."""
        betas = scheduler.betas.double()
        if len(betas) < 2:
            raise ValueError(f"scheduler must have at least 2 training timesteps; got {len(betas)}")
        if not bool((betas > 0).all() and (betas < 1).all()):
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

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


@dataclass(frozen=True)
class DiffusionLosses:
    """Losses of a batch, each (B,) float: `loss`, which is trained, and its parts `mse` and `vb` (None without it)."""

    loss: Tensor
    mse: Tensor
    vb: Tensor | None


def add_noise(schedule: NoiseSchedule, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The noisy samples x_t.

    # (B, C, H, W) float, (B, C, H, W) float, (B,) int64 -> (B, C, H, W)
    """
    return _at(schedule.signal, timesteps, clean) * clean + _at(schedule.noise, timesteps, clean) * noise


def diffusion_losses(
    schedule: NoiseSchedule,
    output: Tensor,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    prediction_type: str = "epsilon",
) -> DiffusionLosses:
    """The losses of a network's output for `add_noise(schedule, clean, noise, timesteps)`.

    `mse` is the mean squared error of the predicted noise (or clean sample). Where the output has twice the channels,
    its second half v interpolates the log variance between log_variance_min (v = -1) and log_variance_max (v = 1), and
    `loss = mse + vb` with `vb` the term of the variational bound for the given timestep, in bits per dimension (Nichol
    and Dhariwal 2021, equations 4 to 6 and 15 to 16; the weight 1 is DiT's). Its mean comes from the first half
    without gradient: `vb` trains the variance alone.

    Computed in float32 at least, whatever dtype the output has.

    Args:
        schedule: on the device of the tensors.
        output: (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        clean, noise: (B, C, H, W).
        timesteps: (B,) int64 in [0, T).
        prediction_type: `"epsilon"` or `"sample"`, what the first C channels of the output predict.

    Raises:
        ValueError: the shapes do not fit, or the prediction type is another.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {list(PREDICTION_TYPES)}; got {prediction_type!r}")
    batch, channels, *sides = clean.shape
    learn_sigma = output.shape[1:2] == (2 * channels,)
    if noise.shape != clean.shape or output.shape != (batch, channels * (1 + learn_sigma), *sides):
        raise ValueError(
            f"output must have the shape of clean, {tuple(clean.shape)}, or twice its channels, and noise the same; "
            f"got output {tuple(output.shape)} and noise {tuple(noise.shape)}"
        )
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    prediction, variance = output.split(channels, dim=1) if learn_sigma else (output, None)
    target = noise if prediction_type == "epsilon" else clean
    mse = _mean(torch.square(prediction - target))
    if variance is None:
        return DiffusionLosses(mse, mse, None)

    # clean - predicted clean. Through x_t it would lose digits where the signal is weak; x_t cancels.
    error = target - prediction.detach()
    if prediction_type == "epsilon":
        error = -error * _at(schedule.noise / schedule.signal, timesteps, clean)
    low = _at(schedule.log_variance_min, timesteps, clean)
    high = _at(schedule.log_variance_max, timesteps, clean)
    log_variance = low + (variance + 1) / 2 * (high - low)
    # The posterior's mean and the model's differ in x_0 alone; both means are x_0 itself at t = 0.
    weight = _at(schedule.posterior_clean, timesteps, clean)
    kl = 0.5 * (log_variance - low - 1 + torch.exp(low - log_variance))
    kl = kl + 0.5 * torch.square(weight * error) * torch.exp(-log_variance)
    nll = -discretised_log_likelihood(clean, error, 0.5 * log_variance)
    vb = _mean(torch.where(timesteps.view(-1, 1, 1, 1) == 0, nll, kl)) / math.log(2)
    return DiffusionLosses(mse + vb, mse, vb)


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


def _at(values: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
    # (T,), (B,) int64, (B, C, H, W) -> (B, 1, 1, 1)
    return values[timesteps].to(like.dtype).view(-1, 1, 1, 1)


def _mean(x: Tensor) -> Tensor:
    # (B, C, H, W) -> (B,)
    return x.flatten(1).mean(dim=1)
