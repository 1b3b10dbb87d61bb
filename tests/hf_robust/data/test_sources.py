"""Class folders, tables of paths, and the traps of both."""

import csv
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_robust.data.load import load_image_splits
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.data.sources import open_data


def write_images(folder, count, size=(9, 9), seed=0):
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for place in range(count):
        pixels = draw.integers(0, 256, (size[0] + place, size[1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")


def test_a_class_may_bear_the_name_of_a_split(tmp_path):
    for place, name in enumerate(("train_station", "test_tube", "airport", "val")):
        write_images(tmp_path / name, place + 2)
    loaded = open_data(str(tmp_path))
    names = ["airport", "test_tube", "train_station", "val"]
    assert list(loaded) == ["train"] and loaded["train"].features["label"].names == names
    assert np.bincount(loaded["train"]["label"]).tolist() == [4, 3, 2, 5]


def test_class_folders_below_splits(tmp_path):
    for split, count in (("training", 3), ("test", 2)):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, count)
    loaded = open_data(str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "test": 4}
    splits = load_image_splits(str(tmp_path), keep_in_memory=False)
    assert splits.label_names == ["cat", "dog"] and splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_one_class_is_none(tmp_path):
    write_images(tmp_path / "cat", 3)
    with pytest.raises(ValueError, match=r"must have two class folders or more; it has \['cat'\]"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("split", ["", "train"])
def test_an_image_beside_the_class_folders_is_no_class(tmp_path, split):
    for name in ("cat", "dog"):
        write_images(tmp_path / split / name, 3)
    Image.new("RGB", (8, 8)).save(tmp_path / split / "cover.jpg")
    with pytest.raises(ValueError, match="must lie in the folder of its class; .* itself has cover.jpg"):
        open_data(str(tmp_path))


def test_splits_that_number_their_classes_differently_are_refused(tmp_path):
    for split, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"'label' must have its classes in one order; split 'train' has \['cat', 'd"):
        open_data(str(tmp_path), images=False)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_paths_of_a_table_are_relative_to_it(tmp_path, monkeypatch, ending):
    write_images(tmp_path / "photos", 4)
    rows = [{"file_name": f"photos/{place}.png", "label": "ba"[place % 2] * 3, "other": place} for place in range(4)]
    rows[3]["file_name"] = str(tmp_path / "photos/3.png")
    path = tmp_path / f"labels.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif ending == "parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    splits = load_image_splits(f"../labels.{ending}", validation_split=0.5)
    assert splits.label_names == ["aaa", "bbb"]
    assert sorted([*splits.train.labels.tolist(), *splits.test.labels.tolist()]) == [0, 0, 1, 1]
    assert {part.read(place).shape[0] for part in (splits.train, splits.test) for place in range(2)} == {9, 10, 11, 12}


def test_a_table_without_paths_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("text,label\na,0\nb,1\n")
    with pytest.raises(ValueError, match=r"needs a column of image paths, one of image, file, .* it has \['text'"):
        open_data(str(tmp_path / "table.csv"))


def test_images_of_one_size_are_kept_in_memory(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for place in range(4):
            Image.new("RGB", (8, 8), (40 * place, 0, 0)).save(tmp_path / name / f"{place}.png")
    splits = load_image_splits(str(tmp_path), validation_split=0.25)
    assert isinstance(splits.train, ImageTensorDataset) and splits.train.size == (8, 8)
    assert len(splits.train) == 6 and np.bincount(splits.test.labels).tolist() == [1, 1]
    again = load_image_splits(str(tmp_path), validation_split=0.25, keep_in_memory=False)
    assert not isinstance(again.train, ImageTensorDataset) and again.train.labels.equal(splits.train.labels)
    Image.new("RGB", (9, 8)).save(tmp_path / "cat" / "0.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "dog" / "0.png")
    with pytest.raises(ValueError, match="all must have one size to be kept in memory"):
        load_image_splits(str(tmp_path), validation_split=0.25, keep_in_memory=True)
    mixed = load_image_splits(str(tmp_path), validation_split=0.25)
    assert False in (getattr(mixed.train, "one_size", None), getattr(mixed.test, "one_size", None))


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path, caplog):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 6)
    (tmp_path / "cat/2.png").write_bytes(b"no image")
    (tmp_path / "dog/5.png").write_bytes((tmp_path / "dog/4.png").read_bytes()[:60])
    splits = load_image_splits(str(tmp_path), validation_split=0.2, skip_corrupt=True)
    assert len(splits.train) + len(splits.test) == 10
    assert "2 of 12 train images are left out" in caplog.text and "cat/2.png" in caplog.text
    for part in (splits.train, splits.test):
        for place in range(len(part)):
            part.read(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no split 'test'; it has .* validation_split=0.1 holds out a tenth"),
        ({"validation_split": 1.0}, r"validation_split must be a share in \(0, 1\); got 1.0"),
        ({"validation_split": 0.1, "label_column": "labels"}, "has no column 'labels'"),
        ({"validation_split": 0.01}, "validation_split=0.01 of 5 images"),
    ],
)
def test_bad_input_is_said(tmp_path, options, message):
    write_images(tmp_path / "cat", 3)
    write_images(tmp_path / "dog", 2)
    with pytest.raises(ValueError, match=message):
        load_image_splits(str(tmp_path), **options)


def test_a_class_with_one_image_cannot_be_split(tmp_path):
    write_images(tmp_path / "cat", 3)
    write_images(tmp_path / "dog", 1)
    with pytest.raises(ValueError, match="needs two images or more of each class; class 1 has one"):
        load_image_splits(str(tmp_path), validation_split=0.5)


def test_labels_that_are_no_classes_are_refused(tmp_path):
    write_images(tmp_path / "photos", 2)
    for labels, message in (((0.5, 1.5), "must hold classes, whole numbers or text"), ((3, 3), None)):
        rows = [f"photos/{place}.png,{label}" for place, label in enumerate(labels)]
        (tmp_path / "t.csv").write_text("image,label\n" + "\n".join(rows) + "\n")
        if message:
            with pytest.raises(ValueError, match=message):
                load_image_splits(str(tmp_path / "t.csv"), validation_split=0.5)
