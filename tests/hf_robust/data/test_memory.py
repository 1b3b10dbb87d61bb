import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from hf_robust.data.memory import EpochShuffleSampler, ImageTensorDataset, collate_batch
from hf_robust.data.transform import ImageTransform


def make_images(n=7, channels=3, height=6, width=5, seed=0):
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def make_dataset(n=7):
    return ImageTensorDataset(make_images(n), torch.arange(n) % 3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_yields_whole_batches_in_order(num_workers):
    dataset = make_dataset(7)
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate_batch, num_workers=num_workers)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), dataset.images)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), dataset.labels)
    assert torch.equal(torch.cat([batch["index"] for batch in batches]), torch.arange(7))
    assert batches[0]["pixel_values"].dtype == torch.uint8


def test_item_equals_its_place_in_a_batch():
    dataset = make_dataset(5)
    item = dataset[3]
    assert torch.equal(item["pixel_values"], dataset.images[3]) and item["labels"] == 0 and item["index"] == 3


def test_index_beyond_the_end_is_an_ignored_copy():
    dataset = make_dataset(5)
    (batch,) = dataset.__getitems__([4, 5, 11])
    assert batch["labels"].tolist() == [1, -100, -100]
    assert torch.equal(batch["pixel_values"], dataset.images[[4, 0, 1]])


@pytest.mark.parametrize(
    "images, labels, clean, named",
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), None, "images"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), None, "images"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), None, "at least one"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), None, "labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), None, "labels"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(2),
            "clean_labels",
        ),
    ],
)
def test_bad_tensors_are_named(images, labels, clean, named):
    with pytest.raises(ValueError, match=named):
        ImageTensorDataset(images, labels, clean)


def test_channel_statistics_match_numpy():
    dataset = make_dataset(9)
    mean, std = dataset.channel_statistics()
    pixels = dataset.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("n, multiple", [(1, 1), (10, 1), (10, 4), (12, 4), (3, 64), (100, 64)])
def test_sampler_visits_each_image_once_and_pads_beyond_the_end(n, multiple):
    sampler = EpochShuffleSampler(n, seed=3, epoch=lambda: 2, multiple=multiple)
    order = list(sampler)
    assert len(order) == len(sampler) and len(order) % multiple == 0 and len(order) - n < multiple
    assert sorted(order[:n]) == list(range(n))
    assert all(index >= n for index in order[n:])


def test_sampler_can_drop_the_last_short_group():
    assert len(list(EpochShuffleSampler(10, 0, lambda: 0, 4, drop_last=True))) == 8
    assert sorted(EpochShuffleSampler(8, 2**70, lambda: 0, 4, drop_last=True)) == list(range(8))


def test_iteration_ends():
    assert len(list(make_dataset(5))) == 5
    with pytest.raises(IndexError, match="0..4; got 5"):
        make_dataset(5)[5]


def test_sampler_order_depends_on_seed_and_epoch_and_on_nothing_else():
    def orders(seed, epoch, multiple=1):
        torch.rand(3)  # moves the global generator
        return tuple(EpochShuffleSampler(50, seed, lambda: epoch, multiple))[:50]

    distinct = {orders(seed, epoch) for seed, epoch in itertools.product(range(3), range(3))}
    assert len(distinct) == 9
    assert orders(1, 2) == orders(1, 2) == orders(1, 2, multiple=32)


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
