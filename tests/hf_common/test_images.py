"""One rule for all three packages: what an image file shows is what is trained on and what is scored."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.encoders import make_encoder
from hf_common.images import central_square, image_column, resized_middle, resized_square, to_rgb
from hf_dit.training.images import DataArguments, image_format, load_images, open_rows
from hf_robust import load_image_splits

SIDE = 8


def flat(mode, colour, **info):
    image = Image.new(mode, (SIDE, SIDE), colour)
    image.info |= info
    return image


def grey16(value):
    return Image.fromarray(np.full((SIDE, SIDE), value, np.uint16))


def turned():
    """Upper half red, lower half blue, stored on its side with the orientation that turns it back."""
    image = Image.new("RGB", (SIDE, SIDE), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, SIDE, SIDE // 2))
    stored = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    buffer = io.BytesIO()
    stored.save(buffer, format="PNG", exif=exif)
    return buffer.getvalue()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **{key: image.info[key] for key in ("transparency",) if key in image.info})
    return buffer.getvalue()


# Name -> the file's bytes, and the colour of the pixel at the top left.
FILES = {
    "rgb": (png(flat("RGB", (10, 20, 30))), (10, 20, 30)),
    "grey": (png(flat("L", 77)), (77, 77, 77)),
    "one bit": (png(flat("1", 1)), (255, 255, 255)),
    "16 bits": (png(grey16(32896)), (128, 128, 128)),
    "16 bits, nearly black": (png(grey16(257)), (1, 1, 1)),
    "16 bits, white": (png(grey16(65535)), (255, 255, 255)),
    "red, all transparent": (png(flat("RGBA", (255, 0, 0, 0))), (255, 255, 255)),
    "red, half transparent": (png(flat("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
    "grey, half transparent": (png(flat("LA", (0, 128))), (127, 127, 127)),
    "palette": (png(flat("RGB", (9, 8, 7)).quantize(2)), (9, 8, 7)),
    "palette, transparent": (png(flat("P", 0, transparency=0)), (255, 255, 255)),
    "rgb, one colour transparent": (png(flat("RGB", (1, 2, 3), transparency=(1, 2, 3))), (255, 255, 255)),
    "on its side": (turned(), (255, 0, 0)),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set whose training and test images are `FILES`, as Parquet, which keeps the bytes."""
    folder = tmp_path_factory.mktemp("images")
    rows = {"image": [{"bytes": data, "path": None} for data, _ in FILES.values()], "label": [0, 1] * 6 + [0]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<f4", ">f4"])
def test_arrays_of_either_order_of_bytes(kind):
    values = np.array([[0, 257, 65535]])
    array = (values if "u" in kind else values / 65535).astype(kind)
    np.testing.assert_array_equal(np.asarray(to_rgb(array))[..., 0], [[0, 1, 255]])


def robust(folder):
    splits = load_image_splits(folder)
    assert torch.equal(splits.train.images, splits.test.images)
    return splits.train.images.permute(0, 2, 3, 1).numpy()


def dit(folder):
    data = DataArguments(dataset_name=folder)
    rows = open_rows(data)
    return load_images(rows, image_format(rows, data)).images.permute(0, 2, 3, 1).numpy()


def metrics(folder):
    encoder = make_encoder(
        lambda images: torch.stack([torch.from_numpy(np.array(x)).flatten().float() for x in images])
    )
    rows = datasets.load_dataset(folder, split="train")["image"]
    assert encoder.normalized
    vectors = encoder.encode(rows).reshape(-1, SIDE, SIDE, 3).numpy()
    return np.rint(vectors / np.abs(vectors).max(axis=(1, 2, 3), keepdims=True) * 255)


@pytest.mark.parametrize("load", [robust, dit])
def test_all_files_in_training(load, folder):
    images = load(folder)
    assert images.shape == (len(FILES), SIDE, SIDE, 3)
    for (name, (_, colour)), image in zip(FILES.items(), images, strict=True):
        assert tuple(image[0, 0].tolist()) == colour, name
    assert images[-1, -1, 0].tolist() == [0, 0, 255]


def test_all_files_in_scoring(folder):
    for (name, (data, colour)), scored in zip(FILES.items(), metrics(folder), strict=True):
        brightest = max(colour)  # vectors are of length 1: colours in proportion
        expected = [255 * value / brightest for value in colour]
        assert scored[0, 0].tolist() == pytest.approx(expected, abs=1), name
        assert to_rgb({"bytes": data}).getpixel((0, 0)) == to_rgb(Image.open(io.BytesIO(data))).getpixel((0, 0))
        assert to_rgb({"bytes": data}).getpixel((0, 0)) == colour, name


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(FILES["rgb"][0][:45])
    flat("F", 0.5).save(tmp_path / "float.tiff")
    for name in ("broken.png", "float.tiff"):
        for given in (str(tmp_path / name), tmp_path / name, {"bytes": None, "path": str(tmp_path / name)}):
            with pytest.raises(ValueError, match=name):
                to_rgb(given)
    with pytest.raises(
        ValueError, match=r"^image 3 cannot be read as an image: it is of no format that Pillow knows$"
    ):
        to_rgb({"bytes": b"no image", "path": None}, "image 3")
    rows = {"image": [{"bytes": FILES["rgb"][0], "path": None}, {"bytes": b"no image", "path": "b.png"}]}
    rows["label"] = [0, 1]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    for load in (robust, dit):
        with pytest.raises(ValueError, match=r"b\.png|image 1"):
            load(str(tmp_path))


def test_modes_without_a_way_to_rgb_name_the_file(tmp_path):
    for mode in ("F", "LAB", "La"):
        if mode == "La":
            image = Image.new(mode, (3, 2))
            with pytest.raises(ValueError, match="^image 3 has the mode 'La'; convert it to RGB: "):
                to_rgb(image, "image 3")
            continue
        path = tmp_path / f"{mode}.tiff"
        Image.new(mode, (3, 2)).save(path)
        for given in (path, str(path), Image.open(path), {"bytes": path.read_bytes(), "path": str(path)}):
            with pytest.raises(ValueError, match=f"{mode}.tiff.* has the mode '{mode}'; convert it to RGB"):
                to_rgb(given, "image 3")
        with pytest.raises(ValueError, match=f"^image 3 has the mode '{mode}'"):
            to_rgb(path.read_bytes(), "image 3")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_a_file(kind):
    for data, *_ in FILES.values():
        assert list(to_rgb(kind(data)).getdata()) == list(to_rgb({"bytes": data}).getdata())
    with pytest.raises(ValueError, match="^image 3 cannot be read as an image"):
        to_rgb(kind(b"no image"), "image 3")


@pytest.mark.parametrize("dtype", ["float32", "float64", "tensor"])
def test_rounding_beyond_0_and_1_is_cut(dtype):
    def image_of(low, high):
        array = np.array([[low, 0.5, high]] * 2, "float32" if dtype == "tensor" else dtype)
        return torch.from_numpy(array) if dtype == "tensor" else array

    exact = list(to_rgb(image_of(0, 1)).getdata())
    assert exact[0] == (0, 0, 0) and exact[2] == (255, 255, 255)
    for low, high in ((-1e-7, 1), (0, 1.0000001), (-9e-7, 1 + 9e-7)):
        assert list(to_rgb(image_of(low, high)).getdata()) == exact
    for low, high in ((-2e-6, 1), (0, 1 + 2e-6), (-1, 1), (0, np.inf), (np.nan, 1)):
        with pytest.raises(ValueError, match=r"image must have values in \[0, 1\] as float"):
            to_rgb(image_of(low, high))


def test_a_file_inside_an_archive(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("in/red.png", png(flat("RGB", (255, 0, 0))))
    assert to_rgb({"bytes": None, "path": f"zip://in/red.png::{tmp_path / 'all.zip'}"}).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="none.png"):
        to_rgb({"bytes": None, "path": f"zip://in/none.png::{tmp_path / 'all.zip'}"})


@pytest.mark.parametrize(("size", "box"), [((7, 4), (1, 0)), ((4, 7), (0, 1)), ((5, 5), (0, 0)), ((9, 4), (2, 0))])
def test_the_middle_square(size, box):
    width, height = size
    image = Image.fromarray(np.arange(width * height, dtype=np.uint8).reshape(height, width)).convert("RGB")
    square = central_square(image)
    side = min(size)
    assert square.size == (side, side) and square.getpixel((0, 0)) == image.getpixel(box)
    assert np.array_equal(np.asarray(resized_square(image, side)), np.asarray(square))
    assert resized_square(image, 3).size == (3, 3)
    assert np.array_equal(np.asarray(resized_middle(image, 3, 3)), np.asarray(resized_square(image, 3)))


@pytest.mark.parametrize(("box", "wanted"), [((0, 1, 6, 3), (2, 6)), ((2, 0, 4, 4), (4, 2)), ((0, 0, 6, 4), (4, 6))])
def test_the_middle_in_a_ratio(box, wanted):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).convert("RGB")
    assert np.array_equal(np.asarray(resized_middle(image, *wanted)), np.asarray(image.crop(box)))
    assert resized_middle(image, 1, 50).size == (50, 1)


def test_the_column_of_images():
    image, text = datasets.Image(), datasets.Value("string")
    assert image_column({"a": text, "b": image}) == "b"
    assert image_column({"a": image, "b": image}, "a") == "a"
    for columns, name in (({"a": image, "b": image}, None), ({"a": text}, None), ({"a": text, "b": image}, "a")):
        with pytest.raises(ValueError, match="image_column_name must be one of the columns of type Image"):
            image_column(columns, name)
