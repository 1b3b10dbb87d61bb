"""Every objective with every kind of scheduler: exact predictions of known distributions, through the pipeline."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from tests.hf_dit.sampling.test_pipeline import sample

# Of a pixel: 0.3 N(-0.8, 0.1^2) + 0.7 N(0.5, 0.2^2).
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.8, 0.5]), np.array([0.1, 0.2])
FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def levels(kind, time, scheduler):
    """Signal and noise of a network's time, by the schedulers' own words."""
    if kind == "flow":
        return 1 - time / 1000, time / 1000
    abar = np.cumprod(1 - np.float64(scheduler.betas))
    abar = np.exp(np.interp(time, np.arange(1000), np.log(np.maximum(abar, 1e-30))))
    return np.sqrt(abar), np.sqrt(1 - abar)


def exact_prediction(kind, x, signal, noise, weights=WEIGHTS, means=MEANS, stds=STDS):
    """The mean of the prediction given x = signal x0 + noise e, from the posterior of each part of the mixture."""
    x = x[..., None]
    variance = (signal * stds) ** 2 + noise**2
    log_weight = np.log(weights) - 0.5 * np.log(variance) - 0.5 * (x - signal * means) ** 2 / variance
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    clean = means + signal * stds**2 / variance * (x - signal * means)
    clean = (weight * clean).sum(-1) / weight.sum(-1)
    epsilon = (x[..., 0] - signal * clean) / noise
    return {
        "epsilon": epsilon,
        "sample": clean,
        "v_prediction": signal * epsilon - noise * clean,
        "flow": epsilon - clean,
    }[kind]


class ExactModel(DiTModel):
    """Predicts as [`exact_prediction`] of what its attributes say; its times are kept."""

    kind, scheduler, distribution = "epsilon", None, (WEIGHTS, MEANS, STDS)

    def forward(self, hidden_states, timestep, class_labels=None, return_dict=True):
        self.times.append(float(timestep))
        signal, noise = levels(self.kind, float(timestep), self.scheduler)
        x = hidden_states.double().numpy()
        return (torch.from_numpy(exact_prediction(self.kind, x, signal, noise, *self.distribution)).float(),)


def exact_pipeline(kind, trained, scheduler, distribution=(WEIGHTS, MEANS, STDS)):
    model = ExactModel.from_name("dit-micro-2", sample_size=64, num_classes=3, in_channels=3, learn_sigma=False)
    model.kind, model.scheduler, model.distribution, model.times = kind, trained, distribution, []
    pipeline = DiTImagePipeline(model, trained)
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def moments(values):
    values = np.asarray(values, np.float64).ravel()
    low = values < -0.3
    return {
        "share": low.mean(),
        "means": [values[low].mean(), values[~low].mean()],
        "stds": [values[low].std(), values[~low].std()],
        "all": [values.mean(), values.std(), (values**3).mean(), (values**4).mean()],
    }


DIFFUSION = [
    (DDPMScheduler, 1000, {}),
    (DDIMScheduler, 1000, {}),
    (EulerDiscreteScheduler, 1000, {}),
    (HeunDiscreteScheduler, 60, {}),
    (DPMSolverMultistepScheduler, 500, {"timestep_spacing": "trailing"}),
    (UniPCMultistepScheduler, 500, {"timestep_spacing": "trailing"}),
]


def check_moments(kind, trained, scheduler, steps):
    pipeline = exact_pipeline(kind, trained, scheduler)
    latents = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    came = sample(pipeline, [0, 1], guidance_scale=1, num_inference_steps=steps, latents=latents, generator=generator)
    rng = np.random.default_rng(0)
    part = rng.random(10**6) < WEIGHTS[0]
    wanted = moments(np.where(part, rng.normal(MEANS[0], STDS[0], 10**6), rng.normal(MEANS[1], STDS[1], 10**6)))
    came = moments(came)
    # 12,288 pixels: standard errors of 0.004 for the share, 0.002 for means; and the error of the steps.
    for name, tolerance in (("share", 0.015), ("means", 0.01), ("stds", 0.01), ("all", 0.02)):
        np.testing.assert_allclose(came[name], wanted[name], rtol=0, atol=tolerance, err_msg=name)


def pairs():
    """Every prediction with every scheduler; those of many steps are slow but for one prediction."""
    for kind in ("epsilon", "sample", "v_prediction"):
        for cls, steps, changes in DIFFUSION:
            marks = [pytest.mark.slow] if steps > 500 and kind != "v_prediction" else []
            yield pytest.param(kind, cls, steps, changes, marks=marks)


@pytest.mark.parametrize(("kind", "cls", "steps", "changes"), pairs())
def test_diffusion_gives_the_moments_of_a_mixture(kind, cls, steps, changes):
    trained = DDPMScheduler(prediction_type=kind, clip_sample=False)
    # Heun's own defaults are another noise schedule.
    linear = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler = cls.from_config(dict(trained.config), **linear, **changes)
    check_moments(kind, trained, scheduler, steps)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchHeunDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(**FLOW_SOLVER),
        UniPCMultistepScheduler(**FLOW_SOLVER, flow_shift=2.0),
    ],
)
def test_a_flow_gives_the_moments_of_a_mixture(scheduler):
    check_moments("flow", FlowMatchEulerDiscreteScheduler(), scheduler, 150)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr_gives_the_moments_of_a_mixture(kind, cls):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": kind}
    trained = DDPMScheduler(**settings, clip_sample=False)
    scheduler = cls.from_config(dict(trained.config))
    check_moments(kind, trained, scheduler, 1000 if cls in (DDPMScheduler, DDIMScheduler) else 500)


# --- known values: data of N(0, 0.5^2), whose exact flow maps 1 to 0.5


def one_path(scheduler, steps, **changes):
    """The latents after each step from 1."""
    distribution = np.array([1.0]), np.array([0.0]), np.array([0.5])
    pipeline = exact_pipeline("flow", FlowMatchEulerDiscreteScheduler(), scheduler, distribution)
    path = []

    def keep(pipeline, step, t, tensors):
        path.append(tensors["latents"][0, 0, 0, 0].item())
        return {}

    latents = torch.ones(1, 3, 64, 64)
    given = changes or {"num_inference_steps": steps}
    sample(pipeline, 0, guidance_scale=1, latents=latents, callback_on_step_end=keep, **given)
    pipeline.transformer.times = pipeline.transformer.times[-len(path) :]
    return path, pipeline


def test_euler_takes_equal_steps_as_sit_does():
    path, pipeline = one_path(FlowMatchEulerDiscreteScheduler(), 4)
    np.testing.assert_allclose(path, [0.75, 0.527027, 0.368919, 0.340541], atol=2e-6)
    assert pipeline.transformer.times == [1000, 750, 500, 250]


def test_heun():
    path, pipeline = one_path(FlowMatchHeunDiscreteScheduler(), 4)
    known = [0.667, 0.696329, 0.409923, 0.501732, 0.375924, 0.501232, 0.501731]
    np.testing.assert_allclose(path, known, atol=2e-6)
    assert pipeline.num_timesteps == 7


@pytest.mark.parametrize(
    ("cls", "known", "times"),
    [
        (DPMSolverMultistepScheduler, [0.750063, 0.529755, 0.403824, 0.372942], [999, 749.25, 499.5, 249.75]),
        (UniPCMultistepScheduler, [0.750251, 0.535369, 0.420107, 0.387223], [999.999, 750.25, 500.5, 250.75]),
    ],
)
def test_solvers_get_the_time_before_it_is_cut_to_a_whole_number(cls, known, times):
    path, pipeline = one_path(cls(**FLOW_SOLVER), 4)
    np.testing.assert_allclose(path, known, atol=2e-6)
    np.testing.assert_allclose(pipeline.transformer.times, times, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_timesteps_of_ones_own_are_those(shift):
    given = [1000, 812.5, 300, 1.25]
    path, pipeline = one_path(FlowMatchEulerDiscreteScheduler(shift=shift), 4, timesteps=given)
    np.testing.assert_allclose(pipeline.transformer.times, given, rtol=1e-5)
    x, s = 1.0, np.array([1, 0.8125, 0.3, 0.00125, 0])
    for step in range(4):  # Euler by hand
        x += (
            (s[step + 1] - s[step]) * (s[step] - 0.25 * (1 - s[step])) / (s[step] ** 2 + 0.25 * (1 - s[step]) ** 2) * x
        )
    assert path[-1] == pytest.approx(x, rel=1e-4)


def test_the_shift_is_made_once():
    _, pipeline = one_path(FlowMatchEulerDiscreteScheduler(shift=3.0), 5)
    shifted = [1000, 923.077, 818.182, 666.667, 428.571]
    np.testing.assert_allclose(pipeline.transformer.times, shifted, rtol=1e-5)


# --- refusals


@pytest.mark.parametrize(
    ("trained", "scheduler", "message"),
    [
        (
            FlowMatchEulerDiscreteScheduler(),
            DDIMScheduler(),
            "DDIMScheduler takes .*'epsilon'.* made for 'flow'; pred",
        ),
        (
            FlowMatchEulerDiscreteScheduler(),
            DPMSolverMultistepScheduler.from_config(FlowMatchEulerDiscreteScheduler().config),
            "DPMSolverMultistepScheduler takes .*'epsilon'.*made for 'flow'; prediction_type=.flow_prediction. wi",
        ),
        (
            FlowMatchEulerDiscreteScheduler(),
            DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
            "takes prediction_type='flow_prediction'; .*'flow'; .*use_flow_sigmas=True",
        ),
        (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(500), "num_train_timesteps=500.* 1000"),
        (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "end .* away from"),
        (
            FlowMatchEulerDiscreteScheduler(),
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            "it ends in ValueError: `mu` must be passed",
        ),
        (DDIMScheduler(), FlowMatchHeunDiscreteScheduler(), "FlowMatchHeun.* takes .*'flow'; .*for 'epsilon'$"),
        (DDIMScheduler(), DPMSolverMultistepScheduler(**FLOW_SOLVER), "takes prediction_type='flow'; .*'epsilon'$"),
        (DDIMScheduler(prediction_type="v_prediction"), DDIMScheduler(), "takes .*'epsilon'; .*for 'v_prediction'"),
    ],
)
def test_a_scheduler_of_another_objective_is_refused_in_one_line(trained, scheduler, message):
    pipeline = exact_pipeline("flow", trained, scheduler)
    with pytest.raises(ValueError, match=message) as caught:
        sample(pipeline, 0, guidance_scale=1)
    assert "\n" not in str(caught.value)
    assert pipeline.transformer.times == []


@pytest.mark.parametrize("given", [[1000, 1000], [500, 700], [0.0], [1000.5], [], ["x"], [float("nan")]])
def test_bad_timesteps_of_a_flow(given):
    pipeline = exact_pipeline("flow", FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match=r"timesteps must be descending numbers in \(0, 1000\]"):
        sample(pipeline, 0, guidance_scale=1, timesteps=given)


def test_other_schedulers_of_flows_are_measured():
    pipeline = exact_pipeline("flow", FlowMatchEulerDiscreteScheduler(), FlowMatchLCMScheduler())
    assert sample(pipeline, 0, guidance_scale=1, num_inference_steps=8).isfinite().all()


# --- guidance


def guided_pipeline(scheduler, seed=0):
    torch.manual_seed(seed)
    model = DiTModel.from_name("dit-micro-2", sample_size=8, num_classes=3, in_channels=3, learn_sigma=False)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    torch.nn.init.normal_(model.modulation_out.weight, std=0.2)
    pipeline = DiTImagePipeline(model.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(), DPMSolverMultistepScheduler(**FLOW_SOLVER, lower_order_final=True)],
)
def test_guidance_of_a_flow(scheduler):
    pipeline = guided_pipeline(FlowMatchEulerDiscreteScheduler())
    pipeline.scheduler = scheduler
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    came = {}
    for scale, passes in ((0, 1), (1, 1), (2.5, 2), (-1, 2)):
        came[scale] = sample(pipeline, [0, 2], guidance_scale=scale, latents=latents, num_inference_steps=6)
        assert pipeline.num_model_evaluations == 2 * passes * 6
    # By hand: the pipeline's schedule, and u_null + w (u - u_null).
    for scale, images in came.items():
        own = type(scheduler).from_config(scheduler.config)
        if isinstance(own, FlowMatchEulerDiscreteScheduler):
            own.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6))
        else:
            own.set_timesteps(6)
        x = latents
        for step, t in enumerate(own.timesteps):
            time = own.sigmas[step] * 1000
            with torch.no_grad():
                u, null = (pipeline.transformer(x, time, torch.tensor(labels)).sample for labels in ([0, 2], [3, 3]))
            x = own.step(null + scale * (u - null), t, x, return_dict=False)[0]
        torch.testing.assert_close(images, x, rtol=1e-4, atol=1e-5)
    assert not torch.equal(came[0], came[1])


def test_the_interval_of_a_flow_is_in_its_timesteps():
    pipeline = guided_pipeline(FlowMatchEulerDiscreteScheduler())
    sample(pipeline, 0, guidance_scale=3, num_inference_steps=4, guidance_interval=(250, 750))
    assert pipeline.num_model_evaluations == 3 * 2 + 1


def test_a_saved_flow_is_a_flow(tmp_path):
    pipeline = guided_pipeline(FlowMatchEulerDiscreteScheduler(shift=2.0))
    pipeline.save_pretrained(tmp_path)
    loaded = DiTImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (sample(p, 1, guidance_scale=2, latents=latents) for p in (pipeline, loaded))
    assert torch.equal(one, other)
    loaded.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="made for 'flow'"):
        sample(loaded, 1)
