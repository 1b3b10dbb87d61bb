"""Sounds: a spectrogram transformer of transformers, through `RobustTrainer` alone."""

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTForAudioClassification

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.noise.draw import make_noisy_labels

PITCHES = (250.0, 500.0, 1000.0, 1750.0)  # hertz, one a class
RATE, SAMPLES, FRAMES, BINS = 8000, 2048, 16, 32  # up to 2 kHz


def spectrogram(wave):
    """Log magnitudes (FRAMES, BINS) of windows of 128 samples, standardised."""
    windows = wave.reshape(FRAMES, 128)
    magnitudes = np.abs(np.fft.rfft(windows * np.hanning(128), axis=1))[:, :BINS]
    logs = np.log(magnitudes + 0.1)
    return ((logs - logs.mean()) / logs.std()).astype(np.float32)


def tones(count, seed):
    """Tones of random loudness and phase, a few per cent out of tune, in noise; and their classes."""
    draw = np.random.default_rng(seed)
    classes = np.arange(count) % len(PITCHES)
    time = np.arange(SAMPLES) / RATE
    waves = [
        draw.uniform(0.3, 1) * np.sin(2 * np.pi * PITCHES[c] * draw.uniform(0.96, 1.04) * time + draw.uniform(0, 6))
        + draw.normal(0, 0.1, SAMPLES)
        for c in classes
    ]
    return torch.from_numpy(np.stack([spectrogram(wave) for wave in waves])), classes.astype(np.int64)


def rows(inputs, labels):
    return [
        {"input_values": x, "labels": int(y), "index": i} for i, (x, y) in enumerate(zip(inputs, labels, strict=True))
    ]


@pytest.mark.slow
def test_tones_are_told_apart_in_spite_of_wrong_labels(tmp_path):
    inputs, classes = tones(800, seed=0)
    given = make_noisy_labels(classes, "symmetric_30", num_classes=len(PITCHES), seed=0)
    assert np.mean(given != classes) == 0.3
    config = ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8,
        frequency_stride=8, time_stride=8, max_length=FRAMES, num_mel_bins=BINS, num_labels=len(PITCHES),
    )  # fmt: skip
    torch.manual_seed(0)
    args = RobustTrainingArguments(
        output_dir=str(tmp_path), loss="gce", optim="adamw_torch", learning_rate=2e-3, num_train_epochs=15,
        per_device_train_batch_size=32, use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = RobustTrainer(
        model=ASTForAudioClassification(config),
        args=args,
        train_dataset=rows(inputs, given),
        eval_dataset=rows(*tones(200, seed=1)),
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9
