"""The endless stream of training samples, in which everything random is a function of the seed and the position.

Position p is visit p of the training: epoch p // N, and in it place p % N of that epoch's order of the N images.
Order, timestep, noise, label drop, mirror image and latent are drawn by counter-based generators (Philox) keyed by the
seed and the position, never by a generator with a history. So a resumed training needs no state and skips nothing, and
the samples of an optimizer step are the same however they are split into processes and micro-batches.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# What a generator is for: it keeps draws of one kind from being those of another.
ORDER, SAMPLE, DROPOUT, TIME = range(4)


def position_rng(seed: int, purpose: int, index: int) -> np.random.Generator:
    """The generator of one index (an epoch, or a position) for one purpose; `seed` and `index` in [0, 2^64)."""
    key = np.array([seed, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, purpose]))


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of the images in an epoch: (length,) int64, each of 0..length-1 once."""
    return position_rng(seed, ORDER, epoch).permutation(length)


class CleanSamples(Protocol):
    """Samples without noise: images or latents."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def draw(self, index: int, flip: bool, rng: np.random.Generator) -> Tensor:
        """The sample (C, H, W) float32 of image `index`, mirrored from left to right if `flip` says so."""


class PixelSamples:
    """Images (N, 3, H, W) uint8 as samples in [-1, 1]."""

    def __init__(self, images: Tensor):
        self._images = images
        channels, height, width = images.shape[1:]
        self.shape = channels, height, width

    def __len__(self) -> int:
        return len(self._images)

    def draw(self, index: int, flip: bool, rng: np.random.Generator) -> Tensor:
        pixels = self._images[index].float() / 127.5 - 1
        return pixels.flip(2) if flip else pixels


class TrainingStream(torch.utils.data.Dataset):
    """What is trained on at each position of the stream.

    `stream[p]` is a dict: `clean` and `noise`, (C, H, W) float32; `timestep`, an int in [0, num_timesteps), or with
    `draw_time` a float32 tensor () in (0, num_timesteps]; with labels, `label` and `drop`, whether the label is to
    become the null class.

    Args:
        samples: the N images or latents.
        labels: (N,) int64, or None for an unconditional model.
        seed: of everything random, 0 or more.
        num_timesteps: of the noise schedule.
        class_dropout_prob: share of the positions whose label is dropped.
        random_flip: mirror half of the visits.
        draw_time: draws the share of `num_timesteps`, in (0, 1], of a position from a generator of its own, so that
            all else is what it is without it. Default: integers, all as likely.
    """

    def __init__(
        self,
        samples: CleanSamples,
        labels: Tensor | None,
        *,
        seed: int,
        num_timesteps: int = 1000,
        class_dropout_prob: float = 0.1,
        random_flip: bool = False,
        draw_time: Callable[[np.random.Generator], float] | None = None,
    ):
        if labels is not None and len(labels) != len(samples):
            raise ValueError(f"labels must be {len(samples)}, one a sample; got {len(labels)}")
        self.samples, self.labels, self.seed = samples, labels, seed
        self._num_timesteps, self._class_dropout_prob = num_timesteps, class_dropout_prob
        self._random_flip, self._draw_time = random_flip, draw_time
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def index(self, position: int) -> int:
        """Which of the N samples is visited at a position."""
        epoch, place = divmod(position, len(self.samples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self.seed, epoch, len(self.samples))
        return int(self._order[place])

    def __getitem__(self, position: int) -> dict:
        index = self.index(position)
        rng = position_rng(self.seed, SAMPLE, position)
        # Always all of them and in this order: a flag changes what it names and no other draw.
        timestep: int | Tensor = int(rng.integers(self._num_timesteps))
        drop, flip = rng.random(), rng.random()
        if self._draw_time is not None:
            time = self._draw_time(position_rng(self.seed, TIME, position))
            timestep = torch.tensor(time * self._num_timesteps, dtype=torch.float32)
        noise = torch.from_numpy(rng.standard_normal(self.samples.shape, dtype=np.float32))
        clean = self.samples.draw(index, self._random_flip and flip < 0.5, rng)
        item = {"clean": clean, "noise": noise, "timestep": timestep}
        if self.labels is not None:
            item |= {"label": int(self.labels[index]), "drop": drop < self._class_dropout_prob}
        return item


class StepBatches:
    """The positions of each micro-batch of one process, a batch sampler for a `DataLoader`.

    Optimizer step s takes the positions [s G, (s + 1) G) with G = batch_size x accumulation x processes; micro-batch k
    of process r the piece number k x processes + r of them. accelerate's own sharding would deal out whole batches of
    a finite loader, so that the samples of a step depended on the number of processes, and go through the skipped
    part at a resume.

    Args:
        steps: the optimizer steps to take, such as `range(first, last)`.
        batch_size: of one micro-batch.
        accumulation, processes: micro-batches a step, and processes.
        process: the index of this one.
    """

    def __init__(self, steps: range, *, batch_size: int, accumulation: int = 1, processes: int = 1, process: int = 0):
        self._steps, self._batch_size, self._accumulation = steps, batch_size, accumulation
        self._processes, self._process = processes, process

    def __len__(self) -> int:
        return len(self._steps) * self._accumulation

    def __iter__(self) -> Iterator[range]:
        pieces = self._accumulation * self._processes
        for step in self._steps:
            for micro in range(self._accumulation):
                start = (step * pieces + micro * self._processes + self._process) * self._batch_size
                yield range(start, start + self._batch_size)
