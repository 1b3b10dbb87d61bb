"""Each objective trains a small network on eight Gaussians in the plane, and the samples are of all eight."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from hf_dit.sampling.schedule import set_timesteps
from hf_dit.training.arguments import DiTTrainingArguments
from hf_dit.training.network import training_scheduler
from hf_dit.training.objectives.make import make_objective
from hf_dit.training.run import flow_times

ANGLES = 2 * math.pi * torch.arange(8) / 8
MODES = 1.2 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
STD = 0.15
BATCH = 1024

OBJECTIVES = {
    "epsilon": {},
    "sample": {"prediction_type": "sample"},
    "v_prediction": {"prediction_type": "v_prediction"},
    "flow": {"prediction_type": "flow"},
    "epsilon, min-SNR": {"snr_gamma": 5.0},
    "sample, min-SNR": {"prediction_type": "sample", "snr_gamma": 5.0},
    "v_prediction, min-SNR": {"prediction_type": "v_prediction", "snr_gamma": 5.0},
    "v_prediction, zero SNR": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "flow, logit-normal": {"prediction_type": "flow", "flow_times": "logit_normal"},
    "flow, shifted": {"prediction_type": "flow", "flow_shift": 2.0},
}


class Network(torch.nn.Module):
    """(B, 2, 1, 1) and (B,) -> (B, 2, 1, 1)"""

    def __init__(self, width=128):
        super().__init__()
        layers = [torch.nn.Linear(2 + 8 + 16, width)]
        for _ in range(2):
            layers += [torch.nn.SiLU(), torch.nn.Linear(width, width)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(width, 2))

    def forward(self, x, timestep):
        angle = timestep.float().view(-1, 1) / 1000 * math.pi * 2.0 ** torch.arange(-1, 7)
        place = (x.flatten(1)[..., None] * math.pi * torch.tensor([0.5, 1.0])).flatten(1)
        features = torch.cat([x.flatten(1), place.sin(), place.cos(), angle.sin(), angle.cos()], dim=1)
        return self.layers(features).view(-1, 2, 1, 1)


def trained(args, objective, steps=2000):
    torch.manual_seed(0)
    network, rng, draw = Network(), np.random.default_rng(0), flow_times(args)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        clean = (MODES[torch.randint(8, (BATCH,))] + STD * torch.randn(BATCH, 2)).view(-1, 2, 1, 1)
        noise = torch.randn_like(clean)
        if draw is None:
            timestep = torch.randint(1000, (BATCH,))
        else:
            timestep = 1000 * torch.from_numpy(draw.times(rng, BATCH)).float()
        output = network(objective.add_noise(clean, noise, timestep), timestep)
        objective.losses(output, clean, noise, timestep).loss.mean().backward()
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    return network


@torch.no_grad()
def samples(network, scheduler, count=4000, steps=200):
    if hasattr(scheduler, "betas"):
        scheduler = DDIMScheduler.from_config(scheduler.config)
    set_timesteps(scheduler, steps, None, torch.device("cpu"))
    x = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(count)), t, x).prev_sample
    return x.flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_samples_are_of_all_eight_modes(name):
    args = DiTTrainingArguments(**OBJECTIVES[name])
    scheduler = training_scheduler(args, False, latents=True)
    network = trained(args, make_objective(scheduler, args.snr_gamma))
    distance, mode = torch.cdist(samples(network, scheduler), MODES).min(dim=1)
    near = distance <= 3 * STD
    shares = torch.bincount(mode[near], minlength=8) / len(near)
    print(f"{name}: {near.float().mean():.3f} near, shares {shares.min():.3f} to {shares.max():.3f}")
    assert near.float().mean() >= 0.9
    assert 0.08 <= shares.min() <= shares.max() <= 0.17
