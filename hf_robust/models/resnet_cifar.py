"""Residual networks for CIFAR-sized images: 3x3 stem without max-pool, basic blocks, global average pool."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

MOST_CHANNELS, MOST_BLOCKS, MOST_WEIGHTS = 16_384, 2000, 2**32  # a config may come from elsewhere


class ResNetCifarConfig(PreTrainedConfig):
    r"""
    Configuration of [`ResNetCifarForImageClassification`]. The defaults give ResNet-20 of He et al. 2016, §4.2
    (https://arxiv.org/abs/1512.03385); `embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
    shortcut="B"` gives ResNet-18 with a 3x3 stem.

    Args:
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input images.
        embedding_size (`int`, *optional*, defaults to 16):
            Channels after the stem.
        hidden_sizes (`list[int]`, *optional*, defaults to `[16, 32, 64]`):
            Channels of each stage. Every stage but the first halves height and width.
        depths (`list[int]`, *optional*, defaults to `[3, 3, 3]`):
            Blocks of two convolutions in each stage.
        shortcut (`str`, *optional*, defaults to `"A"`):
            What bridges a change of shape. `"A"`: every second pixel, with zero channels added equally on both sides,
            no parameters. `"B"`: a 1x1 convolution with batch normalisation.

    Raises:
        ValueError: a size is no whole number, smaller than 1 or larger than any network's, `hidden_sizes` and `depths`
            differ in length, `shortcut` is unknown, or shortcut "A" cannot add an equal number of channels on both
            sides.
    """

    model_type = "resnet_cifar"

    num_channels: int = 3
    embedding_size: int = 16
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    depths: list[int] | tuple[int, ...] = (3, 3, 3)
    shortcut: str = "A"

    def __post_init__(self, **kwargs):
        for name in ("num_channels", "embedding_size", "hidden_sizes", "depths"):
            value, several = getattr(self, name), name in ("hidden_sizes", "depths")
            if several and not isinstance(value, list | tuple):
                raise ValueError(f"{name} must be a list with an entry for each stage, got {value!r:.60}")
            for size in value if several else [value]:
                if type(size) is not int or not 1 <= size <= MOST_CHANNELS:
                    raise ValueError(f"{name} must be whole numbers from 1 to {MOST_CHANNELS}, got {value!r:.60}")
        self.hidden_sizes = list(self.hidden_sizes)
        self.depths = list(self.depths)
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise ValueError(
                "hidden_sizes and depths must have one entry per stage, at least one, got "
                f"hidden_sizes={self.hidden_sizes!r:.60} and depths={self.depths!r:.60}"
            )
        weights = sum(18 * depth * size**2 for depth, size in zip(self.depths, self.hidden_sizes, strict=True))
        if sum(self.depths) > MOST_BLOCKS or weights > MOST_WEIGHTS:  # before they take memory
            raise ValueError(
                f"hidden_sizes={self.hidden_sizes!r:.60} and depths={self.depths!r:.60} make {sum(self.depths)} "
                f"blocks of {weights:.2g} weights, more than {MOST_BLOCKS} or {MOST_WEIGHTS:.2g}"
            )
        if self.shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' or 'B', got {self.shortcut!r:.60}")
        if self.shortcut == "A":
            sizes = [self.embedding_size, *self.hidden_sizes]
            for before, after in pairwise(sizes):
                if after < before or (after - before) % 2:
                    raise ValueError(
                        "shortcut='A' adds the same number of zero channels on both sides, so that each of "
                        "embedding_size and hidden_sizes must exceed the one before it by an even number (or equal "
                        f"it), got {sizes}"
                    )
        super().__post_init__(**kwargs)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut: (B, C, H, W) -> (B, C', H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2  # zero channels on each side under option A
        self.shortcut = None
        if shortcut == "B" and (stride != 1 or in_channels != out_channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = hidden
        if self.shortcut is not None:
            residual = self.shortcut(hidden)
        elif self.stride != 1 or self.padding != 0:
            residual = hidden[:, :, :: self.stride, :: self.stride]
            residual = nn.functional.pad(residual, (0, 0, 0, 0, self.padding, self.padding))
        hidden = nn.functional.relu(self.bn1(self.conv1(hidden)))
        return nn.functional.relu(self.bn2(self.conv2(hidden)) + residual)


class ResNetCifarForImageClassification(PreTrainedModel):
    """
    3x3 stem, stages `layer1`, `layer2`, ... of basic blocks, global average pool, linear head. Takes images of any
    size. 269,722 parameters for ResNet-20 and 11,173,962 for ResNet-18 at RGB and 10 classes.

    Initialisation: convolutions as in He et al. 2015 (https://arxiv.org/abs/1502.01852, eq. 10), normal with standard
    deviation sqrt(2 / fan_in); the head as PyTorch's own linear layer, uniform in +-1/sqrt(fan_in).
    """

    config_class = ResNetCifarConfig
    base_model_prefix = "resnet_cifar"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # as in models of transformers, whose base says list

    def __init__(self, config: ResNetCifarConfig):
        super().__init__(config)
        channels = config.embedding_size
        self.conv1 = nn.Conv2d(config.num_channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        # Numbered attributes instead of a ModuleList: the names of published checkpoints, layer1.0.conv1.weight etc.
        self.stages = [f"layer{number}" for number in range(1, len(config.depths) + 1)]
        for stage, width, depth in zip(self.stages, config.hidden_sizes, config.depths, strict=True):
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and stage != "layer1" else 1
                blocks.append(BasicBlock(channels, width, stride, config.shortcut))
                channels = width
            self.add_module(stage, nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, config.num_labels or 0)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            # He's scale would start the head so confident (0.5 on average for ResNet-20) that bounded losses, whose
            # gradient vanishes on confident mistakes, train slowly.
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:  # (B, C, H, W) float, (B,) int64 -> loss () and logits (B, num_labels)
        """
        Args:
            pixel_values: `(B, num_channels, H, W)`, floating point, normalised.
            labels: `(B,)` int64 in `0..num_labels-1`; -100 is ignored. With labels, the output holds the loss.
            kwargs: passed to the loss; with `num_items_in_batch` it is the sum over the batch divided by that number.

        Raises:
            ValueError: `pixel_values` has another number of dimensions or channels than the config says.
            TypeError: `pixel_values` is not floating point.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have the shape (B, {self.config.num_channels}, H, W) of the model's config, got "
                f"{tuple(pixel_values.shape)}"
            )
        if not pixel_values.is_floating_point():
            raise TypeError(f"pixel_values must be floating point (normalised images), got {pixel_values.dtype}")

        hidden = nn.functional.relu(self.bn1(self.conv1(pixel_values)))
        for stage in self.stages:
            hidden = self.get_submodule(stage)(hidden)
        logits = self.linear(hidden.mean(dim=(2, 3)))

        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss=loss, logits=logits)
