"""Train classifiers that survive wrong labels."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_MODULES = {
    "NoiseSpec": "noise",
    "RobustTrainer": "trainer",
    "RobustTrainingArguments": "trainer",
    "get_loss": "losses",
    "list_losses": "losses",
    "make_noisy_labels": "noise",
    "transition_matrix": "noise",
}


def __getattr__(name: str):
    # Loaded when asked for: importing the Trainer takes seconds, and making noisy labels needs none of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
