"""Predictions into one another, and the reference values of a Gaussian and a point mass."""

import pytest
import torch
from diffusers import DDPMScheduler

from hf_dit.sampling.predictions import PREDICTIONS, clean_and_noise, prediction_of
from hf_dit.training.arguments import PREDICTION_TYPES


def test_the_flag_takes_what_the_sampler_knows():
    assert PREDICTION_TYPES == PREDICTIONS


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("level", [1e-3, 0.03, 0.5, 0.97, 0.999])
@pytest.mark.parametrize("path", ["variance preserving", "straight"])
def test_each_prediction_gives_clean_sample_and_noise_back(kind, level, path):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    level = torch.tensor(level, dtype=torch.float64)
    signal = 1 - level if path == "straight" else (1 - level**2).sqrt()
    noisy = signal * clean + level * noise
    prediction = prediction_of(kind, clean, noise, signal, level)
    for other in PREDICTIONS:  # and by way of every other kind
        between = prediction_of(other, *clean_and_noise(kind, prediction, noisy, signal, level), signal, level)
        back = clean_and_noise(other, between, noisy, signal, level)
        torch.testing.assert_close(back, (clean, noise), rtol=0, atol=1e-6)


def test_values_of_the_linear_schedule():
    abar = torch.cumprod(1 - DDPMScheduler().betas.double(), 0)[500]
    clean, noise = torch.tensor(2.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    signal, level = abar.sqrt(), (1 - abar).sqrt()
    assert prediction_of("v_prediction", clean, noise, signal, level).item() == pytest.approx(-2.1995490, abs=1e-6)
    # The same pair on the straight path through the same x / (a + s).
    s = level / (signal + level)
    assert s.item() == pytest.approx(0.7749252, abs=1e-6)
    x = (signal * clean + level * noise) / (signal + level)
    assert x.item() == pytest.approx(-0.3247756, abs=1e-6)
    assert prediction_of("flow", clean, noise, 1 - s, s).item() == -3
    torch.testing.assert_close(clean_and_noise("flow", torch.tensor(-3.0).double(), x, 1 - s, s), (clean, noise))


def test_another_kind():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="kind must be one of epsilon, sample, v_prediction, flow; got 'score'"):
        prediction_of("score", x, x, x, x)
    with pytest.raises(ValueError, match="kind must be one of"):
        clean_and_noise("score", x, x, x, x)
