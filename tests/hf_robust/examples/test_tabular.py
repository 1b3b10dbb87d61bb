"""Rows of numbers: a network of one's own, through `RobustTrainer` alone."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.noise.draw import make_noisy_labels


class Layers(nn.Module):
    """30 numbers to 2 logits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, features, labels=None):
        return self.layers(features)


def rows(features, labels):
    return [{"features": x, "labels": int(y)} for x, y in zip(features, labels, strict=True)]


def accuracy(folder, train, given, test, labels, seed):
    torch.manual_seed(seed)
    args = RobustTrainingArguments(
        output_dir=str(folder), loss="nce+rce", optim="adamw_torch", learning_rate=3e-3, weight_decay=5.0,
        num_train_epochs=40,
        per_device_train_batch_size=32, seed=seed, use_cpu=True, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = RobustTrainer(
        model=Layers(), args=args, train_dataset=rows(train, given), eval_dataset=rows(test, labels)
    )
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


@pytest.mark.slow
def test_wrong_labels_cost_little(tmp_path):
    features, labels = load_breast_cancer(return_X_y=True)
    train, test, clean, truth = train_test_split(features, labels, test_size=0.3, random_state=0, stratify=labels)
    scaler = StandardScaler().fit(train)
    train, test = (torch.from_numpy(scaler.transform(part).astype(np.float32)) for part in (train, test))
    without, with_wrong = [], []
    for seed in range(4):  # one draw of the noise costs from less than nothing to 4 points
        noisy = make_noisy_labels(clean.astype(np.int64), "symmetric_30", num_classes=2, seed=seed)
        assert 0.29 < np.mean(noisy != clean) < 0.31
        with_wrong.append(accuracy(tmp_path, train, noisy, test, truth, seed))
        without.append(accuracy(tmp_path, train, clean, test, truth, seed))
    assert np.mean(without) > 0.94 and np.mean(without) - np.mean(with_wrong) <= 0.03
