"""The noise schedule of a training."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from hf_dit.training.network import training_scheduler
from hf_dit.training.settings import settings_of_weights

from .small import arguments


@pytest.mark.parametrize(("steps", "end"), [(100, 2e-5), (250, 3e-5), (1000, 4e-5)])
def test_a_short_schedule_ends_at_noise_as_a_long_one(tmp_path, steps, end):
    *_, args = arguments(str(tmp_path), tmp_path, ddpm_num_steps=steps)
    # As the original's create_diffusion: linspace between 1e-4 and 0.02, both times 1000 / T.
    betas = np.linspace(1000 / steps * 1e-4, 1000 / steps * 0.02, steps)
    assert np.prod(1 - betas) == pytest.approx(end, rel=0.3)
    np.testing.assert_allclose(training_scheduler(args, True, latents=True).betas, betas, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_a_schedule_of_1000_steps_is_that_of_diffusers(tmp_path, schedule):
    *_, args = arguments(str(tmp_path), tmp_path, ddpm_beta_schedule=schedule)
    assert torch.equal(
        training_scheduler(args, False, latents=True).betas, DDPMScheduler(beta_schedule=schedule).betas
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_other_samplers_of_diffusers_have_the_schedule(tmp_path, schedule, sampler):
    *_, args = arguments(str(tmp_path), tmp_path, ddpm_beta_schedule=schedule)
    trained = training_scheduler(args, False, latents=True)
    trained.save_pretrained(tmp_path)
    assert torch.equal(sampler.from_pretrained(tmp_path).betas, trained.betas)


def test_betas_are_settings_where_they_are_scaled(tmp_path):
    plain, scaled = (
        settings_of_weights(*arguments(str(tmp_path), tmp_path, ddpm_num_steps=steps), 4, "no", 6)
        for steps in (1000, 100)
    )
    assert "betas" not in plain and scaled["betas"] == pytest.approx([1e-3, 0.2])


def test_a_schedule_whose_betas_would_reach_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ddpm_num_steps must be 21 or more with ddpm_beta_schedule='linear'.*got 20"):
        arguments(str(tmp_path), tmp_path, ddpm_num_steps=20)
    arguments(str(tmp_path), tmp_path, ddpm_num_steps=20, ddpm_beta_schedule="squaredcos_cap_v2")
    arguments(str(tmp_path), tmp_path, ddpm_num_steps=21)
