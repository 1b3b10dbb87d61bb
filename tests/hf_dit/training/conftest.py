import datasets
import pytest
import torch
from diffusers import AutoencoderKL

from .small import COLOURS, picture, write_parquet


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of Parquet: 30 images of 8 x 8 pixels, sorted by their three classes."""
    labels = [label for label in range(3) for _ in range(10)]
    columns = {
        "image": [picture(list(COLOURS.values())[label], seed=i) for i, label in enumerate(labels)],
        "label": labels,
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))}
    return write_parquet(tmp_path_factory.mktemp("colours"), columns, features)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A folder with an autoencoder that halves the sides: 8 x 8 x 3 -> 4 x 4 x 4."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        scaling_factor=0.3,
        shift_factor=2.0,
    ).save_pretrained(folder)
    return str(folder)
