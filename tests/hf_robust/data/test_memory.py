import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_robust.data.memory import EpochShuffleSampler, ImageTensorDataset, collate_batch
from tests.hf_robust.data.samples import make_dataset


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
