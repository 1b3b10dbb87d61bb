"""CIFAR networks as transformers models. Importing this module registers them with the Auto classes."""

from importlib import import_module

from transformers import AutoConfig, AutoModelForImageClassification

from ..networks import NETWORKS
from .cnn8 import Cnn8Config, Cnn8ForImageClassification
from .cnn_small import CnnSmallConfig, CnnSmallForImageClassification
from .convert import convert_resnet20
from .load import MODELS, load_model, saved_config
from .processor import make_image_processor
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

for _network in NETWORKS.values():
    _module = import_module(f".{_network.module}", __name__)
    _config, _model = getattr(_module, _network.config), getattr(_module, _network.model)
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)
    # A saved model has its code beside it, for `trust_remote_code=True` where this package is not installed.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForImageClassification")
