"""Parts of JPEG files that are decoded at a lower scale, against the whole decoded at its own."""

import io
import random

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from PIL import Image
from torch.utils.data import DataLoader

from hf_common.images import to_rgb
from hf_robust.data.draft import DraftedImage
from hf_robust.data.files import EncodedImages, ImageFileDataset
from hf_robust.data.geometry import Geometry, OpenedImage, crop_box, random_view
from hf_robust.data.labelled import EPOCH_SHIFT
from hf_robust.data.memory import EpochShuffleSampler, collate_batch
from hf_robust.data.stream import StreamedImages

SIZES = [(403, 301), (640, 475), (57, 49), (1021, 333), (250, 611)]  # (width, height)


def picture(width, height, seed=0, mode="RGB"):
    """Smooth enough to be seen in a few pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded_row(image, format="JPEG", orientation=None, **options):
    exif, file = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(file, format, **({"quality": 90} if format == "JPEG" else {}) | options)
    return {"bytes": file.getvalue(), "path": None}


def whole(encoded):
    return OpenedImage(to_rgb(encoded))


def levels_apart(one, other):
    return (one.float() - other.float()).abs().mean().item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "levels"), [(32, 5), (64, 3), (224, 1.5)])  # half a pixel of the scale counts less
def test_views_are_those_of_the_whole_image_to_few_levels(size, side, levels):
    encoded, geometry = encoded_row(picture(*size)), Geometry.square(side)
    for draw in range(8):
        drafted = random_view(DraftedImage(encoded, "image"), geometry, random.Random(draw))
        expected = random_view(whole(encoded), geometry, random.Random(draw))
        assert drafted.shape == expected.shape == (side, side, 3)
        assert levels_apart(drafted, expected) < levels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_upright_whatever_the_file_says(orientation, mode):
    encoded = encoded_row(picture(403, 301, mode=mode), orientation=orientation)
    drafted, expected, geometry = DraftedImage(encoded, "image"), whole(encoded), Geometry.square(32)
    assert drafted.size == expected.size == ((403, 301) if orientation > 4 else (301, 403))
    for draw in range(6):
        one, other = (random_view(image, geometry, random.Random(draw)) for image in (drafted, expected))
        assert levels_apart(one, other) < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_edges_are_right_to_half_a_pixel_of_the_scale(orientation, scale):
    """Of a ramp, whose values say where a pixel is."""
    width, height = 509, 303
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[:, :, 0] = (np.arange(width) / 2).astype(np.uint8)[None]
    ramp[:, :, 1] = (np.arange(height) / 2).astype(np.uint8)[:, None]
    encoded = encoded_row(Image.fromarray(ramp), orientation=orientation, quality=100, subsampling=0)
    drafted, expected = DraftedImage(encoded, "image"), whole(encoded)
    draw = random.Random(scale)
    for _ in range(10):
        top, left, part_height, part_width = crop_box(*drafted.size, draw)
        target = (part_height // scale, part_width // scale)
        if min(target) < 1 or min(part_height // target[0], part_width // target[1]) >= 2 * scale:
            continue
        part = drafted.part(top, left, part_height, part_width, target)
        exact = expected.part(top, left, part_height, part_width, target)
        assert target[0] <= part.shape[0] <= part_height / scale + 1
        assert target[1] <= part.shape[1] <= part_width / scale + 1
        for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            # The middle of a pixel of `scale` is half of it within its edge, which is half of it from the exact one.
            distance = (part[row, column, :2].float() - exact[row, column, :2].float()).abs()
            assert distance.max() <= scale / 2 + 2


def test_other_files_and_smaller_parts_are_decoded_as_always():
    big, geometry = picture(403, 301), Geometry.square(32)
    for encoded in (
        encoded_row(big, "PNG"),
        encoded_row(big, "WEBP", lossless=True),
        encoded_row(big.convert("RGBA"), "PNG"),
    ):
        drafted = random_view(DraftedImage(encoded, "image"), geometry, random.Random(0))
        assert torch.equal(drafted, random_view(whole(encoded), geometry, random.Random(0)))
    encoded = encoded_row(big)
    for target, same in (((200, 200), True), ((151, 100), True), ((150, 200), False)):
        part = DraftedImage(encoded, "image").part(0, 0, 301, 403, target)
        assert torch.equal(part, whole(encoded).part(0, 0, 301, 403, target)) is same


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    encoded = encoded_row(picture(403, 301))["bytes"]
    (tmp_path / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read as an image"):
        DraftedImage({"bytes": None, "path": str(tmp_path / "cut.jpg")}, "image 3").part(0, 0, 300, 400, (32, 32))
    for broken in ({"bytes": b"\xff\xd8\xff", "path": None}, {"bytes": None, "path": str(tmp_path / "none.jpg")}):
        with pytest.raises(ValueError, match=r"(image 3|none\.jpg) cannot be read as an image"):
            DraftedImage(broken, "image 3")
    with pytest.raises(ValueError, match="image 3 has neither bytes nor a path"):
        DraftedImage({"bytes": None, "path": None}, "image 3")


@pytest.fixture(scope="module")
def rows():
    encoded = [encoded_row(picture(*size, seed), orientation=1 + seed) for seed, size in enumerate(SIZES)]
    table = {"image": encoded, "label": [0, 1, 0, 1, 0]}
    features = Features({"image": ImageColumn(decode=False), "label": Dataset.from_dict(table).features["label"]})
    return Dataset.from_dict(table, features=features)


def files(rows, **options):
    read = EncodedImages(rows, "image", "photos")
    return ImageFileDataset(read, torch.tensor(rows["label"][:])).prepared(Geometry.square(24), **options)


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(rows):
    data, passes = files(rows, augment=True, draft=True), []
    for workers, size in ((0, 2), (2, 3)):
        sampler = EpochShuffleSampler(len(data), 0, lambda: 3, dated=True)
        loader = DataLoader(data, size, sampler=sampler, num_workers=workers, collate_fn=collate_batch)
        passes.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert torch.equal(*passes)
    keys = [place + (3 << EPOCH_SHIFT) for place in range(len(data))]
    (batch,), (two) = data.__getitems__(keys), files(rows, augment=True, draft=True, views=2).__getitems__(keys)[0]
    assert torch.equal(batch["pixel_values"], two["pixel_values"][:, 0])
    (part,) = data.subset(np.array([3, 1])).__getitems__([0 + (3 << EPOCH_SHIFT)])
    (exact,) = files(rows, augment=True).__getitems__(keys)
    assert part["pixel_values"].shape[-2:] == (24, 24)
    assert not torch.equal(batch["pixel_values"], exact["pixel_values"])
    assert levels_apart(batch["pixel_values"], exact["pixel_values"]) < 6


def test_evaluation_is_the_same_to_the_bit(rows):
    drafted, exact = files(rows, augment=True, draft=True), files(rows, augment=True)
    places = list(range(len(rows)))
    for one, other in ((drafted.still(), exact.still()), (files(rows, draft=True), files(rows))):
        assert torch.equal(one.__getitems__(places)[0]["pixel_values"], other.__getitems__(places)[0]["pixel_values"])
    assert drafted.channel_statistics() == exact.channel_statistics()


def test_streams(rows):
    stream = StreamedImages(rows.to_iterable_dataset(), "image", "label", ["a", "b"], buffer=5)
    geometry = Geometry.square(24)

    def batch(**options):
        prepared = stream.prepared(geometry, **options)
        images = iter(prepared)
        return prepared.collate([next(images) for _ in range(7)])["pixel_values"]

    drafted, exact = batch(augment=True, draft=True), batch(augment=True)
    assert not torch.equal(drafted, exact) and levels_apart(drafted, exact) < 6
    assert torch.equal(drafted, batch(augment=True, draft=True, views=2)[:, 0])
    assert torch.equal(batch(draft=True), batch())
