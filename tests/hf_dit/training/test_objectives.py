import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm

from hf_dit.training.objectives.diffusion import DiffusionObjective
from hf_dit.training.objectives.schedule import NoiseSchedule
from hf_dit.training.objectives.variance import discretised_log_likelihood

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def batch(num_timesteps=1000, channels=3, sides=(4, 6), count=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(count, channels, *sides, generator=generator).clamp(-1, 1)
    noise = torch.randn(count, channels, *sides, generator=generator)
    output = torch.randn(count, 2 * channels, *sides, generator=generator)
    timesteps = torch.randint(num_timesteps, (count,), generator=generator)
    timesteps[:4] = torch.tensor([0, 0, 1, num_timesteps - 1])
    return clean, noise, output, timesteps


def diffusion_losses(schedule, output, clean, noise, timesteps, prediction_type="epsilon"):
    return DiffusionObjective(schedule, prediction_type).losses(output, clean, noise, timesteps)


def add_noise(schedule, clean, noise, timesteps):
    return DiffusionObjective(schedule).add_noise(clean, noise, timesteps)


def textbook_vb(betas, output, clean, noise, timesteps, prediction_type):
    """Bits per dimension (B,), in float64 and the papers' order: x_t, both means, both variances, KL or bins."""
    betas = betas.double().numpy()
    clean, noise, output = clean.double().numpy(), noise.double().numpy(), output.double().numpy()
    prediction, v = np.split(output, 2, axis=1)
    alpha_bar = np.cumprod(1 - betas)
    bits = []
    for i, t in enumerate(timesteps.tolist()):
        before = alpha_bar[t - 1] if t else 1.0
        noisy = math.sqrt(alpha_bar[t]) * clean[i] + math.sqrt(1 - alpha_bar[t]) * noise[i]
        predicted = prediction[i]
        if prediction_type == "epsilon":
            predicted = (noisy - math.sqrt(1 - alpha_bar[t]) * prediction[i]) / math.sqrt(alpha_bar[t])
        if prediction_type == "v_prediction":
            predicted = math.sqrt(alpha_bar[t]) * noisy - math.sqrt(1 - alpha_bar[t]) * prediction[i]
        first = math.sqrt(before) * betas[t] / (1 - alpha_bar[t])
        second = math.sqrt(1 - betas[t]) * (1 - before) / (1 - alpha_bar[t])
        mean, true_mean = first * predicted + second * noisy, first * clean[i] + second * noisy
        s = max(t, 1)
        posterior = (1 - alpha_bar[s - 1]) / (1 - alpha_bar[s]) * betas[s]
        fraction = (v[i] + 1) / 2
        variance = np.exp(fraction * np.log(betas[t]) + (1 - fraction) * np.log(posterior))
        if t == 0:
            std = np.sqrt(variance)
            low = np.where(clean[i] < -0.999, -np.inf, clean[i] - 1 / 255)
            high = np.where(clean[i] > 0.999, np.inf, clean[i] + 1 / 255)
            probability = norm.cdf((high - mean) / std) - norm.cdf((low - mean) / std)
            nats = -np.log(np.maximum(probability, 1e-12))
        else:
            p = torch.distributions.Normal(torch.from_numpy(true_mean), math.sqrt(posterior))
            q = torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(np.sqrt(variance)))
            nats = torch.distributions.kl_divergence(p, q).numpy()
        bits.append(nats.mean() / math.log(2))
    return torch.tensor(bits)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_losses_equal_the_textbook_in_float64(beta_schedule, prediction_type):
    scheduler = DDPMScheduler(beta_schedule=beta_schedule)
    clean, noise, output, timesteps = batch()
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    target = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[prediction_type]
    output[:, :3] = target + (0.05 if prediction_type == "sample" else 0.3) * output[:, :3]
    schedule = NoiseSchedule.from_scheduler(scheduler)
    losses = diffusion_losses(schedule, output, clean, noise, timesteps, prediction_type=prediction_type)
    torch.testing.assert_close(losses.mse, ((output[:, :3] - target) ** 2).mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-6)
    expected = textbook_vb(scheduler.betas, output, clean, noise, timesteps, prediction_type)
    torch.testing.assert_close(losses.vb.double(), expected, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(losses.loss, losses.mse + losses.vb)
    assert losses.loss.shape == (9,)


def test_perfect_noise_leaves_a_bound_of_the_variance_alone():
    scheduler = DDPMScheduler(num_train_timesteps=50)
    clean, noise, _, _ = batch(count=49)
    timesteps = torch.arange(1, 50)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    for v in (-1.0, 1.0):
        output = torch.cat([noise, torch.full_like(noise, v)], dim=1)
        losses = diffusion_losses(schedule, output, clean, noise, timesteps)
        ratio = (schedule.log_variance_max - schedule.log_variance_min)[timesteps].double()  # log of beta over beta~
        expected = 0 * ratio if v < 0 else (ratio - 1 + torch.exp(-ratio)) / (2 * math.log(2))
        torch.testing.assert_close(losses.vb.double(), expected, rtol=1e-3, atol=1e-7)
        assert losses.mse.abs().max() == 0


def test_the_likelihoods_of_all_256_levels_sum_to_one():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.0, 0.3), (0.97, 0.05), (-1.2, 0.4), (0.1, 0.001)):
        log_std = torch.full_like(levels, math.log(std))
        total = discretised_log_likelihood(levels, levels - mean, log_std).exp().sum()
        assert total.item() == pytest.approx(1, abs=256e-12 + 1e-9)


def test_the_floor_of_a_likelihood():
    far = discretised_log_likelihood(torch.zeros(2), torch.tensor([9.0, -9.0]), torch.full((2,), -5.0))
    torch.testing.assert_close(far, torch.full((2,), math.log(1e-12)))


def test_the_bound_gives_no_gradient_to_the_mean_and_the_mse_none_to_the_variance():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    clean, noise, output, timesteps = batch()
    for part, silent in (("vb", slice(0, 3)), ("mse", slice(3, 6))):
        leaf = output.clone().requires_grad_()
        getattr(diffusion_losses(schedule, leaf, clean, noise, timesteps), part).sum().backward()
        other = slice(3, 6) if silent.start == 0 else slice(0, 3)
        assert leaf.grad[:, silent].abs().max() == 0
        assert leaf.grad[:, other].abs().amax(dim=(1, 2, 3)).min() > 0
        assert leaf.grad.isfinite().all()


def test_the_gradient_of_the_variance_by_finite_differences():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(num_train_timesteps=10))
    clean, noise, output, _ = batch(num_timesteps=10, sides=(1, 2), count=4)
    clean, noise, output = clean.double(), noise.double(), output.double()
    timesteps = torch.tensor([0, 1, 5, 9])

    def bound(v):
        return diffusion_losses(schedule, torch.cat([output[:, :3], v], 1), clean, noise, timesteps).vb

    assert torch.autograd.gradcheck(bound, output[:, 3:].clone().requires_grad_())


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_noise_is_added_and_taken_away_as_by_the_diffusers_scheduler(beta_schedule):
    scheduler = DDPMScheduler(beta_schedule=beta_schedule, variance_type="learned_range", clip_sample=False)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    clean, noise, output, timesteps = batch()
    noisy = add_noise(schedule, clean, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps), rtol=1e-4, atol=1e-5)

    for t in (1, 400, 999):  # at 0 the sampler adds no noise
        stepped = scheduler.step(output, t, noisy, generator=torch.Generator().manual_seed(1)).prev_sample
        silent = output.clone()
        silent[:, 3:] = -1e9  # variance 0
        mean = scheduler.step(silent, t, noisy, generator=torch.Generator().manual_seed(1)).prev_sample
        drawn = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(1))
        low, high = schedule.log_variance_min[t], schedule.log_variance_max[t]
        log_variance = low + (output[:, 3:] + 1) / 2 * (high - low)
        torch.testing.assert_close(stepped - mean, (log_variance / 2).exp() * drawn, rtol=1e-2, atol=1e-5)


def test_without_a_learned_variance_the_loss_is_the_mean_squared_error():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    clean, noise, output, timesteps = batch()
    losses = diffusion_losses(schedule, output[:, :3], clean, noise, timesteps)
    assert losses.vb is None
    assert losses.loss is losses.mse


def test_half_precision_outputs_are_scored_in_float32_also_under_autocast():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    clean, noise, output, timesteps = batch()
    output = output.bfloat16()
    expected = diffusion_losses(schedule, output.float(), clean, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        losses = diffusion_losses(schedule, output, clean, noise, timesteps)
        noisy = add_noise(schedule, clean, noise, timesteps)
    assert losses.loss.dtype == noisy.dtype == torch.float32
    torch.testing.assert_close(losses.loss, expected.loss, rtol=0, atol=0)


def test_bad_input():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler())
    clean, noise, output, timesteps = batch()
    with pytest.raises(ValueError, match="prediction_type must be one of .*'velocity'"):
        diffusion_losses(schedule, output, clean, noise, timesteps, prediction_type="velocity")
    with pytest.raises(ValueError, match=r"output must have the shape of clean, \(9, 3, 4, 6\)"):
        diffusion_losses(schedule, output[:, :4], clean, noise, timesteps)
    with pytest.raises(ValueError, match="output must have the shape"):
        diffusion_losses(schedule, output[:, :, :2], clean, noise, timesteps)
    with pytest.raises(ValueError, match="betas between 0 and 1"):
        NoiseSchedule.from_scheduler(DDPMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="at least 2"):
        NoiseSchedule.from_scheduler(DDPMScheduler(num_train_timesteps=1))
