"""Any map-style data set, longer than it is: what pads the last batch of several processes counts for nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..losses.base import IGNORE_INDEX

LABELS = ("labels", "label", "label_ids")  # that collators know


class PaddedSamples(Dataset):
    """N samples of which an index i >= N gives sample i mod N with its label ignored (-100).

    Args:
        dataset: with `__len__` and `__getitem__`, whose samples are dicts with a label, or pairs (input, label).
        label_name: of the label in a dict, if it has another name than `labels`, `label` or `label_ids`.

    Raises:
        ValueError: its first sample is no such.
    """

    def __init__(self, dataset: Any, label_name: str = "labels"):
        self.dataset, self.names = dataset, (label_name, *LABELS)
        self._ignored(dataset[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index % len(self)]
        return sample if index < len(self) else self._ignored(sample)

    def __getitems__(self, indices: Sequence[int]) -> list:
        places = [index % len(self) for index in indices]
        several = getattr(self.dataset, "__getitems__", None)  # as a DataLoader asks
        samples = several(places) if several else [self.dataset[place] for place in places]
        pairs = zip(samples, indices, strict=True)
        return [sample if index < len(self) else self._ignored(sample) for sample, index in pairs]

    def _ignored(self, sample: Any) -> Any:
        if isinstance(sample, (tuple, list)) and len(sample) == 2:
            pair = sample[0], _ignored_label(sample[1])
            return pair if isinstance(sample, tuple) else list(pair)
        found = [name for name in self.names if isinstance(sample, Mapping) and sample.get(name) is not None]
        if not found:
            keys = f"a dict of {sorted(map(str, sample))}" if isinstance(sample, Mapping) else type(sample).__name__
            raise ValueError(
                f"the samples of train_dataset must be dicts with one of {list(dict.fromkeys(self.names))}, or pairs "
                f"(input, label); got {keys[:120]}"
            )
        return {**sample, **{name: _ignored_label(sample[name]) for name in found}}


def _ignored_label(label: Any) -> Any:
    """Of the label's own kind, so that collators put it beside others."""
    if isinstance(label, torch.Tensor) and not label.is_floating_point():
        return torch.full_like(label, IGNORE_INDEX, dtype=torch.int64)
    return IGNORE_INDEX
