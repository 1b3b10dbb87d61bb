"""In which order training samples come, so that any number of processes sees the same steps."""

from collections.abc import Callable, Sized
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ..data.labelled import LabelledSamples
from ..data.memory import EpochShuffleSampler
from ..data.padded import PaddedSamples
from .arguments import RobustTrainingArguments


def needs_padding(dataset: Any, args: RobustTrainingArguments) -> bool:
    """Whether accelerate would repeat samples of this training set, to give each process as many."""
    return (
        args.world_size > 1
        and args.train_sampling_strategy == "random"
        and not args.dataloader_drop_last
        and isinstance(dataset, Sized)
        and not isinstance(dataset, (LabelledSamples, IterableDataset))
    )


def train_sampler(
    dataset: Any, args: RobustTrainingArguments, batch_size: int, epoch: Callable[[], int]
) -> EpochShuffleSampler | None:
    """The sampler of a training set of ours; None for one that `Trainer` orders by itself.

    Args:
        batch_size: of one process.
    """
    if args.train_sampling_strategy != "random":
        return None
    multiple = args.world_size * batch_size
    seed = args.seed if args.data_seed is None else args.data_seed
    if isinstance(dataset, PaddedSamples):  # in the order of one process, which is Trainer's own
        seed = torch.initial_seed() if args.data_seed is None else seed
        return EpochShuffleSampler(len(dataset), seed, epoch, multiple, stock=True)
    if not isinstance(dataset, LabelledSamples):
        return None
    if args.dataloader_drop_last:  # what is left of an optimizer step, however it is made up of batches
        multiple *= args.gradient_accumulation_steps
    elif args.world_size == 1:  # which takes the short last batch as it is; several must each get full ones
        multiple = 1
    return EpochShuffleSampler(len(dataset), seed, epoch, multiple, args.dataloader_drop_last, dated=dataset.random)
