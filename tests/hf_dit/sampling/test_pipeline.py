"""`DiTImagePipeline` against diffusers' pipeline and samplers written out by hand, and its folder with code."""

import copy
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from hf_dit import FullAttnProcessor
from hf_dit.models.dit import DiTModel
from hf_dit.sampling.export import export_pipeline, load_pipeline
from hf_dit.sampling.guidance import guide, plan_pass
from hf_dit.sampling.labels import label_table
from hf_dit.sampling.pipeline import DiTImagePipeline

NAMES = {0: "white shark, man-eater", 1: "crane", 2: "crane, bird", 3: "digital clock", 4: "umbrella"}


def randomise(model, seed=0, std=0.1):
    """Weights that make every input matter: at the initial ones the output is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_model(**overrides):
    return randomise(DiTModel.from_name("dit-micro-2", **{"sample_size": 8, "num_classes": 5, **overrides}))


def small_vae(**overrides):
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        **overrides,
    ).eval()


def ddim(**overrides):
    return DDIMScheduler(**{"clip_sample": False, **overrides})


def small_pipeline(scheduler=None, vae=None, id2label=None, **overrides):
    pipeline = DiTImagePipeline(small_model(**overrides), scheduler or ddim(), vae, id2label)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


def sample(pipeline, labels, seed=0, **arguments):
    """Samples (B, C, H, W) of one call, image i from seed + i."""
    count = len(labels) if isinstance(labels, list) else 1
    arguments = {"num_inference_steps": 3, "generator": seeds(*range(seed, seed + count)), **arguments}
    return pipeline(labels, output_type="latent", **arguments).images


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(pipeline, latents, predict, steps, **step_arguments):
    """The samples of a scheduler whose noise predictions are `predict(model, x, t)`, on a copy of the scheduler."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = latents * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        eps = predict(pipeline.transformer, scheduler.scale_model_input(latents, t), t)
        latents = scheduler.step(eps, t, latents, **step_arguments).prev_sample
    return latents


def prediction(model, x, t, labels):
    return model(x, t, torch.tensor(labels)).sample


class Rows:
    """Counts the samples that go through a model, call by call."""

    def __init__(self, model):
        self.calls = []
        model.register_forward_pre_hook(lambda _, arguments: self.calls.append(len(arguments[0])))


# --- against diffusers' own pipeline


def stock_pipeline(**overrides):
    """diffusers' pipeline with one embedder in all blocks, as in the published weights; its null class is 1000."""
    size = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 8, **overrides}
    model = randomise(DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **size))
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    id2label = {i: f"name {i}, other name {i}" for i in range(1000)}
    pipeline = DiTPipeline(model, small_vae(scaling_factor=0.18215), ddim(), id2label)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_images_of_diffusers_pipeline(scale):
    stock = stock_pipeline()
    ours = DiTImagePipeline.from_diffusers(stock)
    arguments = {"guidance_scale": scale, "num_inference_steps": 10, "output_type": "pt"}
    labels = [3, 999, 0]
    expected = stock(labels, generator=torch.Generator().manual_seed(5), **arguments).images
    images = ours(labels, generator=torch.Generator().manual_seed(5), **arguments).images
    assert expected.std() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_labels_of_diffusers_pipeline_are_kept(tmp_path):
    stock = stock_pipeline()
    ours = DiTImagePipeline.from_diffusers(stock)
    assert ours.labels.items() >= stock.labels.items()
    assert ours.id2label[7] == "name 7, other name 7"
    stock.save_pretrained(tmp_path)
    assert DiTImagePipeline.from_diffusers(tmp_path).id2label is None  # diffusers does not save them
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "id2label": {"0": "crane", "1": "crane, bird"}}))
    loaded = DiTImagePipeline.from_diffusers(tmp_path, dtype=torch.bfloat16)
    assert loaded.id2label == {0: "crane", 1: "crane, bird"}
    assert loaded.transformer.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="dtype"):
        DiTImagePipeline.from_diffusers(stock, dtype=torch.bfloat16)


def test_as_many_model_evaluations_as_diffusers_pipeline():
    stock = stock_pipeline()
    ours = DiTImagePipeline.from_diffusers(stock)
    rows = [Rows(pipeline.transformer) for pipeline in (stock, ours)]
    for pipeline in (stock, ours):
        pipeline([1] * 4, num_inference_steps=4, output_type="pt")
    assert rows[0].calls == rows[1].calls == [8] * 4


# --- guidance


@pytest.mark.parametrize(
    "scale, factor", [(0, 1), (1, 1), (4, 2), (-1.5, 2), (0.5, 2), ([0, 1, 0], 1), ([1.0, 4.0, 0.0], 4 / 3)]
)
def test_scales_0_and_1_take_half_the_model_evaluations(scale, factor):
    pipeline = small_pipeline()
    rows = Rows(pipeline.transformer)
    sample(pipeline, [0, 1, 2], guidance_scale=scale, num_inference_steps=5)
    assert rows.calls == [round(3 * factor)] * 5
    assert pipeline.num_model_evaluations == sum(rows.calls)
    assert pipeline.num_timesteps == 5


@pytest.mark.parametrize("scale", [-2.0, 0.0, 0.3, 1.0, 4.0, 10.0])
def test_scale_is_that_of_the_formula(scale):
    pipeline = small_pipeline(learn_sigma=True)
    latents = noise((2, 4, 8, 8))

    def guided(model, x, t):
        conditional, unconditional = prediction(model, x, t, [3, 1])[:, :4], prediction(model, x, t, [5, 5])[:, :4]
        return unconditional + scale * (conditional - unconditional)

    expected = by_hand(pipeline, latents, guided, 4)
    images = sample(pipeline, [3, 1], guidance_scale=scale, num_inference_steps=4, latents=latents)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=1e-4)


def test_scale_0_forgets_the_label_and_differs_from_1():
    pipeline = small_pipeline()
    assert torch.equal(sample(pipeline, 0, guidance_scale=0), sample(pipeline, 3, guidance_scale=0))
    assert (sample(pipeline, 0, guidance_scale=0) - sample(pipeline, 0, guidance_scale=1)).abs().max() > 0.01
    assert (sample(pipeline, 0, guidance_scale=1) - sample(pipeline, 3, guidance_scale=1)).abs().max() > 0.01


@pytest.mark.parametrize("scheduler", [ddim(), DDPMScheduler(variance_type="learned_range", clip_sample=False)])
@pytest.mark.parametrize("cfg_channels", ["all", 3])
def test_scale_per_label(scheduler, cfg_channels):
    pipeline = small_pipeline(scheduler)
    labels, scales = [0, 1, 2, 3, 4], [4.0, 0.0, 1.0, -1.0, 0.0]
    images = sample(pipeline, labels, guidance_scale=scales, cfg_channels=cfg_channels)
    for i, (label, scale) in enumerate(zip(labels, scales, strict=True)):
        alone = sample(pipeline, label, seed=i, guidance_scale=scale, cfg_channels=cfg_channels)
        torch.testing.assert_close(images[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_guidance_is_rounded_once():
    output = noise((2, 4, 16, 16)).bfloat16()
    plan = plan_pass([0], 5, [7.3], True, torch.device("cpu"), torch.bfloat16)
    exact = output[1].double() + 7.3 * (output[0].double() - output[1].double())
    guided = guide(output, plan, 4)
    assert guided.dtype == torch.bfloat16
    torch.testing.assert_close(guided[0].double(), exact, atol=1e-5, rtol=2**-8)


def test_scale_per_label_or_per_image():
    pipeline = small_pipeline()
    arguments = {"num_images_per_prompt": 2, "generator": seeds(0, 1, 2, 3)}
    per_label = sample(pipeline, [0, 1], guidance_scale=[2.0, 3.0], **arguments)
    arguments["generator"] = seeds(0, 1, 2, 3)
    per_image = sample(pipeline, [0, 1], guidance_scale=torch.tensor([2.0, 2.0, 3.0, 3.0]), **arguments)
    assert torch.equal(per_label, per_image)
    assert per_label.shape == (4, 4, 8, 8)
    torch.testing.assert_close(per_label[2:3], sample(pipeline, 1, seed=2, guidance_scale=3.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_of_the_first_channels(scale):
    pipeline = small_pipeline()
    latents = noise((1, 4, 8, 8))
    rows = Rows(pipeline.transformer)

    def guided(model, x, t):
        conditional, unconditional = prediction(model, x, t, [3])[:, :4], prediction(model, x, t, [5])[:, :4]
        return torch.cat([(unconditional + scale * (conditional - unconditional))[:, :3], conditional[:, 3:]], 1)

    images = sample(pipeline, 3, guidance_scale=scale, cfg_channels=3, num_inference_steps=4, latents=latents)
    assert rows.calls == [1 if scale == 1 else 2] * 4
    torch.testing.assert_close(images, by_hand(pipeline, latents, guided, 4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale, inside", [(3.0, 2), (0.0, 1)])
def test_guidance_interval(scale, inside):
    pipeline = small_pipeline()
    latents = noise((1, 4, 8, 8))
    rows = Rows(pipeline.transformer)
    arguments = {"guidance_scale": scale, "num_inference_steps": 5, "latents": latents}  # t = 800, 600, 400, 200, 0
    images = sample(pipeline, 3, guidance_interval=(200, 600), **arguments)
    assert rows.calls == [1, inside, inside, inside, 1]

    def guided(model, x, t):
        conditional, unconditional = prediction(model, x, t, [3])[:, :4], prediction(model, x, t, [5])[:, :4]
        return unconditional + (scale if 200 <= t <= 600 else 1.0) * (conditional - unconditional)

    torch.testing.assert_close(images, by_hand(pipeline, latents, guided, 5), atol=1e-4, rtol=1e-4)
    everywhere = sample(pipeline, 3, guidance_interval=(0, 1000), **arguments)
    assert torch.equal(everywhere, sample(pipeline, 3, **arguments))


# --- schedulers


def test_euler_equals_euler_by_hand():
    """Karras et al. 2022, algorithm 1 without churn, at x = (sample / sqrt(sigma^2 + 1)), from alpha-bar alone."""
    pipeline = small_pipeline(EulerDiscreteScheduler(timestep_spacing="linspace"))
    latents = noise((1, 4, 8, 8))
    images = sample(pipeline, 2, guidance_scale=1, num_inference_steps=6, latents=latents)

    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).numpy()
    times = np.linspace(999, 0, 6)
    sigmas = [*np.interp(times, np.arange(1000), np.sqrt((1 - alphas) / alphas)), 0.0]
    model = pipeline.transformer.double()
    x = latents.double() * sigmas[0]
    with torch.no_grad():
        for t, sigma, following in zip(times, sigmas, sigmas[1:], strict=False):
            eps = prediction(model, x / math.sqrt(sigma**2 + 1), float(t), [2])[:, :4]
            x = x + (following - sigma) * eps
    torch.testing.assert_close(images.double(), x, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_clipped_ddim_goes_on_from_the_clipped_image(eta):
    """Song et al. 2021, equation 12, with the noise that the clipped image implies, in float64."""
    pipeline = small_pipeline(DDIMScheduler(clip_sample=True), in_channels=3)
    latents = 2 * noise((2, 3, 8, 8))
    generator = torch.Generator().manual_seed(3)
    images = sample(
        pipeline, [2, 4], guidance_scale=3, num_inference_steps=5, latents=latents, eta=eta, generator=generator
    )

    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    model, x, clipped = pipeline.transformer.double(), latents.double(), 0
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for t in (800, 600, 400, 200, 0):
            conditional, unconditional = prediction(model, x, t, [2, 4]), prediction(model, x, t, [5, 5])
            eps = (unconditional + 3 * (conditional - unconditional))[:, :3]
            start = ((x - (1 - kept[t]).sqrt() * eps) / kept[t].sqrt()).clamp(-1, 1)
            clipped += (start.abs() == 1).sum()
            eps = (x - kept[t].sqrt() * start) / (1 - kept[t]).sqrt()
            before = kept[t - 200] if t else torch.ones_like(kept[0])
            sigma = eta * ((1 - before) / (1 - kept[t]) * (1 - kept[t] / before)).sqrt()
            x = before.sqrt() * start + (1 - before - sigma**2).sqrt() * eps
            if eta:
                x = x + sigma * torch.randn(x.shape, generator=generator)
    assert clipped > 0
    torch.testing.assert_close(images.double(), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_learned_variance_equals_ancestral_sampling_by_hand(scale):
    """Nichol and Dhariwal 2021, equations 9, 12 and 15 for respaced betas, in float64."""
    timesteps = [999, 740, 513, 250, 100, 7, 0]
    pipeline = small_pipeline(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    model = pipeline.transformer.double()
    arguments = {"guidance_scale": scale, "generator": torch.Generator().manual_seed(3), "timesteps": timesteps}
    images = sample(pipeline, [2, 4], **arguments)

    generator = torch.Generator().manual_seed(3)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timesteps[::-1]]
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    betas = 1 - kept / before
    x = torch.randn((2, 4, 8, 8), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        for i, t in zip(reversed(range(7)), timesteps, strict=True):
            conditional, unconditional = prediction(model, x, t, [2, 4]), prediction(model, x, t, [5, 5])
            eps = unconditional[:, :4] + scale * (conditional[:, :4] - unconditional[:, :4])
            fraction = (conditional[:, 4:] + 1) / 2
            start = (x - (1 - kept[i]).sqrt() * eps) / kept[i].sqrt()
            x = before[i].sqrt() * betas[i] * start + (1 - betas[i]).sqrt() * (1 - before[i]) * x
            x = x / (1 - kept[i])
            if i > 0:
                smallest = betas[i] * (1 - before[i]) / (1 - kept[i])
                log_variance = fraction * betas[i].log() + (1 - fraction) * smallest.log()
                x = x + (log_variance / 2).exp() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    # The scheduler keeps alpha-bar in float32: 1 - alpha-bar has four digits at t = 0.
    torch.testing.assert_close(images, x, atol=2e-3, rtol=2e-3)


def test_last_step_of_learned_variance_has_no_noise():
    """With these timesteps it is not at t = 0, where the scheduler leaves the noise out by itself."""
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="trailing")
    pipeline = small_pipeline(scheduler)
    states = []

    def note(pipe, i, t, tensors):
        states.append(tensors["latents"])
        return {}

    images = sample(pipeline, 1, guidance_scale=1, num_inference_steps=2, callback_on_step_end=note)
    assert scheduler.timesteps[-1] == 499
    with torch.no_grad():
        eps = prediction(pipeline.transformer, states[0], 499, [1])[:, :4]
    alpha = scheduler.alphas_cumprod[499]
    torch.testing.assert_close(images, (states[0] - (1 - alpha).sqrt() * eps) / alpha.sqrt(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    """DDIM DDPM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete DPMSolverMultistep
    DPMSolverSinglestep UniPCMultistep DEISMultistep LMSDiscrete LCM TCD""".split(),
)
def test_schedulers(name):
    pipeline = small_pipeline(DDPMScheduler(variance_type="learned_range", clip_sample=False))
    cls = getattr(diffusers, f"{name}Scheduler")
    # `from_config` hands the learned variance on to classes that know nothing of it, and leaves out defaults.
    betas = {name: pipeline.scheduler.config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **betas)
    images = sample(pipeline, [0, 1], guidance_scale=2, num_inference_steps=6)
    assert images.isfinite().all()
    assert pipeline.num_model_evaluations == 4 * pipeline.num_timesteps == 4 * len(pipeline.scheduler.timesteps)
    # A scheduler starts afresh in each call.
    assert torch.equal(images, sample(pipeline, [0, 1], guidance_scale=2, num_inference_steps=6))


def test_timesteps_of_the_caller():
    pipeline = small_pipeline(EulerDiscreteScheduler())
    sample(pipeline, 0, timesteps=[900, 300, 0])
    assert pipeline.scheduler.timesteps.tolist() == [900, 300, 0]
    assert pipeline.num_timesteps == 3


def test_eta():
    pipeline = small_pipeline()
    latents = noise((1, 4, 8, 8))

    def conditional(model, x, t):
        return prediction(model, x, t, [2])[:, :4]

    for eta in (0.0, 1.0):
        arguments = {"eta": eta, "generator": torch.Generator().manual_seed(7)}
        expected = by_hand(pipeline, latents, conditional, 3, **arguments)
        arguments = {"eta": eta, "generator": torch.Generator().manual_seed(7)}
        images = sample(pipeline, 2, guidance_scale=1, latents=latents, **arguments)
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scheduler", [ddim(), DDPMScheduler(clip_sample=False), EulerDiscreteScheduler()])
def test_images_do_not_depend_on_their_batch(scheduler):
    pipeline = small_pipeline(scheduler)
    images = sample(pipeline, [4, 0, 2], seed=10, guidance_scale=3)
    alone = sample(pipeline, [0, 2], seed=11, guidance_scale=3)
    torch.testing.assert_close(images[1:], alone, atol=1e-4, rtol=1e-4)
    again = sample(pipeline, [4, 0, 2], seed=10, guidance_scale=3)
    assert torch.equal(images, again)


def test_latents_are_left_as_they_are():
    pipeline = small_pipeline(EulerDiscreteScheduler())
    latents = noise((1, 4, 8, 8))
    sample(pipeline, 0, latents=latents)
    assert torch.equal(latents, noise((1, 4, 8, 8)))
    drawn = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(pipeline, 0, latents=drawn), sample(pipeline, 0))


# --- models, sizes, outputs


def test_unconditional_model():
    pipeline = small_pipeline(num_classes=None)
    arguments = {"guidance_scale": 1, "num_inference_steps": 2, "output_type": "latent"}
    images = pipeline(batch_size=2, num_images_per_prompt=2, generator=seeds(0, 1, 2, 3), **arguments).images
    assert images.shape == (4, 4, 8, 8)
    assert pipeline.num_model_evaluations == 8
    torch.testing.assert_close(images[3:], pipeline(generator=seeds(3), **arguments).images, atol=1e-4, rtol=1e-4)


def test_model_without_null_class_is_sampled_at_scale_1():
    assert sample(small_pipeline(class_dropout_prob=0.0), [0], guidance_scale=1).shape == (1, 4, 8, 8)


def test_non_square_sizes():
    pipeline = small_pipeline(vae=small_vae(), sample_size=(8, 12), attention="na3")
    arguments = {"num_inference_steps": 1, "output_type": "np"}
    assert pipeline(0, **arguments).images.shape == (1, 16, 24, 3)
    assert pipeline(0, height=24, width=8, **arguments).images.shape == (1, 24, 8, 3)
    assert sample(pipeline, 0, height=24, latents=noise((1, 4, 12, 12))).shape == (1, 4, 12, 12)


@pytest.mark.parametrize("shift", [None, 0.3])
def test_vae(shift):
    vae = small_vae(scaling_factor=0.5, shift_factor=shift)
    pipeline = small_pipeline(vae=vae)
    latents = sample(pipeline, [1, 2])
    images = pipeline([1, 2], num_inference_steps=3, generator=seeds(0, 1), output_type="pt").images
    with torch.no_grad():
        expected = vae.decode(latents / 0.5 + (shift or 0)).sample / 2 + 0.5
    torch.testing.assert_close(images, expected.clamp(0, 1))
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_outputs_in_pixel_space(channels, mode):
    pipeline = small_pipeline(in_channels=channels, learn_sigma=False)
    samples = sample(pipeline, [1, 2])
    outputs = {
        output_type: pipeline([1, 2], num_inference_steps=3, generator=seeds(0, 1), output_type=output_type).images
        for output_type in ("pt", "np", "pil")
    }
    torch.testing.assert_close(outputs["pt"], (samples / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(outputs["np"], outputs["pt"].permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, PIL.Image.Image) and image.mode == mode for image in outputs["pil"])
    pixels = np.stack([np.asarray(image).reshape(8, 8, channels) for image in outputs["pil"]])
    np.testing.assert_array_equal(pixels, (outputs["np"] * 255).round().astype(np.uint8))
    tuple_output = pipeline([1, 2], num_inference_steps=3, generator=seeds(0, 1), output_type="np", return_dict=False)
    assert isinstance(tuple_output, tuple) and len(tuple_output) == 1
    np.testing.assert_array_equal(tuple_output[0], outputs["np"])


def test_bfloat16():
    pipeline = small_pipeline(vae=small_vae()).to(torch.bfloat16)
    assert sample(pipeline, [1], guidance_scale=[3.7]).dtype == torch.bfloat16
    images = pipeline([1], num_inference_steps=2, output_type="np").images
    assert images.dtype == np.float32 and np.isfinite(images).all()


def test_model_in_training_mode_is_sampled_without_dropout():
    pipeline = small_pipeline(class_dropout_prob=0.9, dropout=0.5)
    expected = sample(pipeline, [0, 1])
    pipeline.transformer.train()
    pipeline.transformer.patch_embed.eval()
    assert torch.equal(sample(pipeline, [0, 1]), expected)
    assert pipeline.transformer.training and not pipeline.transformer.patch_embed.training


def test_callback():
    pipeline = small_pipeline()
    seen = []

    def shift(pipe, i, t, tensors):
        assert pipe is pipeline and list(tensors) == ["latents"]
        seen.append((i, int(t)))
        return {"latents": tensors["latents"] + 1} if i == 1 else {}

    changed = sample(pipeline, 0, guidance_scale=1, callback_on_step_end=shift)
    assert seen == [(0, 666), (1, 333), (2, 0)]
    assert not torch.equal(changed, sample(pipeline, 0, guidance_scale=1))

    def stop(pipe, i, t, tensors):
        assert tensors == {}
        pipe._interrupt = i == 0
        return tensors

    sample(pipeline, 0, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=[])
    assert pipeline.interrupt and pipeline.num_model_evaluations == 2
    sample(pipeline, 0)
    assert not pipeline.interrupt and pipeline.num_model_evaluations == 6
    with pytest.raises(TypeError, match="must return a dict"):
        sample(pipeline, 0, callback_on_step_end=lambda *_: None)
    with pytest.raises(ValueError, match=r"latents of callback_on_step_end must have shape \(1, 4, 8, 8\), got"):
        sample(pipeline, 0, callback_on_step_end=lambda *_: {"latents": torch.zeros(2, 4, 8, 8)})
    with pytest.raises(TypeError, match="latents of callback_on_step_end must be a tensor, got NoneType"):
        sample(pipeline, 0, callback_on_step_end=lambda *_: {"latents": None})


def test_callback_changes_the_guidance():
    pipeline = small_pipeline()
    rows = Rows(pipeline.transformer)
    later = {0: 0.0, 1: 2.0, 2: 1}

    def change(pipe, i, t, tensors):
        pipe._guidance_scale = later.get(i, pipe.guidance_scale)
        return {}

    latents = noise((2, 4, 8, 8))
    call = {"num_inference_steps": 5, "latents": latents}
    images = sample(pipeline, [3, 1], guidance_scale=4.0, callback_on_step_end=change, **call)
    assert rows.calls == [4, 2, 4, 2, 2] and pipeline.num_model_evaluations == 14 and pipeline.guidance_scale == 1
    scales = iter([4.0, 0.0, 2.0, 1.0, 1.0])

    def guided(model, x, t):
        scale = next(scales)
        conditional, unconditional = prediction(model, x, t, [3, 1])[:, :4], prediction(model, x, t, [5, 5])[:, :4]
        return unconditional + scale * (conditional - unconditional)

    torch.testing.assert_close(images, by_hand(pipeline, latents, guided, 5), atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="guidance_scale must be"):
        sample(pipeline, 0, callback_on_step_end=lambda pipe, *_: setattr(pipe, "_guidance_scale", "none") or {})


def test_threads_share_a_pipeline():
    pipeline = small_pipeline(DDPMScheduler(clip_sample=False))
    counts = [3, 40, 7, 22]
    alone = [sample(pipeline, 0, seed=count, num_inference_steps=count) for count in counts]
    steps = []

    def call(count, scale):
        def change(pipe, i, t, tensors):
            if i == count // 2:
                pipe._guidance_scale = scale
            steps.append(count)
            return {}

        common = {"seed": count, "num_inference_steps": count}
        return sample(pipeline, 0, **common), sample(pipeline, 0, callback_on_step_end=change, **common)

    scales = [0.0, 1.0, 2.0, 8.0]
    expected = [call(*pair) for pair in zip(counts, scales, strict=True)]
    with ThreadPoolExecutor(len(counts)) as pool:
        for _ in range(2):
            together = list(pool.map(call, counts, scales))
            for (plain, changed), (one, other), single in zip(together, expected, alone, strict=True):
                assert torch.equal(plain, one) and torch.equal(changed, other) and torch.equal(plain, single)
                assert not torch.equal(plain, changed)


def test_a_pipeline_can_be_copied():
    pipeline = small_pipeline()
    assert torch.equal(sample(copy.deepcopy(pipeline), 0), sample(pipeline, 0))


def test_progress_bar(capsys):
    pipeline = small_pipeline()
    pipeline.set_progress_bar_config(disable=False)
    sample(pipeline, 0)
    assert "3/3" in capsys.readouterr().err


# --- names of classes


def test_names():
    pipeline = small_pipeline(id2label=NAMES)
    assert pipeline.get_label_ids("white shark") == [0]
    assert pipeline.get_label_ids([" man-eater ", "white shark, man-eater", "bird", "crane, bird"]) == [0, 0, 2, 2]
    assert pipeline.labels["umbrella"] == 4 and "crane" not in pipeline.labels
    assert torch.equal(sample(pipeline, ["bird", 4]), sample(pipeline, [np.int64(2), "umbrella"]))
    assert torch.equal(sample(pipeline, "digital clock"), sample(pipeline, 3))
    with pytest.raises(ValueError, match="ids \\[1, 2\\]"):
        pipeline.get_label_ids("crane")
    with pytest.raises(ValueError, match="close: 'white shark'"):
        pipeline.get_label_ids("White Shark")
    with pytest.raises(ValueError, match="'x' is not among"):
        pipeline("x")
    with pytest.raises(ValueError, match="no id2label"):
        small_pipeline()("white shark")


@pytest.mark.parametrize(
    "labels", [torch.tensor([1, 3]), np.array([1, 3]), range(1, 4, 2), [[1], [3]], ([1, np.int64(3)],), iter([1, 3])]
)
def test_labels_of_any_kind_of_list(labels):
    pipeline = small_pipeline()
    images = pipeline(labels, num_inference_steps=2, generator=seeds(0, 1), output_type="latent").images
    assert torch.equal(images, sample(pipeline, [1, 3], num_inference_steps=2))


@pytest.mark.parametrize("label", [torch.tensor(3), np.int64(3), np.array(3)])
def test_one_label_of_any_kind_of_integer(label):
    assert torch.equal(sample(small_pipeline(), label), sample(small_pipeline(), 3))


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_numbers_of_any_kind_of_integer(kind):
    pipeline = small_pipeline(DDPMScheduler(clip_sample=False))
    plain = {"cfg_channels": 3, "num_images_per_prompt": 2, "height": 12, "width": 8}
    others = {name: kind(value) for name, value in plain.items()}
    steps = {"num_inference_steps": kind(4)}
    expected = sample(pipeline, 1, num_inference_steps=4, generator=seeds(0, 1), **plain)
    assert torch.equal(sample(pipeline, 1, generator=seeds(0, 1), **steps, **others), expected)
    timesteps = kind([900, 500, 0]) if kind is torch.tensor else np.array([900, 500, 0])
    assert torch.equal(sample(pipeline, 1, timesteps=timesteps), sample(pipeline, 1, timesteps=[900, 500, 0]))
    assert small_pipeline(num_classes=None)(
        guidance_scale=1, batch_size=kind(2), num_inference_steps=1, output_type="latent"
    ).images.shape == (2, 4, 8, 8)


def test_label_table():
    assert label_table({3: "a, b,, a ", 1: "b"}) == {"a": [3], "a, b,, a": [3], "b": [3, 1]}


# --- bad input

SQUARE = (1, 4, 8, 8)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"class_labels": None}, ValueError, "class_labels are missing"),
        ({"class_labels": []}, ValueError, "empty"),
        ({"class_labels": 5}, ValueError, r"\[0, 5\)"),
        ({"class_labels": [0, -1]}, ValueError, r"\[0, 5\)"),
        ({"class_labels": 1.5}, TypeError, "ids or names"),
        ({"class_labels": torch.tensor([0, 5])}, ValueError, r"\[0, 5\)"),
        ({"class_labels": torch.tensor([0.0])}, TypeError, "ids or names"),
        ({"class_labels": [[], []]}, ValueError, "empty"),
        ({"batch_size": 2}, ValueError, "batch_size"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt"),
        ({"guidance_scale": math.nan}, ValueError, "finite"),
        ({"guidance_scale": [math.inf]}, ValueError, "finite"),
        ({"guidance_scale": [1.0, 2.0]}, ValueError, "one number or 1 numbers"),
        ({"guidance_scale": [1.0, 2.0], "num_images_per_prompt": 3}, ValueError, "1 or 3 numbers"),
        ({"guidance_scale": "4"}, TypeError, "guidance_scale"),
        ({"guidance_scale": None}, TypeError, "guidance_scale"),
        ({"guidance_interval": (300, 200)}, ValueError, "guidance_interval"),
        ({"guidance_interval": (0, 1001)}, ValueError, "guidance_interval"),
        ({"guidance_interval": (math.nan, 10)}, ValueError, "guidance_interval"),
        ({"guidance_interval": 200}, ValueError, "guidance_interval"),
        ({"cfg_channels": 0}, ValueError, "cfg_channels"),
        ({"cfg_channels": 5}, ValueError, "cfg_channels"),
        ({"cfg_channels": "none"}, ValueError, "cfg_channels"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps"),
        ({"num_inference_steps": -1}, ValueError, "num_inference_steps"),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, ValueError, "num_inference_steps"),
        ({"guidance_interval": ("a", 10)}, ValueError, "guidance_interval"),
        ({"timesteps": [10, 0]}, ValueError, "DDIMScheduler"),
        ({"eta": "0"}, ValueError, "eta must lie"),
        ({"eta": -0.1}, ValueError, "eta"),
        ({"eta": math.nan}, ValueError, "eta"),
        ({"height": 7}, ValueError, "height must be a multiple of 2"),
        ({"width": 0}, ValueError, "width"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, "latents must have shape"),
        ({"latents": torch.zeros(1, 4, 8, 8), "width": 10}, ValueError, "latents must have shape"),
        ({"latents": [[0.0]]}, TypeError, "latents must be a tensor, got list"),
        ({"generator": seeds(0, 1)}, ValueError, "generator"),
        ({"generator": np.random.default_rng(0)}, TypeError, "generator must be a torch.Generator"),
        ({"generator": [0]}, TypeError, "generator must be a torch.Generator"),
        ({"output_type": "numpy"}, ValueError, "output_type"),
        ({"output_type": "pil"}, ValueError, "1 or 3 channels"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, ValueError, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_bad_arguments(arguments, error, message):
    pipeline = small_pipeline()
    rows = Rows(pipeline.transformer)
    with pytest.raises(error, match=message):
        pipeline(**{"class_labels": 0, "num_inference_steps": 2, "output_type": "latent", **arguments})
    assert not rows.calls


@pytest.mark.parametrize("timesteps", [[], [10, 10], [0, 10], [1000, 0], [10, -1], [10.5, 0]])
def test_bad_timesteps(timesteps):
    with pytest.raises(ValueError, match="timesteps must be descending integers"):
        sample(small_pipeline(EulerDiscreteScheduler()), 0, timesteps=timesteps)


def test_bad_combinations():
    with pytest.raises(ValueError, match="eta must be 0 with EulerDiscreteScheduler"):
        sample(small_pipeline(EulerDiscreteScheduler()), 0, eta=0.5)
    pipeline = small_pipeline(DDIMScheduler())
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler takes .*'flow'.* for 'epsilon'"):
        sample(pipeline, 0)
    learned = DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match="learn_sigma=False"):
        sample(small_pipeline(learned, learn_sigma=False), 0)
    for scale in (0.0, 4.0, [4.0]):
        with pytest.raises(ValueError, match="guidance_scale must be 1"):
            sample(small_pipeline(class_dropout_prob=0.0), 0, guidance_scale=scale)
        with pytest.raises(ValueError, match="guidance_scale must be 1"):
            small_pipeline(num_classes=None)(guidance_scale=scale)
    unconditional = small_pipeline(num_classes=None)
    with pytest.raises(ValueError, match="unconditional"):
        unconditional([0], guidance_scale=1)
    with pytest.raises(ValueError, match="batch_size"):
        unconditional(batch_size=0, guidance_scale=1)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got None"):
        unconditional(batch_size=None, guidance_scale=1)


def test_bad_components():
    with pytest.raises(ValueError, match="3 latent channels.*4"):
        small_pipeline(vae=small_vae(latent_channels=3))
    with pytest.raises(TypeError, match="DiTModel.from_diffusers"):
        stock = stock_pipeline()
        DiTImagePipeline(stock.transformer, stock.scheduler, stock.vae)
    with pytest.raises(ValueError, match="names class 5"):
        small_pipeline(id2label={5: "none"})
    with pytest.raises(ValueError, match="0 classes"):
        small_pipeline(num_classes=None, id2label={0: "none"})


def test_attention_that_cannot_run_is_refused_before_the_first_step():
    pipeline = small_pipeline(attention="full,xformers:full")
    rows = Rows(pipeline.transformer)
    with pytest.raises((RuntimeError, ImportError), match="xformers"):
        sample(pipeline, 0)
    assert not rows.calls


def test_attention_is_checked_in_the_dtype_of_autocast(monkeypatch):
    pipeline = small_pipeline()
    dtypes = []
    monkeypatch.setattr(FullAttnProcessor, "check", lambda self, **arguments: dtypes.append(arguments["dtype"]))
    sample(pipeline, 0)
    assert set(dtypes) == {torch.float32}
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert sample(pipeline, 0).isfinite().all()
    assert set(dtypes) == {torch.bfloat16}


# --- saving


@pytest.mark.parametrize("vae", [False, True])
def test_round_trip(tmp_path, vae):
    pipeline = small_pipeline(vae=small_vae() if vae else None, id2label=NAMES, attention="na3,full")
    pipeline.save_pretrained(tmp_path)
    loaded = DiTImagePipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is DDIMScheduler and (loaded.vae is not None) == vae
    assert loaded.id2label == pipeline.id2label == NAMES
    assert loaded.config.id2label == pipeline.config.id2label
    assert loaded.transformer.config.attention == "na3,full"
    assert torch.equal(sample(loaded, ["bird", 4]), sample(pipeline, ["bird", 4]))
    loaded.save_pretrained(tmp_path / "again")
    assert DiTImagePipeline.from_pretrained(tmp_path / "again").id2label == NAMES


def test_from_pipe():
    pipeline = small_pipeline(vae=small_vae(), id2label=NAMES)
    other = DiTImagePipeline.from_pipe(pipeline)
    assert other.transformer is pipeline.transformer and other.vae is pipeline.vae
    assert other.id2label == NAMES


WITHOUT_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_dit", "hf_common"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline

folder, out = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
images = pipeline("bird", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="latent")
torch.save(images.images, out)
assert not [name for name in sys.modules if name.split(".")[0] in ("hf_dit", "hf_common")]
"""


VARIANT = {"conditioning": "in_context", "qk_norm": "rms_norm", "position": "rope", "mlp": "swiglu"}


@pytest.mark.parametrize("variant", [{}, VARIANT], ids=["published", "variant"])
def test_exported_folder_needs_no_package(variant, tmp_path):
    pipeline = small_pipeline(vae=small_vae(), id2label=NAMES, attention="na3,swa5", **variant)
    folder = tmp_path / "exported"
    export_pipeline(pipeline, folder)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, folder, tmp_path / "images.pt"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "might require" not in result.stderr and "Expected types" not in result.stderr, result.stderr
    arguments = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(0), "output_type": "latent"}
    assert torch.equal(torch.load(tmp_path / "images.pt"), pipeline("bird", **arguments).images)


@pytest.mark.parametrize("variant", [{}, {"conditioning": "cross_attention", "embedders": "separate"}])
def test_exported_folder_where_the_package_is_installed(variant, tmp_path):
    pipeline = small_pipeline(id2label=NAMES, attention="na3,swa5", **variant)
    export_pipeline(pipeline, tmp_path / "a")
    expected = sample(pipeline, ["bird", 4])
    assert not list((tmp_path / "a").rglob("*.tmp"))
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    assert index["_class_name"] == ["dit_image_pipeline", "DiTImagePipeline"]
    assert index["transformer"] == ["dit_model", "DiTModel"]
    for route in (DiffusionPipeline, DiTImagePipeline):
        with pytest.raises(ValueError, match="trust_remote_code"):
            route.from_pretrained(tmp_path / "a")
        loaded = route.from_pretrained(tmp_path / "a", trust_remote_code=True)
        assert type(loaded).__module__.startswith("diffusers_modules.")
        assert type(loaded.transformer).__module__.startswith("diffusers_modules.")
        assert loaded.id2label == NAMES
        assert torch.equal(sample(loaded, ["bird", 4]), expected)
    assert isinstance(DiTModel.from_pretrained(tmp_path / "a", subfolder="transformer"), DiTModel)
    # What was loaded that way can be exported again.
    export_pipeline(loaded, tmp_path / "b")
    again = DiffusionPipeline.from_pretrained(tmp_path / "b", trust_remote_code=True)
    assert torch.equal(sample(again, ["bird", 4]), expected)


def test_saved_folder_is_found_by_diffusers(tmp_path):
    pipeline = small_pipeline(id2label=NAMES, attention="na3,swa5")
    expected = sample(pipeline, ["bird", 4])
    pipeline.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "a")
    for loaded in (
        DiTImagePipeline.from_pretrained(tmp_path / "a"),
        DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True),
        load_pipeline(str(tmp_path / "a"), torch.float32),
    ):
        assert type(loaded) is DiTImagePipeline and type(loaded.transformer) is DiTModel
        assert loaded.id2label == NAMES and torch.equal(sample(loaded, ["bird", 4]), expected)
    # A folder as it was written before is read, and so is the rest of what a folder can be made into.
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    (tmp_path / "a" / "model_index.json").write_text(json.dumps(index | {"_class_name": "DiTImagePipeline"}))
    assert torch.equal(sample(DiTImagePipeline.from_pretrained(tmp_path / "a"), ["bird", 4]), expected)
    export_pipeline(loaded, tmp_path / "a")
    assert not (tmp_path / "a" / "hf_dit_pipeline.py").exists()
    exported = DiffusionPipeline.from_pretrained(tmp_path / "a", trust_remote_code=True)
    exported.save_pretrained(tmp_path / "b")  # its class is that of the folder's own code
    assert not (tmp_path / "b" / "hf_dit_pipeline.py").exists()


def test_saved_repository_in_the_hub_cache(tmp_path):
    pipeline = small_pipeline(id2label=NAMES)
    commit = "0" * 40
    pipeline.save_pretrained(tmp_path / "models--someone--dit" / "snapshots" / commit)
    (tmp_path / "models--someone--dit" / "refs").mkdir()
    (tmp_path / "models--someone--dit" / "refs" / "main").write_text(commit)
    for loaded in (
        DiTImagePipeline.from_pretrained("someone/dit", cache_dir=tmp_path),
        DiffusionPipeline.from_pretrained("someone/dit", cache_dir=tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(sample(loaded, [0]), sample(pipeline, [0]))


def test_exported_repository_in_the_hub_cache(tmp_path):
    pipeline = small_pipeline(id2label=NAMES)
    commit = "0" * 40
    export_pipeline(pipeline, tmp_path / "models--someone--dit" / "snapshots" / commit)
    (tmp_path / "models--someone--dit" / "refs").mkdir()
    (tmp_path / "models--someone--dit" / "refs" / "main").write_text(commit)
    loaded = DiffusionPipeline.from_pretrained("someone/dit", cache_dir=tmp_path, trust_remote_code=True)
    assert torch.equal(sample(loaded, [0]), sample(pipeline, [0]))


def test_only_what_the_folder_can_load_is_exported(tmp_path):
    class OtherPipeline(DiTImagePipeline):
        pass

    class OtherModel(DiTModel):
        pass

    class OtherScheduler(DDIMScheduler):
        pass

    pipeline = small_pipeline()
    for other in (
        OtherPipeline(pipeline.transformer, pipeline.scheduler),
        DiTImagePipeline(OtherModel.from_name("dit-micro-2"), pipeline.scheduler),
        DiTImagePipeline(pipeline.transformer, OtherScheduler()),
    ):
        with pytest.raises(TypeError, match="Other"):
            export_pipeline(other, tmp_path)
    assert not list(tmp_path.iterdir())
