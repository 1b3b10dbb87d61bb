"""What the forms hold, by those who read them: numpy, `datasets`, the reading of a training."""

import io
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_dit.generation.forms import file_names, write_forms
from hf_dit.generation.parts import Parts, SampledBatch
from hf_dit.training.arguments import DataArguments
from hf_dit.training.images import image_format, load_images, open_rows

NAMES = ["tench, Tinca tinca", "cat", "a/b: c"]


def made(folder, count=11, batch_size=4, shape=(6, 5, 3), seed=0):
    parts = Parts(folder / "parts", count, batch_size, shape)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    for start in parts.starts:
        parts.write(start, SampledBatch(pixels[start : start + batch_size], 0.5, "cpu"))
    return parts, pixels, np.arange(12) % 3  # of whole batches


def forms(folder, parts, labels, *names, class_folders=False, images_per_shard=4):
    return write_forms(
        names, parts, folder, labels, NAMES, class_folders=class_folders, images_per_shard=images_per_shard
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_has_the_same_pixels(tmp_path, channels):
    parts, pixels, labels = made(tmp_path, shape=(6, 5, channels))
    written = forms(tmp_path, parts, labels, "png", "parquet", "npz")
    assert written == {"png": "png", "parquet": "parquet", "npz": "samples.npz"}
    colours = np.repeat(pixels, 3, axis=-1) if channels == 1 else pixels
    files = sorted((tmp_path / "png").iterdir())
    assert [path.name for path in files] == [f"{number:06d}.png" for number in range(11)]
    assert np.array_equal(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files]), colours)
    assert Image.open(files[0]).mode == ("L" if channels == 1 else "RGB")
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"] and archive["arr_0"].flags.c_contiguous
        assert archive["arr_0"].dtype == np.uint8 and np.array_equal(archive["arr_0"], colours)
    rows = datasets.load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["label"] == labels[:11].tolist() and rows.features["label"].names == NAMES
    assert np.array_equal(np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]]), colours)
    names = sorted(path.name for path in (tmp_path / "parquet").iterdir())
    assert names == [f"train-0000{shard}-of-00003.parquet" for shard in range(3)]


def test_the_array_is_byte_for_byte_what_numpy_saves(tmp_path):
    parts, pixels, labels = made(tmp_path)
    forms(tmp_path, parts, labels, "npz")
    saved = io.BytesIO()
    np.savez(saved, pixels)
    with zipfile.ZipFile(saved) as expected, zipfile.ZipFile(tmp_path / "samples.npz") as found:
        assert found.namelist() == expected.namelist() == ["arr_0.npy"]
        assert found.read("arr_0.npy") == expected.read("arr_0.npy")
        (entry,), (other,) = found.infolist(), expected.infolist()
        assert entry.compress_type == other.compress_type == zipfile.ZIP_STORED
        assert (entry.header_offset, entry.CRC, entry.file_size) == (other.header_offset, other.CRC, other.file_size)


def test_folders_of_classes_are_read_with_the_classes_by_imagefolder_and_by_a_training(tmp_path):
    parts, pixels, labels = made(tmp_path)
    forms(tmp_path, parts, labels, "png", class_folders=True)
    folders = ["0_tench", "1_cat", "2_a_b_c"]
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == folders
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "png"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.features["label"].names == folders and sorted(rows["label"]) == sorted(labels[:11].tolist())
    data = DataArguments(train_data_dir=str(tmp_path / "png"), cache_dir=str(tmp_path / "cache"))
    rows = open_rows(data)
    loaded = load_images(rows, image_format(rows, data))
    order = np.argsort(labels[:11], kind="stable")
    assert loaded.labels.tolist() == labels[order].tolist()
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1).numpy(), pixels[order])


def test_a_training_reads_the_parquet_files(tmp_path):
    parts, pixels, labels = made(tmp_path)
    forms(tmp_path, parts, labels, "parquet")
    data = DataArguments(dataset_name=str(tmp_path / "parquet"), cache_dir=str(tmp_path / "cache"))
    rows = open_rows(data)
    assert rows.label_names == NAMES and rows.labels.tolist() == labels[:11].tolist()
    assert np.array_equal(load_images(rows, image_format(rows, data)).images.permute(0, 2, 3, 1).numpy(), pixels)


def test_folders_sort_as_the_classes_do():
    names = file_names(12, np.arange(12), [f"name {11 - place}" for place in range(12)])
    assert names[0] == "00_name_11/000000.png" and sorted(names) == names


def test_what_a_kill_left_of_a_form_is_replaced(tmp_path):
    parts, _, labels = made(tmp_path)
    for form in ("png", "parquet"):
        (tmp_path / f".{form}.tmp").mkdir()
        (tmp_path / f".{form}.tmp" / "000099.png").write_bytes(b"half")
    forms(tmp_path, parts, labels, "png", "parquet")
    assert not (tmp_path / "png" / "000099.png").exists() and not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_part_is_missing(tmp_path):
    parts, pixels, _ = made(tmp_path)
    assert parts.missing() == [] and parts.images_there() == 11
    path = tmp_path / "parts" / "00000004.npz"
    whole = path.read_bytes()
    place = whole.index(pixels[5].tobytes()) + 7
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (flipped, whole[:-40], b"", (tmp_path / "parts" / "00000008.npz").read_bytes()):
        path.write_bytes(content)
        assert parts.missing() == [4]
        with pytest.raises(ValueError, match="00000004.npz: (can't be read|holds)"):
            parts.read(4)
    path.unlink()
    assert parts.missing() == [4] and parts.images_there() == 7
