"""Labels and images that the tests draw noise for."""

import numpy as np


def uneven_labels(num_classes, seed=0):
    # Classes of 31, 44, 57, ... images, shuffled: no count is a round number.
    labels = np.repeat(np.arange(num_classes), 31 + 13 * np.arange(num_classes))
    return np.random.default_rng(seed).permutation(labels)


def pictures(count, seed=0, shape=(5, 7, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
