"""The flow's loss and times, min-SNR weights and zero terminal SNR, against formulas written out and known values."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from scipy import stats

from hf_dit.training.arguments import FLOW_TIMES, DiTTrainingArguments
from hf_dit.training.network import training_scheduler
from hf_dit.training.objectives.diffusion import DiffusionObjective, min_snr_weight
from hf_dit.training.objectives.flow import DENSITIES, FlowObjective, FlowTimes
from hf_dit.training.objectives.make import make_objective
from hf_dit.training.objectives.schedule import NoiseSchedule
from hf_dit.training.stream import TrainingStream


def pictures(*names, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, 3, 4, 5, generator=generator) for _ in names)


# --- the velocity of the straight path


def test_the_loss_equals_the_released_code_of_sit():
    """Its losses of seed 0 with the model 0.5 x; there noise is at time 0, so that its velocity is minus ours."""
    torch.manual_seed(0)
    clean = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    noise = torch.randn_like(clean)
    timestep = (1 - torch.rand(2)) * 1000
    objective = FlowObjective(1000)
    losses = objective.losses(-0.5 * objective.add_noise(clean, noise, timestep), clean, noise, timestep)
    torch.testing.assert_close(losses.loss, torch.tensor([1.232029, 2.640240]), rtol=1e-5, atol=0)
    assert losses.mse is losses.loss
    assert losses.vb is None


def test_the_path_is_that_of_the_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, noise = pictures("clean", "noise")
    timestep = scheduler.timesteps[torch.tensor([0, 1, 250, 500, 998, 999])]
    expected = scheduler.scale_noise(clean, timestep, noise)
    torch.testing.assert_close(FlowObjective(1000).add_noise(clean, noise, timestep), expected)


def test_a_flow_has_no_variance():
    clean, noise, output = pictures("clean", "noise", "output")
    with pytest.raises(ValueError, match=r"output must have the shape of clean, \(6, 3, 4, 5\), and noise the same"):
        FlowObjective().losses(torch.cat([output, output], 1), clean, noise, torch.ones(6))
    with pytest.raises(ValueError, match="snr_gamma is for predictions of diffusion"):
        make_objective(FlowMatchEulerDiscreteScheduler(), 5)


# --- times


def cdf_of_mode(scale):
    """P(t <= x) of `mode`, by the inverse of its formula on a fine grid."""
    u = np.linspace(0, 1, 200_001)
    t = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return lambda x: np.interp(x, t[::-1], 1 - u[::-1])


@pytest.mark.parametrize(
    ("times", "cdf"),
    [
        (FlowTimes(), stats.uniform.cdf),
        (FlowTimes("logit_normal"), lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
        (
            FlowTimes("logit_normal", logit_mean=0.7, logit_std=0.5),
            lambda t: stats.norm.cdf(np.log(t / (1 - t)), 0.7, 0.5),
        ),
        (FlowTimes("mode"), cdf_of_mode(1.29)),
        (FlowTimes("mode", mode_scale=-1.0), cdf_of_mode(-1.0)),
        # The density 2 / (pi - 2 pi t + 2 pi t^2) of the paper.
        (FlowTimes("cosmap"), lambda t: 0.5 + np.arctan(2 * t - 1) * 2 / np.pi),
        (FlowTimes(shift=3.0), lambda t: t / (3 - 2 * t)),
    ],
)
def test_the_density_of_the_times(times, cdf):
    drawn = times.times(np.random.default_rng(0), 20_000)
    assert 0 < drawn.min() <= drawn.max() <= 1
    assert stats.kstest(drawn, cdf).pvalue > 0.01
    assert times(np.random.default_rng(3)) == times.times(np.random.default_rng(3), 1)[0]


def test_the_flag_takes_the_densities():
    assert FLOW_TIMES == DENSITIES
    with pytest.raises(ValueError, match="density must be one of"):
        FlowTimes("beta")(np.random.default_rng(0))


class Zeros:
    shape = (1, 2, 2)

    def __len__(self):
        return 5

    def draw(self, index, flip, rng):
        return torch.full(self.shape, float(index) - 10 * flip)


def test_a_flow_draws_all_but_the_time_as_diffusion_does():
    labels = torch.arange(5)
    one, other = (
        TrainingStream(Zeros(), labels, seed=3, random_flip=True, draw_time=draw)
        for draw in (None, FlowTimes("logit_normal"))
    )
    times = []
    for position in range(40):
        first, second = one[position], other[position]
        assert isinstance(first.pop("timestep"), int)
        times.append(second.pop("timestep"))
        assert first["label"] == second["label"]
        assert first["drop"] == second["drop"]
        assert torch.equal(first["noise"], second["noise"])
        assert torch.equal(first["clean"], second["clean"])
    assert all(time.dtype == torch.float32 and 0 < time <= 1000 for time in times)
    assert len({time.item() for time in times}) == 40
    assert other[7]["timestep"] == times[7]


# --- weights


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_the_clean_sample_alike_for_every_prediction(kind):
    scheduler, gamma = DDPMScheduler(prediction_type=kind), 5.0
    steps = torch.tensor([0, 100, 250, 500, 750, 999])
    snr = compute_snr(scheduler, steps)
    weights = min_snr_weight(NoiseSchedule.from_scheduler(scheduler).snr[steps], gamma, kind)
    known = {
        "epsilon": [0.000500133, 0.58571, 1, 1, 1, 1],
        "sample": [5, 5, 1.08953, 0.0843595, 0.00331109, 4.03599e-5],
        "v_prediction": [0.000500083, 0.524293, 0.521423, 0.0777966, 0.00330016, 4.03583e-5],
    }
    # Theirs is computed in float32: 9997.34 for the SNR of 9999 at the first step.
    torch.testing.assert_close(weights, torch.tensor(known[kind]), rtol=4e-4, atol=0)

    clean, noise, wrong = pictures("clean", "noise", "wrong")
    objective = DiffusionObjective.from_scheduler(scheduler, gamma)
    signal, level = (
        x[steps].view(-1, 1, 1, 1).double() for x in (objective.schedule.signal, objective.schedule.noise)
    )
    target = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, steps)}[kind]
    output = target + 0.1 * wrong
    losses = objective.losses(output, clean, noise, steps)
    noisy, prediction = signal * clean + level * noise, output.double()
    predicted = {
        "epsilon": (noisy - level * prediction) / signal,
        "sample": prediction,
        "v_prediction": signal * noisy - level * prediction,
    }[kind]
    expected = snr.clamp(max=gamma).double() * (predicted - clean).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.loss.double(), expected, rtol=2e-3, atol=1e-9)
    assert losses.mse is losses.loss


def test_the_weight_leaves_the_bound_alone():
    clean, noise, output, variance = pictures("clean", "noise", "output", "variance")
    steps = torch.tensor([0, 5, 100, 300, 700, 999])
    both = torch.cat([output, variance], 1)
    plain, weighed = (DiffusionObjective.from_scheduler(DDPMScheduler(), gamma) for gamma in (None, 5))
    one, other = (objective.losses(both, clean, noise, steps) for objective in (plain, weighed))
    assert torch.equal(one.vb, other.vb)
    weights = min_snr_weight(plain.schedule.snr[steps], 5, "epsilon")
    torch.testing.assert_close(other.mse, weights * one.mse)
    torch.testing.assert_close(other.loss, weights * one.mse + one.vb)


# --- zero terminal SNR


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_last_timestep_may_be_pure_noise(kind, learned):
    args = DiTTrainingArguments(prediction_type=kind, rescale_betas_zero_snr=True)
    scheduler = training_scheduler(args, learned, latents=True)
    assert scheduler.config.timestep_spacing == "trailing"
    objective = make_objective(scheduler)
    before, after = (x[[0, 500, 999]] for x in (DDPMScheduler().alphas_cumprod.sqrt(), objective.schedule.signal))
    torch.testing.assert_close(before, torch.tensor([0.99995, 0.2789205, 0.0063528]), rtol=1e-4, atol=0)
    torch.testing.assert_close(after, torch.tensor([0.99995, 0.2743104, 0.0]), rtol=1e-4, atol=1e-7)
    clean, noise, output, variance = pictures("clean", "noise", "output", "variance")
    steps = torch.tensor([0, 1, 10, 500, 998, 999])
    noisy = objective.add_noise(clean, noise, steps)
    assert torch.equal(noisy[-1], noise[-1])
    leaf = (torch.cat([output, variance], 1) if learned else output).requires_grad_()
    losses = objective.losses(leaf, clean, noise, steps)
    losses.loss.sum().backward()
    assert losses.loss.isfinite().all()
    assert leaf.grad.isfinite().all()
    target = clean if kind == "sample" else scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(losses.mse, (output - target).square().mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-6)


# --- arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs prediction_type v_prediction or sample"),
        ({"prediction_type": "flow", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr has no meaning for"),
        ({"prediction_type": "flow", "snr_gamma": 5.0}, "snr_gamma has no meaning for prediction_type='flow'; got 5"),
        ({"prediction_type": "flow", "ddpm_beta_schedule": "sigmoid"}, "ddpm_beta_schedule has no meaning for"),
        ({"flow_times": "cosmap"}, "flow_times has no meaning for prediction_type='epsilon'"),
        ({"flow_shift": 3.0}, "flow_shift has no meaning for prediction_type='epsilon'; got 3"),
        ({"prediction_type": "flow", "flow_times": "beta"}, "flow_times must be one of .*'cosmap'"),
        ({"prediction_type": "flow", "flow_logit_mean": 1.0}, "flow_logit_mean is of flow_times='logit_normal'"),
        ({"prediction_type": "flow", "flow_times": "mode", "flow_mode_scale": 2.0}, r"lie in \[-1, 1.752\]; got 2"),
        ({"prediction_type": "flow", "flow_shift": 0.0}, "flow_shift must be more than 0 and finite; got 0"),
        ({"prediction_type": "flow", "flow_shift": math.inf}, "flow_shift must be more than 0 and finite; got inf"),
        ({"snr_gamma": 0.0}, "snr_gamma must be more than 0"),
        ({"snr_gamma": math.nan}, "snr_gamma must be more than 0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        DiTTrainingArguments(**given)


def test_a_flow_may_have_any_number_of_timesteps():
    args = DiTTrainingArguments(prediction_type="flow", ddpm_num_steps=2, sample_steps=2)
    assert make_objective(training_scheduler(args, False, latents=False)).num_timesteps == 2
