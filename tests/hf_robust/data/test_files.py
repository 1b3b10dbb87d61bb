"""Images that are decoded when their batch is due."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_robust.data.files import EncodedImages, ImageFileDataset
from hf_robust.data.geometry import Geometry
from hf_robust.data.labelled import EPOCH_SHIFT
from hf_robust.data.memory import EpochShuffleSampler, ImageTensorDataset, collate_batch

SIZES = [(20, 31), (33, 17), (24, 24), (40, 12), (18, 29), (25, 26), (16, 50)]


@pytest.fixture
def rows(tmp_path):
    draw, paths = np.random.default_rng(0), []
    for place, size in enumerate(SIZES):
        paths.append(str(tmp_path / f"{place}.png"))
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    table = datasets.Dataset.from_dict({"image": paths})
    return table.cast_column("image", datasets.Image(decode=False))


def images(rows, **options):
    labels = torch.arange(len(rows)) % 3
    return ImageFileDataset(EncodedImages(rows, "image", "photos"), labels, (labels + 1) % 3, **options)


def test_a_batch_holds_images_of_one_size(rows):
    geometry = Geometry.square(12)
    data = images(rows, geometry=geometry)
    (batch,) = data.__getitems__([5, 1, len(rows) + 2])
    assert batch["pixel_values"].shape == (3, 3, 12, 12) and batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].tolist() == [2, 1, -100] and batch["index"].tolist() == [5, 1, 2]
    with Image.open(rows[1]["image"]["path"]) as image:
        expected = geometry(torch.from_numpy(np.array(image))).permute(2, 0, 1)
    assert torch.equal(batch["pixel_values"][1], expected)
    assert torch.equal(data[1]["pixel_values"], expected) and len(data) == 7 and data.size == (12, 12)
    with pytest.raises(IndexError):
        data[7]
    with pytest.raises(ValueError, match=r"must have one size; got \[\(20, 31\), \(33, 17\)\]: give a resolution"):
        images(rows).__getitems__([0, 1])


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(rows):
    data = images(rows, geometry=Geometry.square(10), augment=True, seed=3)
    keys = [4 + (2 << EPOCH_SHIFT), 1 + (2 << EPOCH_SHIFT), 4 + (3 << EPOCH_SHIFT)]
    (first,), (alone,) = data.__getitems__(keys), data.__getitems__(keys[:1])
    assert torch.equal(first["pixel_values"][0], alone["pixel_values"][0])
    assert not torch.equal(first["pixel_values"][0], first["pixel_values"][2])
    assert first["index"].tolist() == [4, 1, 4]
    (other,) = images(rows, geometry=Geometry.square(10), augment=True, seed=4).__getitems__(keys[:1])
    assert not torch.equal(alone["pixel_values"], other["pixel_values"])
    (padded,) = data.__getitems__([4 + len(rows) + (2 << EPOCH_SHIFT)])
    assert padded["labels"].tolist() == [-100] and torch.equal(padded["pixel_values"][0], alone["pixel_values"][0])
    still = data.still()
    assert data.random and not still.random
    assert torch.equal(still[4]["pixel_values"], images(rows, geometry=Geometry.square(10))[4]["pixel_values"])


def test_views_are_draws_of_their_own(rows):
    data = images(rows, geometry=Geometry.square(10), augment=True, views=2)
    (batch,) = data.__getitems__([0, 3])
    assert batch["pixel_values"].shape == (2, 2, 3, 10, 10)
    (one,) = images(rows, geometry=Geometry.square(10), augment=True).__getitems__([0, 3])
    assert torch.equal(batch["pixel_values"][:, 0], one["pixel_values"])
    assert not torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 1])


def test_workers_change_nothing(rows):
    data, epoch = images(rows, geometry=Geometry.square(10), augment=True), [0]
    passes = {}
    for workers in (0, 2):
        sampler = EpochShuffleSampler(len(data), 0, lambda: epoch[0], dated=True)
        loader = DataLoader(
            data, 3, sampler=sampler, num_workers=workers, collate_fn=collate_batch, persistent_workers=workers > 0
        )
        for epoch[0] in (0, 1):
            batches = list(loader)
            passes[workers, epoch[0]] = torch.cat([batch["pixel_values"] for batch in batches])
            assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(7))
    assert all(torch.equal(passes[0, pass_], passes[2, pass_]) for pass_ in (0, 1))
    assert not torch.equal(passes[0, 0], passes[0, 1])


def test_a_worker_writes_to_the_memory_that_it_shares(rows):
    class Telling(ImageFileDataset):
        def __getitems__(self, indices):
            (batch,) = super().__getitems__(indices)
            return [{**batch, "shared": torch.tensor(batch["pixel_values"].is_shared())}]

    data = images(rows, geometry=Geometry.square(10))
    told = Telling(**{name: getattr(data, name) for name in ("read", "labels", "geometry")})
    for workers in (0, 1):
        (batch,) = DataLoader(told, 7, num_workers=workers, collate_fn=collate_batch)
        assert bool(batch["shared"]) is (workers > 0)
        assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch["pixel_values"], torch.stack([item["pixel_values"] for item in data]))


def test_parts_and_other_labels(rows):
    data = images(rows, geometry=Geometry.square(8))
    part = data.subset(np.array([False, True, False, True, True, False, False]))
    assert part.labels.tolist() == [1, 0, 1] and part.clean_labels.tolist() == [2, 1, 2]
    assert torch.equal(part[1]["pixel_values"], data[3]["pixel_values"])
    assert torch.equal(part.subset(np.array([2]))[0]["pixel_values"], data[4]["pixel_values"])
    other = data.with_labels(torch.full((7,), 2), None)
    assert other.given_and_clean()[0].tolist() == [2] * 7 and other.given_and_clean()[1] is None


def test_statistics_are_those_of_the_tensor_in_memory():
    pixels = torch.randint(0, 256, (9, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    memory = ImageTensorDataset(pixels, torch.arange(9))
    assert memory.as_files().channel_statistics() == memory.channel_statistics()
    assert memory.as_files().size == memory.size == (6, 5)
    (batch,), (other,) = memory.__getitems__([3, 10]), memory.as_files().__getitems__([3, 10])
    assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_a_damaged_file_is_named(rows, tmp_path):
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        images(rows, geometry=Geometry.square(8)).__getitems__([0, 2])


def test_random_parts_need_a_size(rows):
    with pytest.raises(ValueError, match="random parts of images need a geometry"):
        images(rows, augment=True)
    with pytest.raises(ValueError, match="at least one image"):
        images(rows).subset(np.zeros(7, bool))
