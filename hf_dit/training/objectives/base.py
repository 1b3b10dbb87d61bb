"""What the training loop asks of an objective."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ObjectiveLosses:
    """Losses of a batch, each (B,) float: `loss`, which is trained, the sum of its parts.

    mse: mean squared error of the prediction, times its weight.
    vb: term of the variational bound, in bits per dimension; None without a learned variance.
    """

    loss: Tensor
    mse: Tensor
    vb: Tensor | None


class Objective(ABC):
    """How a clean sample becomes a noisy one, and what a network's output for that costs.

    Attributes:
        prediction_type: what the network predicts, one of [`hf_dit.sampling.predictions.PREDICTIONS`].
    """

    prediction_type: str

    @abstractmethod
    def to(self, device: torch.device | str) -> "Objective":
        """The same with its tensors on a device."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The noisy samples.

        # (B, C, H, W) float, (B, C, H, W) float, (B,) -> (B, C, H, W)
        """

    @abstractmethod
    def losses(self, output: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor) -> ObjectiveLosses:
        """The losses of a network's output (B, C or 2 C, H, W) for `add_noise(clean, noise, timestep)`.

        Computed in float32 at least, whatever dtype the output has. `ValueError`: the shapes do not fit.
        """


def split_output(output: Tensor, clean: Tensor, noise: Tensor, *, variance: bool) -> tuple[Tensor, Tensor | None]:
    """Prediction and, in an output of twice the channels, what stands for the variance; float32 at least.

    Raises:
        ValueError: another shape, or twice the channels where no `variance` is taken.
    """
    batch, channels, *sides = clean.shape
    learned = variance and output.shape[1:2] == (2 * channels,)
    if noise.shape != clean.shape or output.shape != (batch, channels * (1 + learned), *sides):
        raise ValueError(
            f"output must have the shape of clean, {tuple(clean.shape)}, {'or twice its channels, ' * variance}and "
            f"noise the same; got output {tuple(output.shape)} and noise {tuple(noise.shape)}"
        )
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    prediction, *rest = output.split(channels, dim=1)
    return prediction, rest[0] if learned else None


def mean_of_sample(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,)"""
    return x.flatten(1).mean(dim=1)


def as_factor(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) in the dtype of `like`."""
    return values.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def same_tensors(item: Any, device: torch.device | str) -> dict:
    """The fields of a dataclass of tensors, on a device."""
    return {name: value.to(device) for name, value in vars(item).items()}
