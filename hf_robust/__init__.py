"""Train classifiers that survive wrong labels."""

from typing import TYPE_CHECKING

from hf_common import __version__ as __version__
from hf_common.lazy import lazy_names

if TYPE_CHECKING:
    from .data.load import add_noise, load_image_splits
    from .data.memory import ImageTensorDataset
    from .data.transform import ImageTransform
    from .losses import get_loss, list_losses, register_loss
    from .models import load_model
    from .noise.draw import make_noisy_labels, transition_matrix
    from .noise.kinds import register_noise
    from .noise.spec import NoiseSpec
    from .training.arguments import RobustTrainingArguments
    from .training.trainer import RobustTrainer

__all__ = [
    "ImageTensorDataset",
    "ImageTransform",
    "NoiseSpec",
    "RobustTrainer",
    "RobustTrainingArguments",
    "add_noise",
    "get_loss",
    "list_losses",
    "load_image_splits",
    "load_model",
    "make_noisy_labels",
    "register_loss",
    "register_noise",
    "transition_matrix",
]

# Those that a result may depend on.
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "numpy")

_MODULES = {
    "ImageTensorDataset": "data.memory",
    "ImageTransform": "data.transform",
    "NoiseSpec": "noise.spec",
    "RobustTrainer": "training.trainer",
    "RobustTrainingArguments": "training.arguments",
    "add_noise": "data.load",
    "get_loss": "losses",
    "list_losses": "losses",
    "load_image_splits": "data.load",
    "load_model": "models",
    "make_noisy_labels": "noise.draw",
    "register_loss": "losses",
    "register_noise": "noise.kinds",
    "transition_matrix": "noise.draw",
}
# Importing the Trainer takes seconds, and making noisy labels needs none of it.
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
