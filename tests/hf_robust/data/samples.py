"""Images that the tests of the data room share."""

import torch

from hf_robust.data.memory import ImageTensorDataset


def make_images(n=7, channels=3, height=6, width=5, seed=0):
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def make_dataset(n=7):
    return ImageTensorDataset(make_images(n), torch.arange(n) % 3)
