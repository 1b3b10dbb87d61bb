"""Which schedulers a pipeline takes: those that come out at an image whose exact noise they are told."""

import inspect

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
)

from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from tests.hf_dit.sampling.test_pipeline import sample, small_pipeline

# With the schedule of the pipeline in its config, as a saved one has it.
ALLOWED = """DDIM DDIMParallel DDPM DDPMParallel DEISMultistep DPMSolverMultistep DPMSolverSinglestep
    EulerAncestralDiscrete EulerDiscrete HeunDiscrete KDPM2AncestralDiscrete KDPM2Discrete LCM LMSDiscrete PNDM
    SASolver TCD UniPCMultistep""".split()
# Of these, defaults of the class are another noise schedule; `from_config` leaves out what is a default of the source.
OTHER_DEFAULTS = ["HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "TCD"]
MEMBERS = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)}
CLASSES = {
    name.removesuffix("Scheduler"): cls
    for name, cls in MEMBERS.items()
    if inspect.isclass(cls) and hasattr(cls, "from_config") and cls is not SchedulerMixin
}
IMAGE = np.random.default_rng(3).uniform(-1, 1, (1, 3, 8, 8))


class ExactModel(DiTModel):
    """Knows the noise in x_t = sqrt(abar) IMAGE + sqrt(1 - abar) noise, of 1000 linear betas."""

    def forward(self, hidden_states, timestep, class_labels=None, return_dict=True):
        betas = np.linspace(1e-4, 0.02, 1000)
        log_abar = np.log1p(-betas).cumsum()
        log_sigma = 0.5 * (np.log(-np.expm1(log_abar)) - log_abar)
        sigma = np.exp(np.interp(float(timestep), np.arange(1000), log_sigma))
        signal, noise = 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)
        epsilon = (hidden_states.double().numpy() - signal * IMAGE) / noise
        output = np.concatenate([epsilon, np.zeros_like(epsilon)], axis=1) if self.config.learn_sigma else epsilon
        return (torch.from_numpy(output).to(hidden_states.dtype),)


def exact_pipeline(scheduler, learn_sigma):
    config = {"sample_size": 8, "num_classes": 5, "in_channels": 3, "learn_sigma": learn_sigma}
    pipeline = DiTImagePipeline(ExactModel.from_name("dit-micro-2", **config), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def outcome(pipeline):
    """The largest error of a pixel, or the refusal."""
    try:
        image = sample(pipeline, 0, guidance_scale=1, num_inference_steps=20)
    except ValueError as error:
        return str(error)
    return float(np.abs(image.double().numpy() - IMAGE).max())


def test_table_names_classes_of_diffusers():
    assert {"DDIM", "EDMEuler", "IPNDM", "FlowMatchEulerDiscrete", *ALLOWED} <= CLASSES.keys()


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_a_scheduler_is_right_or_refused(name, learned, saved, tmp_path):
    trained = DDPMScheduler(variance_type="learned_range" if learned else "fixed_small", clip_sample=not learned)
    if saved:
        trained.save_pretrained(tmp_path)
        trained = DDPMScheduler.from_pretrained(tmp_path)
    pipeline = exact_pipeline(trained, learned)
    try:
        pipeline.scheduler = CLASSES[name].from_config(pipeline.scheduler.config)
    except (ImportError, TypeError, ValueError):  # refused by the class itself, or a package is not there
        assert name not in ALLOWED
        return
    came = outcome(pipeline)
    if name in ALLOWED and (saved or name not in OTHER_DEFAULTS):
        assert came < 0.05
    else:
        assert isinstance(came, str) and f"{name}Scheduler" in came and "\n" not in came, came


@pytest.mark.parametrize("change", [{"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}])
def test_other_steps_are_no_other_schedule(change):
    for cls in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        pipeline = exact_pipeline(DDIMScheduler(clip_sample=False), False)
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **change)
        assert outcome(pipeline) < 0.05


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(num_train_timesteps=500),
        DDIMScheduler(beta_end=0.03),
        DDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        DDIMScheduler(prediction_type="v_prediction"),
        HeunDiscreteScheduler(),
        EDMEulerScheduler(),
    ],
)
def test_another_schedule_than_the_pipelines_is_refused(scheduler):
    pipeline = small_pipeline(DDIMScheduler())
    sample(pipeline, 0)
    pipeline.scheduler = scheduler
    with pytest.raises(ValueError, match=f"scheduler {type(scheduler).__name__} "):
        sample(pipeline, 0)
    pipeline.scheduler = DDIMScheduler()
    sample(pipeline, 0)


def test_a_schedule_that_ends_in_pure_noise_needs_another_prediction():
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    for cls in (DDIMScheduler, EulerDiscreteScheduler):
        with pytest.raises(ValueError, match=f"{cls.__name__}.*pure noise.*epsilon"):
            sample(small_pipeline(cls(**{k: v for k, v in zero.items() if cls is DDIMScheduler or k[0] != "c"})), 0)
    assert sample(small_pipeline(DDIMScheduler(**zero, prediction_type="v_prediction")), 0).isfinite().all()


def test_a_solver_of_a_model_with_learned_variance_works_on_the_mean():
    learned = small_pipeline(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    plain = small_pipeline(DDPMScheduler(clip_sample=False))
    for pipeline in (learned, plain):
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    one, other = (sample(pipeline, [0, 1], latents=latents) for pipeline in (learned, plain))
    assert torch.equal(one, other)
    assert learned.scheduler.config.variance_type == "learned_range"  # the pipeline's own is left as it was
