"""CIFAR networks as transformers models. Importing this module registers them with the Auto classes."""

import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from ..noise.spec import CIFAR10_CLASSES
from .cnn8 import Cnn8Config, Cnn8ForImageClassification
from .cnn_small import CnnSmallConfig, CnnSmallForImageClassification
from .resnet_cifar import ResNetCifarConfig, ResNetCifarForImageClassification

__all__ = [
    "MODELS",
    "Cnn8Config",
    "Cnn8ForImageClassification",
    "CnnSmallConfig",
    "CnnSmallForImageClassification",
    "ResNetCifarConfig",
    "ResNetCifarForImageClassification",
    "convert_resnet20",
    "load_model",
    "make_image_processor",
    "saved_config",
]

for _config, _model in (
    (CnnSmallConfig, CnnSmallForImageClassification),
    (Cnn8Config, Cnn8ForImageClassification),
    (ResNetCifarConfig, ResNetCifarForImageClassification),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    # A saved model has its code beside it, for `trust_remote_code=True` where this package is not installed.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")

# name -> callable that makes a config; keyword arguments are the fields of that config
MODELS = {
    "cnn_small": CnnSmallConfig,
    "cnn8": Cnn8Config,
    "resnet18_cifar": partial(
        ResNetCifarConfig, embedding_size=64, hidden_sizes=(64, 128, 256, 512), depths=(2, 2, 2, 2), shortcut="B"
    ),
    "resnet20_cifar": partial(
        ResNetCifarConfig, embedding_size=16, hidden_sizes=(16, 32, 64), depths=(3, 3, 3), shortcut="A"
    ),
}


def load_model(
    name_or_path: str | os.PathLike,
    *,
    num_labels: int,
    id2label: Mapping[int, str] | None = None,
    image_size: int | None = None,
    trust_remote_code: bool = False,
    **config_overrides,
) -> PreTrainedModel:
    """A classifier for `num_labels` classes: a fresh network of `MODELS`, or one from a folder or the Hub.

    The names of `MODELS` come first, then folders, then Hub ids. Fresh weights are drawn from PyTorch's global
    generator (seed it first). Loaded weights are exact; only where the saved head has another number of classes is
    the head drawn afresh.

    Args:
        name_or_path: a key of `MODELS`, a folder written by `save_pretrained`, or a Hub id that
            `AutoModelForImageClassification` loads.
        num_labels: number of classes, at least 2.
        id2label: class names for the config, with exactly the keys `0..num_labels-1`. Without it a loaded model
            with `num_labels` classes keeps its own names, any other gets `LABEL_0`, ...
        image_size: height and width of the images, for fresh networks whose linear layer fixes it (`cnn_small`,
            `cnn8`; default 32). The others take any size, and loaded models bring theirs.
        trust_remote_code: as in `from_pretrained`.
        config_overrides: further fields of the config, e.g. `batch_norm=False` for `cnn_small`.

    Returns:
        A model with `model(pixel_values).logits` of shape `(B, num_labels)`. Fresh ones are in training mode, loaded
        ones in evaluation mode.

    Raises:
        TypeError: `name_or_path` or `num_labels` is of another type.
        ValueError: the name is neither one of `MODELS` nor loadable, `num_labels` is below 2, `id2label` has other
            keys, or a fresh network's config has no such field.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path must be a str or a path, got {type(name_or_path).__name__}")
    if not isinstance(num_labels, int) or isinstance(num_labels, bool):
        raise TypeError(f"num_labels must be an int, got {num_labels!r}")
    if num_labels < 2:
        raise ValueError(f"num_labels must be at least 2, got {num_labels}")
    labels = {}
    if id2label is not None:
        if set(id2label) != set(range(num_labels)):
            raise ValueError(f"id2label must have the keys 0..{num_labels - 1}, got {list(id2label)}")
        labels = {"id2label": dict(id2label), "label2id": {name: index for index, name in id2label.items()}}

    name = os.fspath(name_or_path)
    if name in MODELS:
        fields = MODELS[name]().to_dict()
        if unknown := sorted(set(config_overrides) - set(fields)):
            own = sorted(set(fields) - set(PreTrainedConfig().to_dict()))
            raise ValueError(f"model {name!r} has no config field {unknown}; its own fields are {own}")
        if image_size is not None and "image_size" in fields:
            config_overrides["image_size"] = image_size
        config = MODELS[name](**(labels or {"num_labels": num_labels}), **config_overrides)
        return AutoModelForImageClassification.from_config(config)

    saved = saved_config(name, trust_remote_code=trust_remote_code)
    return AutoModelForImageClassification.from_pretrained(
        name,
        num_labels=num_labels,
        **labels,
        # Only then: in a head of the right size a mismatch is damage that must not go unnoticed.
        ignore_mismatched_sizes=saved.num_labels != num_labels,
        trust_remote_code=trust_remote_code,
        **config_overrides,
    )


def saved_config(name_or_path: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a saved model, a folder or Hub id; a `ValueError` that lists `MODELS` where there is none."""
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {name_or_path!r} is neither one of {list(MODELS)} nor a folder or Hub id with a model: {error}"
        ) from error


def make_image_processor(mean: Sequence[float], std: Sequence[float], size: int) -> ViTImageProcessorPil:
    """The image processor that belongs to a trained model: RGB, resized to `size`, (x / 255 - mean) / std.

    It runs on Pillow and NumPy, without torchvision. An image that has the right size is not resampled. A saved one
    loads with `AutoImageProcessor.from_pretrained`, with torchvision's backend where that is installed.

    Args:
        mean: three channel means of images in [0, 1].
        std: three positive channel standard deviations of images in [0, 1].
        size: height and width of the result.

    Raises:
        ValueError: `mean` or `std` does not have three entries, `std` is not positive, or `size` is below 1.
    """
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != 3:
            raise ValueError(f"{name} must have three entries, one per RGB channel, got {list(value)}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {list(std)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"height": size, "width": size},
        rescale_factor=1 / 255,
        image_mean=[float(value) for value in mean],
        image_std=[float(value) for value in std],
    )


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
