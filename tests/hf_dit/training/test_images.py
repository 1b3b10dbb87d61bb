import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_dit.training.arguments import DataArguments
from hf_dit.training.files import FileSamples, fits_in_memory
from hf_dit.training.images import ImageFormat, image_format, load_images, open_rows, prepare_image
from hf_dit.training.stream import PixelSamples

from .small import COLOURS, picture, write_parquet


def test_the_middle_square_is_scaled():
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("red", (10, 0, 20, 10))
    pixels = prepare_image(wide, ImageFormat((4, 4), resized=True))
    assert pixels.shape == (3, 4, 4) and pixels.dtype == np.uint8
    assert (pixels == np.array([255, 0, 0])[:, None, None]).all()
    ramp = Image.fromarray(np.add.outer(np.arange(31) * 4, np.arange(21) * 3).astype(np.uint8)).convert("RGB")
    expected = ramp.crop((0, 5, 21, 26)).resize((7, 7), Image.Resampling.BICUBIC)
    assert np.array_equal(
        prepare_image(ramp, ImageFormat((7, 7), resized=True)), np.asarray(expected).transpose(2, 0, 1)
    )


def test_modes_become_rgb():
    form = ImageFormat((2, 2), resized=False)
    assert (prepare_image(Image.new("L", (2, 2), 77), form) == 77).all()
    assert (prepare_image(Image.new("1", (2, 2), 1), form) == 255).all()
    half = prepare_image(Image.new("RGBA", (2, 2), (200, 0, 0, 0)), form)
    assert (half == 255).all()  # nothing shows: white
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert (prepare_image(palette, form) == 255).all()
    for transparency in ({}, {"transparency": 0}):
        for mode in ("I", "I;16"):
            image = Image.new(mode, (2, 2), 32896)
            image.info |= transparency
            assert (prepare_image(image, form) == 128).all()
        image = Image.new("F", (2, 2))
        image.info |= transparency
        with pytest.raises(ValueError, match="mode 'F'; convert it to RGB"):
            prepare_image(image, form)


def test_sizes_that_are_refused(tmp_path):
    images = [picture((9, 9, 9), 12, 12), picture((9, 9, 9), 8, 12), picture((9, 9, 9), 7, 20)]
    folder = write_parquet(tmp_path / "sizes", {"picture": images}, {"picture": datasets.Image()})
    data = DataArguments(dataset_name=folder, unconditional=True, resolution=8)

    def load(**changes):
        changed = DataArguments(**{**vars(data), **changes})
        rows = open_rows(changed)
        return load_images(rows, image_format(rows, changed))

    with pytest.raises(ValueError, match="image 2: has 7x20 pixels .* fewer than --resolution 8"):
        load()
    assert load(allow_upscale=True).images.shape == (3, 3, 8, 8)
    assert load(resolution=7).images.shape == (3, 3, 7, 7)
    with pytest.raises(ValueError, match="image 1: has 8x12 .* no square"):
        load(center_crop=False)
    with pytest.raises(ValueError, match="image 1: has 8x12 .* the first image 12x12; .* --resolution"):
        load(resolution=None)


def test_a_folder_of_images_with_a_corrupt_one(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(3):
            picture(colour, 6, 9, seed=number).save(tmp_path / name / f"{number}.png")
    data = DataArguments(train_data_dir=str(tmp_path))
    rows = open_rows(data)
    loaded = load_images(rows, image_format(rows, data))
    assert rows.label_names == list(COLOURS) and loaded.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert loaded.images.shape == (9, 3, 6, 9) and loaded.skipped == 0  # no square, as it is
    assert np.array_equal(loaded.images[4].permute(1, 2, 0), np.asarray(picture(COLOURS["green"], 6, 9, seed=1)))

    broken = tmp_path / "green" / "1.png"
    broken.write_bytes(broken.read_bytes()[:90])
    rows = open_rows(data)
    with pytest.raises(ValueError, match=r"image 4 \(.*green.1\.png\) can't be decoded: .* --skip_corrupt"):
        load_images(rows, image_format(rows, data))
    loaded = load_images(rows, image_format(rows, data), skip_corrupt=True)
    assert loaded.skipped == 1 and loaded.labels.tolist() == [0] * 3 + [1] * 2 + [2] * 3


def test_labels_of_every_kind_and_bad_ones(tmp_path):
    image = {"img": datasets.Image()}
    images = [picture((9, 9, 9))] * 3

    def rows(name, columns, features, **changes):
        folder = write_parquet(tmp_path / name, {"img": images, **columns}, {**image, **features})
        return open_rows(DataArguments(dataset_name=folder, **changes))

    number, text = datasets.Value("int64"), datasets.Value("string")
    named = datasets.ClassLabel(names=["a", "b"])
    integers = rows("integers", {"labels": [2, 0, 2]}, {"labels": number})
    assert integers.labels.tolist() == [2, 0, 2] and integers.label_names == ["0", "1", "2"]
    strings = rows("strings", {"kind": ["z", "b", "z"]}, {"kind": text}, label_column_name="kind")
    assert strings.labels.tolist() == [1, 0, 1] and strings.label_names == ["b", "z"]
    two = {"fine": [0, 1, 0], "coarse": [1, 1, 0]}
    chosen = rows("two", two, {"fine": named, "coarse": named}, label_column_name="coarse")
    assert chosen.labels.tolist() == [1, 1, 0] and chosen.label_names == ["a", "b"]
    assert rows("none", {}, {}, unconditional=True).labels is None

    with pytest.raises(ValueError, match=r"more than one: \['fine', 'coarse'\]"):
        rows("two", two, {"fine": named, "coarse": named})
    with pytest.raises(ValueError, match="none in .*'img'"):
        rows("none", {}, {})
    with pytest.raises(ValueError, match="no label for image 1, and 2 in all"):
        rows("missing", {"label": [0, -1, None]}, {"label": named})
    with pytest.raises(ValueError, match="label_column_name must be one of"):
        rows("integers", {"labels": [2, 0, 2]}, {"labels": number}, label_column_name="label")
    with pytest.raises(ValueError, match="must hold class labels, integers or strings"):
        rows("floats", {"label": [0.5, 1.0, 2.0]}, {"label": datasets.Value("float32")})
    with pytest.raises(ValueError, match=r"in \[0, 3\]; got -2 to 3"):
        rows("negative", {"label": [-2, 0, 3]}, {"label": number})
    with pytest.raises(
        ValueError, match=r"image_column_name must be one of the columns of type Image, \['img'\]; got 'image'"
    ):
        rows("integers", {"labels": [2, 0, 2]}, {"labels": number}, image_column_name="image")


def test_a_share_of_the_images_is_of_all_classes(colours):
    data = DataArguments(dataset_name=colours, max_train_samples=12)
    rows, again = open_rows(data), open_rows(data)
    assert set(rows.labels) == {0, 1, 2} and list(rows.numbers) == list(again.numbers)
    everything = load_images(open_rows(DataArguments(dataset_name=colours)), ImageFormat((8, 8), False))
    some = load_images(rows, ImageFormat((8, 8), False))
    assert torch.equal(some.images, everything.images[rows.numbers])
    assert torch.equal(some.labels, everything.labels[rows.numbers])
    with pytest.raises(ValueError, match="max_train_samples=31 is more than the data set's 30"):
        open_rows(DataArguments(dataset_name=colours, max_train_samples=31))


def test_images_that_are_decoded_at_each_visit(tmp_path):
    buffer = io.BytesIO()
    picture((200, 10, 10), 20, 12).save(buffer, "PNG")
    broken = {"bytes": buffer.getvalue()[:60], "path": "c.png"}
    images = [picture((9, 90, 9), 16, 12), picture((9, 9, 200), 12, 12), broken, picture((50, 60, 70), 30, 14)]
    folder = write_parquet(tmp_path / "data", {"image": images}, {"image": datasets.Image()})
    data = DataArguments(dataset_name=folder, unconditional=True, resolution=8, skip_corrupt=True)
    rows = open_rows(data)
    form = image_format(rows, data)
    memory = PixelSamples(load_images(rows, form, skip_corrupt=True).images)
    visited = FileSamples(rows, form, skip_corrupt=True)
    assert visited.kept.tolist() == [0, 1, 3]
    assert (len(visited), visited.shape) == (len(memory), memory.shape) == (3, (3, 8, 8))
    rng = np.random.default_rng(0)
    for index in (2, 0, 1):
        for flip in (False, True):
            assert torch.equal(visited.draw(index, flip, rng), memory.draw(index, flip, rng))
    all_rows = FileSamples(rows, form)
    assert len(all_rows) == 4
    with pytest.raises(ValueError, match=r"image 2 \(c.png\) can't be decoded"):
        all_rows.draw(2, False, rng)
    bad = write_parquet(tmp_path / "bad", {"image": [broken]}, {"image": datasets.Image()})
    with pytest.raises(ValueError, match="none of the 1 images can be decoded"):
        FileSamples(open_rows(DataArguments(dataset_name=bad, unconditional=True)), form, skip_corrupt=True)


def test_what_fits_into_memory(monkeypatch):
    monkeypatch.setattr("hf_dit.training.files.memory_bytes", lambda: 4 * 3 * 64 * 100)
    form = ImageFormat((8, 8), resized=True)
    assert fits_in_memory(100, form)
    assert not fits_in_memory(101, form)
