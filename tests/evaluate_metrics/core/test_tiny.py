"""The encoder without a network, against what its numbers are said to be."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.tiny import tiny_features


def test_the_numbers_are_means_of_colours_and_of_differences():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = tiny_features([Image.fromarray(pixels)])[0].reshape(4, 4, 5)
    values = pixels / 255.0
    square = values[16:32, 48:64]  # the second row of squares, the last column
    np.testing.assert_allclose(found[1, 3, :3], square.mean((0, 1)) - 0.5, atol=1e-6)
    grey = values.mean(2)
    right = sum(abs(grey[y, x + 1] - grey[y, x]) for y in range(16, 32) for x in range(16, 32)) / 256
    below = sum(abs(grey[y + 1, x] - grey[y, x]) for y in range(16, 32) for x in range(16, 32)) / 256
    np.testing.assert_allclose(found[1, 1, 3:], (4 * right, 4 * below), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 64), (500, 333)])
def test_images_of_any_size_are_seen(size):
    (vector,) = tiny_features([Image.new("RGB", size, (255, 0, 51))])
    assert vector.shape == (80,) and vector.dtype == np.float32
    np.testing.assert_allclose(vector.reshape(16, 5), np.tile([0.5, -0.5, -0.3, 0, 0], (16, 1)), atol=1e-6)


def test_it_goes_by_its_name_and_sees_blur():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sharp, blurred = make_encoder("tiny", normalize=False).encode([noise, noise.filter(ImageFilter.GaussianBlur(2))])
    assert (blurred.reshape(16, 5)[:, 3:] < 0.5 * sharp.reshape(16, 5)[:, 3:]).all()
    with pytest.raises(ValueError, match="device and dtype are for models"):
        make_encoder("tiny", device="cpu")
