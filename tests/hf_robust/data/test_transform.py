import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import DeiTImageProcessorPil

from hf_robust.data.load import load_image_splits
from hf_robust.data.transform import ImageTransform, image_transform
from tests.hf_robust.data.samples import make_images


def test_plain_transform_is_the_formula():
    images = make_images()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    got = ImageTransform(mean, std, crop_padding=2, horizontal_flip=True)(images)
    expected = (images.numpy() / 255 - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def reference_crops(image, padding):
    """Every crop of the zero-padded image, plain and mirrored, by slicing."""
    padded = F.pad(image, [padding] * 4)
    _, height, width = image.shape
    for top, left in itertools.product(range(2 * padding + 1), repeat=2):
        crop = padded[:, top : top + height, left : left + width]
        yield (top, left, 0), crop
        yield (top, left, 1), crop.flip(-1)


def test_augmented_images_are_crops_of_their_own_and_evenly_spread():
    """One image under 9,000 indices: each result is one of the 2 * 3 * 3 crops, each with its share of 1/18."""
    image = make_images(1)[0]
    table = {crop.numpy().tobytes(): key for key, crop in reference_crops(image, 1)}
    assert len(table) == 18
    n = 9000
    transform = ImageTransform((0, 0, 0), (1 / 255,) * 3, crop_padding=1, horizontal_flip=True, seed=5)
    out = transform(image.expand(n, -1, -1, -1), index=torch.arange(n), epoch=1).round().to(torch.uint8)
    drawn = [table[sample.numpy().tobytes()] for sample in out]
    counts = np.array([drawn.count(key) for key in table.values()])
    chi_square = ((counts - n / 18) ** 2 / (n / 18)).sum()
    assert chi_square < 40.8  # 17 degrees of freedom, p = 0.001; the hash is fixed, so this never varies


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    images = make_images(40, height=32, width=32)
    index = torch.arange(40) * 7

    def draw(seed=0, epoch=0, part=slice(None)):
        transform = ImageTransform((0.5,) * 3, (0.5,) * 3, crop_padding=4, horizontal_flip=True, seed=seed)
        torch.rand(1)
        return transform(images[part], index=index[part], epoch=epoch)

    whole = draw()
    assert torch.equal(whole, torch.cat([draw(part=slice(0, 13)), draw(part=slice(13, None))]))
    assert not torch.equal(whole, draw(epoch=1)) and not torch.equal(whole, draw(seed=1))


def test_views_are_draws_of_their_own_and_the_first_is_the_plain_one():
    images, index = make_images(64, height=6, width=6), torch.arange(64)
    transform = ImageTransform([0.5] * 3, [0.2] * 3, crop_padding=2, horizontal_flip=True)
    assert transform.random and not ImageTransform([0.5] * 3, [0.2] * 3).random
    first, second = (transform(images, index=index, epoch=3, view=view) for view in (0, 1))
    assert torch.equal(first, transform(images, index=index, epoch=3))
    same = (first == second).flatten(1).all(1).double().mean()
    assert same < 0.15  # one pair of draws in 50 is the same
    assert not torch.equal(second, transform(images, index=index, epoch=4))
    assert torch.equal(second[5:9], transform(images[5:9], index=index[5:9], epoch=3, view=1))


def test_pixels_are_channels_last():
    transform = ImageTransform([0.5] * 3, [0.2] * 3, crop_padding=1)
    for options in ({}, {"index": torch.arange(7)}):
        assert transform(make_images(), **options).is_contiguous(memory_format=torch.channels_last)


def test_no_shift_and_no_flip_is_the_plain_transform():
    images = make_images()
    transform = ImageTransform((0.5,) * 3, (0.5,) * 3)
    assert torch.equal(transform(images, index=torch.arange(7), epoch=3), transform(images))


def test_resizes_for_a_model_of_another_size():
    images = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    got = ImageTransform((0, 0, 0), (1, 1, 1), size=20)(images)
    assert got.shape == (2, 3, 20, 20)
    torch.testing.assert_close(got, torch.full_like(got, 0.2))


def test_bad_transform_arguments_are_named():
    with pytest.raises(ValueError, match="std"):
        ImageTransform((0.5,), (0.0,))
    with pytest.raises(ValueError, match="crop_padding"):
        ImageTransform((0.5,), (1.0,), crop_padding=-1)
    with pytest.raises(ValueError, match="uint8"):
        ImageTransform((0.5,) * 3, (1.0,) * 3)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="3"):
        ImageTransform((0.5,) * 3, (1.0,) * 3)(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


def test_transform_does_what_the_processor_does():
    """Resize, central crop and normalisation of a processor with all three, against its own result."""
    processor = DeiTImageProcessorPil(size={"height": 40, "width": 40}, crop_size={"height": 36, "width": 36})
    # Of medium contrast: Pillow cuts the overshoot of its first pass off at 0 and 255, before the second.
    images = load_image_splits("digits", max_train_samples=5).train.images // 2 + 64
    expected = processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt").pixel_values
    got = image_transform(processor)(images)
    assert got.shape == expected.shape == (5, 3, 36, 36)
    # The processor rounds to 8 bits after resizing.
    torch.testing.assert_close(got, expected, atol=1.5 / 255 / 0.5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"size": {"height": 32, "width": 64}},
        {"resample": 0},
        {"rescale_factor": 1.0},
        {"do_center_crop": True, "crop_size": {"height": 8, "width": 9}},
    ],
)
def test_processors_that_do_something_else_are_refused(changes):
    processor = DeiTImageProcessorPil(**({"do_center_crop": False} | changes))
    with pytest.raises(ValueError, match="image processor"):
        image_transform(processor)
