"""What image there is at each number: its label, its noise, the batch that it is sampled in."""

from collections.abc import Sequence

import numpy as np


def image_labels(
    count: int, class_ids: Sequence[int], class_sampling: str, class_counts: Sequence[int] | None, seed: int
) -> np.ndarray:  # -> (count,) int64
    """The label of each image, which does not depend on how many images there are.

    Args:
        class_ids: those that occur.
        class_sampling: `"balanced"`: in turn, without a seed; of `class_counts`, next is the class that lags behind
            its share most. `"drawn"`: one uniform number an image, of a PCG64 that the noise does not come from.
        class_counts: how often each of `class_ids` is beside the others; None: equally often.

    Raises:
        ValueError: another number of `class_counts` than of `class_ids`.
    """
    ids = np.asarray(class_ids, np.int64)
    if class_counts is not None and len(class_counts) != len(ids):
        raise ValueError(f"class_counts must be one for each of the {len(ids)} classes; got {len(class_counts)}")
    shares = np.ones(len(ids), np.int64) if class_counts is None else np.asarray(class_counts, np.int64)
    if class_sampling == "drawn":
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1,))))
        ends = np.cumsum(shares) / shares.sum()
        return ids[np.searchsorted(ends, stream.random(count), side="right")]
    if class_counts is None:
        return ids[np.arange(count) % len(ids)]
    return ids[_in_turn(shares, count)]


def _in_turn(shares: np.ndarray, count: int) -> np.ndarray:  # (K,) int64 -> (count,) positions
    """Whole numbers alone: `lag` is the sum of all shares times what a class should have had and has not."""
    total, lag = int(shares.sum()), np.zeros(len(shares), np.int64)
    places = np.empty(count, np.int64)
    for number in range(count):
        lag += shares
        places[number] = lag.argmax()  # the first of equals
        lag[places[number]] -= total
    return places


def batch_starts(num_images: int, batch_size: int) -> range:
    """The number of the first image of each batch. The last batch is sampled whole, and what is too much left out."""
    return range(0, num_images, batch_size)


def class_counts_of(labels: np.ndarray, num_classes: int) -> list[int]:
    """How many images of each class there are."""
    return np.bincount(labels, minlength=num_classes).tolist()
