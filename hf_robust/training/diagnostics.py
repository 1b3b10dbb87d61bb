"""What a classifier has learned from noisy labels: pure metrics, and the callbacks that record them in training."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import EvalPrediction, TrainerCallback

from ..losses.base import IGNORE_INDEX


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and plain cross-entropy of logits (N, K) against labels (N,); labels of -100 are left out.

    Losses of different scale cannot be compared with each other; cross-entropy beside each of them can.
    """
    logits = torch.as_tensor(first_array(prediction.predictions)).double()
    labels = torch.as_tensor(prediction.label_ids)
    if logits.ndim != 2 or labels.ndim != 1:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected logits (N, K) and labels (N,); got {shapes}")
    counted = labels != IGNORE_INDEX
    logits, labels = logits[counted], labels[counted]
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "cross_entropy": F.cross_entropy(logits, labels).item(),
    }


def with_built_in(compute_metrics: Callable | None) -> Callable:
    """`compute_metrics` beside [`classification_metrics`], whose names it may take over."""

    def both(prediction: EvalPrediction) -> dict[str, float]:
        return classification_metrics(prediction) | (compute_metrics(prediction) if compute_metrics else {})

    return both


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


def loss_separation(losses: np.ndarray, flipped: np.ndarray, bins: int = 30) -> dict:
    """How far the losses of wrongly labelled images lie from those of the others.

    Args:
        losses: float (N,), per sample, for the given label.
        flipped: bool (N,), where the given label is wrong; some and not all.
        bins: of equal width from the least loss to the 99.5 % quantile; the last one holds what lies beyond.

    Returns:
        `separation_auc`: the probability that a flipped image has the larger loss, ties counted half; and
        `loss_histogram`: `edges` (bins + 1) and the counts `clean` and `flipped` (bins).
    """
    low, high = float(losses.min()), float(np.quantile(losses, 0.995))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts = [np.histogram(np.minimum(losses[group], edges[-1]), edges)[0].tolist() for group in (~flipped, flipped)]
    from sklearn.metrics import roc_auc_score  # half a second to import, at the first evaluation

    return {
        "separation_auc": float(roc_auc_score(flipped, losses)),
        "loss_histogram": {"edges": edges.tolist(), "clean": counts[0], "flipped": counts[1]},
    }


class MemorisationCallback(TrainerCallback):
    """After each evaluation, predicts the training images (evaluation mode, not augmented) and logs [`memorisation`]
    and, of the training loss, [`loss_separation`]. The histogram is in the log history alone, not shown.

    Args:
        trainer (`RobustTrainer`): the trainer that this callback is added to.
        train_dataset (`Dataset`): must have `labels` and `clean_labels`, int64 (N,), in the order of its items.

    Attributes:
        logits: (N, K), of the last evaluation; None before the first.
    """

    def __init__(self, trainer: Any, train_dataset: Any):
        if train_dataset.clean_labels is None:
            raise ValueError("train_dataset has no clean_labels: what is memorised can't be told from what is learned")
        self.trainer, self.dataset = trainer, train_dataset
        self.logits: np.ndarray | None = None

    def on_evaluate(self, args, state, control, **kwargs):
        self.logits = logits = first_array(self.trainer.predict(self.dataset, metric_key_prefix="train").predictions)
        given, clean = self.dataset.labels, self.dataset.clean_labels
        shares = memorisation(logits.argmax(-1), given.numpy(), clean.numpy())
        flipped = (given != clean).numpy()
        histogram = None
        if flipped.any() and not flipped.all():
            losses = self.trainer.loss.eval()(torch.as_tensor(logits).double(), given, reduction="none")
            separation = loss_separation(losses.numpy(), flipped)
            histogram = separation.pop("loss_histogram")
            shares |= separation
        self.trainer.log({f"train_{name}": share for name, share in shares.items()})
        if histogram is not None:
            state.log_history[-1]["loss_histogram"] = histogram


class ThroughputCallback(TrainerCallback):
    """Images per second of training alone: data loading to optimizer step, without evaluation, saving and start-up.

    `images_per_second` is None before the second optimizer step; the first one warms up and is not counted.
    """

    def __init__(self, images_per_epoch: int, steps_per_epoch: float):
        self.images_per_step = images_per_epoch / steps_per_epoch
        self.steps, self.seconds = 0, 0.0
        self._since: float | None = None

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
