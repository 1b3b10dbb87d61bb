"""What a classifier has learned from noisy labels: pure metrics, and the callbacks that record them in training."""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback

from .losses.functional import IGNORE_INDEX


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and plain cross-entropy of logits (N, K) against labels (N,); labels of -100 are left out.

    Losses of different scale cannot be compared with each other; cross-entropy beside each of them can.
    """
    logits, labels = first_array(prediction.predictions), prediction.label_ids
    if logits.ndim != 2 or labels.ndim != 1:
        raise ValueError(f"expected logits (N, K) and labels (N,); got {logits.shape} and {labels.shape}")
    logits, labels = torch.as_tensor(logits).double(), torch.as_tensor(labels)
    counted = labels != IGNORE_INDEX
    logits, labels = logits[counted], labels[counted]
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
    }


def first_array(predictions: np.ndarray | tuple) -> np.ndarray:
    """The logits: models that also return hidden states give a tuple whose first entry they are."""
    return predictions[0] if isinstance(predictions, tuple) else predictions


def memorisation(predicted: np.ndarray, given: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """How the training images are fitted, all three int64 (N,), shares in 0..1.

    - `clean_accuracy`: share of all images predicted as their clean label;
    - `given_accuracy`: share of all images predicted as the given, possibly wrong, label;
    - `memorised`: share of the flipped images predicted as the wrong label they were given (absent without flips);
    - `recovered`: share of the flipped images predicted as their clean label (absent without flips).
    """
    flipped = given != clean
    shares = {
        "clean_accuracy": float(np.mean(predicted == clean)),
        "given_accuracy": float(np.mean(predicted == given)),
    }
    if flipped.any():
        shares["memorised"] = float(np.mean(predicted[flipped] == given[flipped]))
        shares["recovered"] = float(np.mean(predicted[flipped] == clean[flipped]))
    return shares


class MemorisationCallback(TrainerCallback):
    """After each evaluation, predicts the training images (evaluation mode, not augmented) and logs [`memorisation`].

    Args:
        trainer (`Trainer`): the trainer that this callback is added to.
        train_dataset (`Dataset`): must have `labels` and `clean_labels`, int64 (N,), in the order of its items.
    """

    def __init__(self, trainer: Trainer, train_dataset: Dataset):
        if train_dataset.clean_labels is None:
            raise ValueError("train_dataset has no clean_labels: what is memorised can't be told from what is learned")
        self.trainer, self.dataset = trainer, train_dataset

    def on_evaluate(self, args, state, control, **kwargs):
        logits = first_array(self.trainer.predict(self.dataset, metric_key_prefix="train").predictions)
        shares = memorisation(logits.argmax(-1), self.dataset.labels.numpy(), self.dataset.clean_labels.numpy())
        self.trainer.log({f"train_{name}": share for name, share in shares.items()})


class ThroughputCallback(TrainerCallback):
    """Images per second of training alone: data loading to optimizer step, without evaluation, saving and start-up.

    `images_per_second` is None before the second optimizer step; the first one warms up and is not counted.
    """

    def __init__(self, images_per_epoch: int, steps_per_epoch: float):
        self.images_per_step = images_per_epoch / steps_per_epoch
        self.steps, self.seconds, self._since = 0, 0.0, None

    @property
    def images_per_second(self) -> float | None:
        return self.steps * self.images_per_step / self.seconds if self.steps else None

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
            self.steps += 1
        self._since = now

    def _pause(self, args, state, control, **kwargs):
        self._since = None

    # What follows an evaluation or a save, and the first step of an epoch, is not a plain training step.
    on_evaluate = on_save = on_epoch_begin = _pause
