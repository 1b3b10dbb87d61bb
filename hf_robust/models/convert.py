"""Checkpoints of others as networks of ours."""

from collections.abc import Mapping

import torch

from ..noise.cifar10 import CIFAR10_CLASSES
from .load import load_model
from .resnet_cifar import ResNetCifarForImageClassification


def convert_resnet20(state_dict: Mapping[str, torch.Tensor]) -> ResNetCifarForImageClassification:
    """The CIFAR-10 ResNet-20 of He et al. 2016 from a checkpoint that names its tensors `conv1`, `bn1`,
    `layer{1,2,3}.{0,1,2}.{conv1,bn1,conv2,bn2}` and `linear`.

    Args:
        state_dict: the tensors of all weights, biases and running statistics; `num_batches_tracked` may be absent.

    Returns:
        The model in evaluation mode, with the class names of CIFAR-10.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    model = load_model("resnet20_cifar", num_labels=10, id2label=dict(enumerate(CIFAR10_CLASSES)))
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise ValueError(f"state_dict is not a CIFAR-10 ResNet-20: {error}") from error
    return model.eval()
