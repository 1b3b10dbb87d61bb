"""The networks by name, and where they stand; known without the libraries that they are made of.

A network is a module of `hf_robust.models` and a row here.
"""

from typing import NamedTuple


class Network(NamedTuple):
    """A config and a model of one module, with values for fields of the config."""

    module: str
    config: str
    model: str
    fields: dict = {}


_RESNET = "resnet_cifar", "ResNetCifarConfig", "ResNetCifarForImageClassification"

NETWORKS: dict[str, Network] = {
    "cnn_small": Network("cnn_small", "CnnSmallConfig", "CnnSmallForImageClassification"),
    "cnn8": Network("cnn8", "Cnn8Config", "Cnn8ForImageClassification"),
    "resnet18_cifar": Network(
        *_RESNET,
        {"embedding_size": 64, "hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "shortcut": "B"},
    ),
    "resnet20_cifar": Network(
        *_RESNET, {"embedding_size": 16, "hidden_sizes": (16, 32, 64), "depths": (3, 3, 3), "shortcut": "A"}
    ),
}
