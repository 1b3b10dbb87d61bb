"""The resizing of clean-fid: Pillow's bicubic filter of each channel in floating point."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from evaluate_metrics.core.bicubic import bicubic_square, bicubic_weights
from evaluate_metrics.core.inception import resize

SIZES = [(48, 64), (299, 299), (300, 298), (700, 301), (1, 5), (3, 1), (2, 4000), (1201, 37)]


def by_pillow(pixels, side):
    """As Parmar et al. 2022 have it."""
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        for c in range(pixels.shape[2])
    ]
    return np.stack(channels)


@pytest.mark.parametrize("side", [299, 64, 1])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_pillow_s_filter_of_floating_point_numbers(size, side):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = torch.full((3, side, side), torch.nan)
    assert bicubic_square(torch.from_numpy(pixels), out) is out
    assert np.abs(out.numpy() - by_pillow(pixels, side)).max() < 3e-4  # of 255 levels


@pytest.mark.parametrize("size", SIZES)
def test_the_clean_resizing_cuts_to_the_levels_of_a_picture(size):
    pixels = np.random.default_rng(1).integers(0, 2, (*size, 3), dtype=np.uint8) * 255  # the filter goes beyond them
    expected = by_pillow(pixels, 299).clip(0, 255)
    found = resize(Image.fromarray(pixels), "clean").numpy() * 128 + 128
    assert np.abs(found - expected).max() < 3e-4 and found.min() >= 0 and found.max() <= 255


@pytest.mark.parametrize("resizing", ["clean", "tensorflow", "pytorch"])
def test_it_is_written_where_one_says(resizing):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    batch = torch.full((2, 3, 299, 299), -7.0)
    assert resize(image, resizing, batch[1]).data_ptr() == batch[1].data_ptr()
    assert (batch[0] == -7).all() and batch[1].equal(resize(image, resizing))


@pytest.mark.parametrize(("size", "side"), [(5, 12), (12, 5), (299, 299), (1, 7), (1000, 3)])
def test_weights_are_those_of_torch_in_double_precision(size, side):
    rows, weights = bicubic_weights(size, side)
    full = torch.zeros(side, size, dtype=torch.float64).scatter_add(1, rows, weights.double())
    eye = torch.eye(size, dtype=torch.float64)[None, None]
    expected = F.interpolate(eye, (side, size), mode="bicubic", antialias=True)[0, 0]
    torch.testing.assert_close(full, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(weights.sum(1), torch.ones(side))
