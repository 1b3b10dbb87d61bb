"""The 8-layer CNN of the robust-loss papers, from Ma et al. 2020 (https://arxiv.org/abs/2006.13554) on."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple


class Cnn8Config(PreTrainedConfig):
    r"""
    Configuration of [`Cnn8ForImageClassification`].

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input images.
        image_size (`int`, *optional*, defaults to 32):
            Height and width of the input images, at least 8. The first linear layer fixes it.

    Raises:
        ValueError: a field is of another type, too small or too large.
    """

    model_type = "cnn8"

    num_channels: int = 3
    image_size: int = 32

    def __post_init__(self, **kwargs):
        # Before layers of that size take memory: a config may come from elsewhere. Three max-pools halve the image.
        for name, least, most in (("num_channels", 1, 4096), ("image_size", 8, 2048)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r:.60}")
        super().__post_init__(**kwargs)


class Cnn8ForImageClassification(PreTrainedModel):
    """
    Six 3x3 convolutions with bias (64, 64, pool, 128, 128, pool, 196, 196, pool) and two linear layers
    (256, num_labels); batch normalisation and ReLU after every layer but the last.

    Initialisation of the papers' code: convolutions He uniform (fan-in, ReLU), linear layers Xavier uniform, all
    biases PyTorch's default, uniform in +-1/sqrt(fan_in). A *training* batch needs at least two images.
    """

    config_class = Cnn8Config
    base_model_prefix = "cnn8"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # as in models of transformers, whose base says list

    def __init__(self, config: Cnn8Config):
        super().__init__(config)
        layers, channels = [], config.num_channels
        for width in (64, 128, 196):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear1 = nn.Linear(channels * (config.image_size // 8) ** 2, 256)
        self.norm = nn.BatchNorm1d(256)
        self.linear2 = nn.Linear(256, config.num_labels or 0)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if isinstance(module, nn.Conv2d):
                init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
            else:
                init.xavier_uniform_(module.weight)
            bound = 1 / math.sqrt(module.weight[0].numel())
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:  # (B, C, H, W) float, (B,) int64 -> loss () and logits (B, num_labels)
        """
        Args:
            pixel_values: `(B, num_channels, image_size, image_size)`, floating point, normalised.
            labels: `(B,)` int64 in `0..num_labels-1`; -100 is ignored. With labels, the output holds the loss.
            kwargs: passed to the loss; with `num_items_in_batch` it is the sum over the batch divided by that number.

        Raises:
            ValueError: `pixel_values` has another shape than the config says.
            TypeError: `pixel_values` is not floating point.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (self.config.num_channels, size, size):
            raise ValueError(
                f"pixel_values must have the shape (B, {self.config.num_channels}, {size}, {size}) of the model's "
                f"config, got {tuple(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise TypeError(f"pixel_values must be floating point (normalised images), got {pixel_values.dtype}")

        hidden = self.features(pixel_values).flatten(1)
        hidden = nn.functional.relu(self.norm(self.linear1(hidden)))
        logits = self.linear2(hidden)

        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)
