"""An encoder without a network, for trying things out: where an image has which colours, and how rough it is there."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

THUMBNAIL, CELLS = 64, 4  # pixels of the reduced image, and squares along its side
ROUGHNESS = 4  # weight of differences of neighbours, which are smaller than colours


def tiny_features(images: Sequence[Image.Image]) -> np.ndarray:
    """(b, 80) float32 of RGB images: what a thumbnail shows, and nothing of what it means.

    Of each of 4 x 4 squares of the image, reduced to 64 x 64 pixels: the mean of each channel less 0.5, and the mean
    absolute difference of grey values to the pixel on the right and to the one below. It sees other colours, blur and
    noise, in milliseconds and with no weights to load. It does not see objects: its distances are no measure of
    quality, and nothing that is published is in them.
    """
    return np.stack([_tiny_vector(image) for image in images])


def _tiny_vector(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR), np.float32) / 255
    grey = pixels.mean(2)
    # The last column and row have no neighbour: their difference is 0.
    right = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    below = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    planes = np.dstack([pixels - 0.5, ROUGHNESS * right, ROUGHNESS * below])
    step = THUMBNAIL // CELLS
    return planes.reshape(CELLS, step, CELLS, step, -1).mean((1, 3)).reshape(-1)
