"""Streams: each image once a pass, the same order with any number of workers, nothing decoded in vain."""

import io
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_robust.data.geometry import Geometry
from hf_robust.data.stream import StreamedImages

COUNT = 23


def encoded(place):
    """An image whose colour is its place."""
    content = io.BytesIO()
    Image.new("RGB", (6 + place % 3, 8), (10 * place, 0, 255 - 10 * place)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def rows(count=COUNT, shards=3, labels=None):
    table = datasets.Dataset.from_dict(
        {
            "image": [encoded(place) for place in range(count)],
            "label": labels or [place % 4 for place in range(count)],
        },
        features=datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")}),
    )
    return table.to_iterable_dataset(num_shards=shards)


def stream(**options):
    given = options.pop("rows", None) or rows()
    return StreamedImages(given, "image", "label", "abcd", **{"buffer": 7, "seed": 1, **options})


def first(images, count, workers=0, batch=4):
    """What a loader gives: labels, and the places that the colours tell."""
    loader = DataLoader(images, batch, collate_fn=images.collate, num_workers=workers)
    batches = []
    for found in loader:
        batches.append(found)
        if len(batches) == count:
            return batches
    raise AssertionError("the stream ended")


def places(batches):
    return [round(value / 10) for batch in batches for value in batch["pixel_values"][:, 0, 0, 0].tolist()]


def test_each_pass_has_each_image_once_in_another_order():
    found = places(first(stream(geometry=Geometry((8, 8))), 3 * COUNT, batch=1))
    passes = [found[turn * COUNT : (turn + 1) * COUNT] for turn in range(3)]
    assert all(Counter(each) == Counter(range(COUNT)) for each in passes)
    assert passes[0] != passes[1] != passes[2] and passes[0] != sorted(passes[0])
    other = places(first(stream(geometry=Geometry((8, 8)), seed=2), COUNT, batch=1))
    assert other != passes[0]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("augment", [False, True])
def test_workers_change_nothing(workers, augment):
    options = {"geometry": Geometry.square(5), "augment": augment, "group": 4, "views": 1 + augment}
    alone = first(stream(**options), 15)
    shared = first(stream(**options), 15, workers)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])
    assert alone[0]["pixel_values"].shape == ((4, 2, 3, 5, 5) if augment else (4, 3, 5, 5))


def test_labels_stay_with_their_images():
    batches = first(stream(geometry=Geometry((8, 8))), 12)
    labels = [label for batch in batches for label in batch["labels"].tolist()]
    assert labels == [place % 4 for place in places(batches)]


def test_what_is_skipped_is_not_decoded():
    damaged = rows(8, 1, [0] * 8).map(
        lambda row, place: {**row, "image": {"bytes": b"none", "path": None}}, with_indices=True
    )
    batches = first(stream(rows=damaged, skipped=8), 2)
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(4, 3, 1, 1)] * 2
    with pytest.raises(ValueError, match="image 0 of the stream cannot be read"):
        first(stream(rows=damaged), 1)
    # Those that follow are what they would have been.
    whole, rest = (first(stream(geometry=Geometry((8, 8)), skipped=skipped), 5) for skipped in (0, 8))
    for one, other in zip(whole[2:], rest[2:], strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("label", [4, -1, None])
def test_a_label_that_is_no_class_is_named(label):
    named = r"labels must be in 0\.\.3; .* stands in column 'label', image"
    # Older `datasets` find themselves that a shard without any label is of another type.
    with pytest.raises(ValueError, match=f"{named}|label: null" if label is None else named):
        first(stream(rows=rows(5, 1, [0, 1, 2, 3, label]), geometry=Geometry((8, 8))), 2)


def test_a_stream_without_rows_is_named():
    empty = rows(5, 1, [0] * 5).filter(lambda row: False)
    with pytest.raises(ValueError, match="has no rows"):
        first(stream(rows=empty), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buffer": 0}, "buffer and group must be 1"),
        ({"group": 0}, "buffer and group"),
        ({"augment": True}, "geometry"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stream(**options)


def test_images_of_several_sizes_need_a_resolution():
    with pytest.raises(ValueError, match="must have one size"):
        first(stream(), 1)


def test_statistics_are_those_of_one_pass():
    pixels = np.stack([np.tile([10 * place, 0, 255 - 10 * place], (64, 1)) for place in range(COUNT)]) / 255
    means, deviations = stream(geometry=Geometry((8, 8))).channel_statistics()
    np.testing.assert_allclose(means, pixels.reshape(-1, 3).mean(0), atol=1e-12)
    np.testing.assert_allclose(deviations, pixels.reshape(-1, 3).std(0), atol=1e-12)
