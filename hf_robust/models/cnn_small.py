"""A two-convolution network for CIFAR-sized images: small enough for a CPU, large enough to memorise wrong labels."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

MOST_WEIGHTS = 2**32


class CnnSmallConfig(PreTrainedConfig):
    r"""
    Configuration of [`CnnSmallForImageClassification`].

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input images.
        image_size (`int`, *optional*, defaults to 32):
            Height and width of the input images, at least 2. The first linear layer fixes it.
        batch_norm (`bool`, *optional*, defaults to `True`):
            Batch normalisation after both convolutions and after the first linear layer. Without it the network is
            the bare conv-pool-conv-linear-linear, on which bounded losses such as NCE+RCE train poorly.
        width (`int`, *optional*, defaults to 1):
            By which the 32 and 64 channels and the 128 hidden units are multiplied.

    Raises:
        ValueError: a field is of another type, too small or too large.
    """

    model_type = "cnn_small"

    num_channels: int = 3
    image_size: int = 32
    batch_norm: bool = True
    width: int = 1

    def __post_init__(self, **kwargs):
        # One max-pool halves the image.
        for name, least, most in (("num_channels", 1, 4096), ("image_size", 2, 4096), ("width", 1, 256)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r:.60}")
        if not isinstance(self.batch_norm, bool):
            raise ValueError(f"batch_norm must be True or False, got {self.batch_norm!r:.60}")
        weights = 64 * self.width * ((self.image_size // 2 + 1) // 2) ** 2 * 128 * self.width
        if weights > MOST_WEIGHTS:  # before they take memory: a config may come from elsewhere
            raise ValueError(
                f"image_size={self.image_size} and width={self.width} make a layer of {weights:.2g} weights, "
                f"more than {MOST_WEIGHTS:.2g}"
            )
        super().__post_init__(**kwargs)


class CnnSmallForImageClassification(PreTrainedModel):
    """
    conv3x3(32) - ReLU - max-pool 2x2 - conv3x3(64, stride 2) - ReLU - linear(128) - ReLU - linear(num_labels), with
    batch normalisation before every ReLU if `config.batch_norm`; channels and hidden units times `config.width`.

    545,322 parameters at 32x32 RGB and 10 classes with batch normalisation, 545,098 without. Weights and biases
    start as PyTorch's own layers do: uniform in +-1/sqrt(fan_in). With batch normalisation a *training* batch needs
    at least two images.
    """

    config_class = CnnSmallConfig
    base_model_prefix = "cnn_small"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # as in models of transformers, whose base says list

    def __init__(self, config: CnnSmallConfig):
        super().__init__(config)
        # The mean subtraction of a batch norm cancels any bias before it.
        bias = not config.batch_norm
        first, second, hidden = 32 * config.width, 64 * config.width, 128 * config.width
        self.conv1 = nn.Conv2d(config.num_channels, first, kernel_size=3, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(first) if config.batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(second) if config.batch_norm else nn.Identity()
        side = (config.image_size // 2 + 1) // 2  # after the pool, and after the strided convolution
        self.linear1 = nn.Linear(second * side**2, hidden, bias=bias)
        self.norm3 = nn.BatchNorm1d(hidden) if config.batch_norm else nn.Identity()
        self.linear2 = nn.Linear(hidden, config.num_labels or 0)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # What `reset_parameters` of both layers does; repeated here because the base class would draw from
            # N(0, 0.02) instead, and because transformers skips tensors that came from a checkpoint.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
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

        hidden = nn.functional.relu(self.norm1(self.conv1(pixel_values)))
        hidden = nn.functional.max_pool2d(hidden, 2)
        hidden = nn.functional.relu(self.norm2(self.conv2(hidden)))
        hidden = nn.functional.relu(self.norm3(self.linear1(hidden.flatten(1))))
        logits = self.linear2(hidden)

        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)
