"""A CIFAR-10 ResNet-20 as an encoder of 32 x 32 images, its 64 pooled features.

    RESNET20_DIR=cifar10-resnet20 python scripts/evaluate_images.py --encoders resnet20_encoder:encode ...
    RESNET20_DIR=cifar10-resnet20 python scripts/find_label_errors.py --features resnet20_encoder:encode_layers ...

The folder in RESNET20_DIR holds the checkpoint that scripts/convert_resnet20.py takes, as model.safetensors. The
features are of use for images like CIFAR-10's alone, and their values are comparable with no published ones.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_robust.models import convert_resnet20

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


@torch.inference_mode()
def encode(images: list[Image.Image]) -> Tensor:  # b RGB images -> (b, 64) float32
    """Images of another size are resized to 32 x 32 by Pillow's bicubic filter."""
    pixels = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in images])
    pixels = (torch.from_numpy(pixels) / 255 - MEAN) / STD
    return _network()(pixels.permute(0, 3, 1, 2)).logits


@torch.inference_mode()
def encode_layers(images: list[Image.Image]) -> Tensor:  # b RGB images -> (b, 320) float32
    """For photographs, resized to 64 x 64: the pooled features, and mean and deviation of four layers' channels."""
    pixels = np.stack([np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)) for image in images])
    pixels = ((torch.from_numpy(pixels) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    network, maps = _network(), []
    layers = dict(network.named_modules())
    hooks = [
        layers[name].register_forward_hook(lambda module, inputs, output: maps.append(output.flatten(2)))
        for name in ("conv1", "layer1", "layer2", "layer3")
    ]
    try:
        pooled = network(pixels).logits
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([pooled, *(part for layer in maps for part in (layer.mean(2), layer.std(2)))], 1)


@cache
def _network() -> nn.Module:
    network = convert_resnet20(load_file(Path(os.environ["RESNET20_DIR"]) / "model.safetensors")).eval()
    network.linear = nn.Identity()
    return network
