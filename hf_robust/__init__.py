"""Train classifiers that survive wrong labels."""

from .losses import get_loss, list_losses
from .noise import NoiseSpec, make_noisy_labels, transition_matrix
from .trainer import RobustTrainer, RobustTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "NoiseSpec",
    "RobustTrainer",
    "RobustTrainingArguments",
    "get_loss",
    "list_losses",
    "make_noisy_labels",
    "transition_matrix",
]
