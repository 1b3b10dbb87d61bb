import os

import numpy as np
import pytest

from hf_dit.training.arguments import DataArguments
from hf_dit.training.images import image_format, load_images, open_rows

LANDSCAPES = os.environ.get("LANDSCAPES_DIR")


@pytest.mark.data
@pytest.mark.skipif(LANDSCAPES is None, reason="LANDSCAPES_DIR is not set")
def test_photographs_are_read_with_their_classes():
    data = DataArguments(dataset_name=LANDSCAPES, resolution=32)
    rows = open_rows(data)
    assert rows.label_names == ["forest", "glacier", "mountain", "sea"]
    assert np.bincount(rows.labels).tolist() == [2161, 2351, 2456, 2168]

    rows = open_rows(DataArguments(dataset_name=LANDSCAPES, resolution=32, max_train_samples=400))
    loaded = load_images(rows, image_format(rows, data))
    assert loaded.images.shape == (400, 3, 32, 32) and loaded.skipped == 0
    means = [loaded.images[loaded.labels == label].float().mean((0, 2, 3)) for label in range(4)]
    red, green, blue = zip(*(mean.tolist() for mean in means), strict=True)
    assert green[0] > blue[0]  # forests are green
    assert all(blue[label] > red[label] for label in (1, 3))  # ice and water are blue
