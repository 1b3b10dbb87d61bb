import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_digits

from hf_robust.data.load import add_noise, load_image_splits
from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.noise.draw import make_noisy_labels

NAMES = ["ant", "bee", "cat"]


def write_data_set(folder, n=9, mode="RGB", size=(5, 4), clean=True, label_type=None, sizes=None):
    rng = np.random.default_rng(0)

    def rows(count):
        images = []
        for position in range(count):
            width, height = sizes[position] if sizes else size
            shape = (height, width, 3) if mode == "RGB" else (height, width)
            images.append(PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)))
        columns = {"picture": images, "label": [i % 3 for i in range(count)]}
        features = {"picture": datasets.Image(), "label": label_type or datasets.ClassLabel(names=NAMES)}
        if clean:
            columns["clean_label"] = [(i + (i == 1)) % 3 for i in range(count)]
            features["clean_label"] = features["label"]
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    splits = {"train": rows(n), "test": rows(4)}
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}.parquet")
    return splits


def test_digits_are_scikit_learns():
    splits = load_image_splits("digits")
    digits = load_digits()
    assert splits.train.images.shape == (1438, 3, 32, 32) and splits.test.images.shape == (359, 3, 32, 32)
    images = torch.cat([splits.train.images, splits.test.images])
    assert torch.equal(torch.cat([splits.train.labels, splits.test.labels]), torch.tensor(digits.target))
    back = images[:, 1, 2::4, 1::4].double().numpy() * 16 / 255
    np.testing.assert_allclose(back, digits.images, atol=0.05)
    assert images.min() == 0 and images.max() == 255
    assert splits.label_names == [str(d) for d in range(10)]


def test_digits_have_no_configs_and_can_be_cut():
    with pytest.raises(ValueError, match="no configs.*plain"):
        load_image_splits("digits", "plain")
    splits = load_image_splits("digits", max_train_samples=11, max_test_samples=3)
    assert len(splits.train) == 11 and len(splits.test) == 3


def test_folder_keeps_pixels_labels_and_names(tmp_path):
    source = write_data_set(tmp_path)
    splits = load_image_splits(str(tmp_path))
    assert splits.label_names == NAMES
    for split, loaded in (("train", splits.train), ("test", splits.test)):
        expected = np.stack([np.asarray(image) for image in source[split]["picture"]]).transpose(0, 3, 1, 2)
        assert np.array_equal(loaded.images.numpy(), expected)
    assert splits.train.labels.tolist() == source["train"]["label"][:]
    assert splits.train.clean_labels.tolist() == source["train"]["clean_label"][:]
    assert splits.test.labels.tolist() == source["test"]["clean_label"][:]  # scored against the clean ones


def test_greyscale_is_repeated(tmp_path):
    write_data_set(tmp_path, mode="L")
    images = load_image_splits(str(tmp_path)).train.images
    assert images.shape[1] == 3 and torch.equal(images[:, 0], images[:, 2])


def test_integer_labels_get_names(tmp_path):
    write_data_set(tmp_path, label_type=datasets.Value("int64"), clean=False)
    splits = load_image_splits(str(tmp_path))
    assert splits.label_names == ["0", "1", "2"] and splits.train.clean_labels is None
    assert load_image_splits(str(tmp_path), max_train_samples=2).label_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"label_column": "fine_label"}, "fine_label.*picture"),
        ({"image_column": "img"}, "'img'.*picture"),
        ({"test_split": "validation"}, "validation.*test.*train"),
        ({"max_train_samples": 10}, "10.*9"),
        ({"max_train_samples": 0}, "max_train_samples.*0"),
    ],
)
def test_wrong_names_and_sizes_are_named(tmp_path, arguments, message):
    write_data_set(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_image_splits(str(tmp_path), **arguments)


def test_images_of_two_sizes_are_refused(tmp_path):
    write_data_set(tmp_path, sizes=[(5, 4)] * 6 + [(4, 4)] * 3)
    with pytest.raises(ValueError, match="image 6 has 4x4 pixels, image 0 has 4x5"):
        load_image_splits(str(tmp_path), keep_in_memory=True)
    assert load_image_splits(str(tmp_path)).train.one_size is False


def test_missing_label_is_refused(tmp_path):
    splits = write_data_set(tmp_path, clean=False)
    bad = splits["train"].map(lambda row, i: {"label": -1 if i == 4 else row["label"]}, with_indices=True)
    bad.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="column 'label'.*-1 at position 4"):
        load_image_splits(str(tmp_path))


def test_noise_keeps_images_and_clean_labels():
    train = load_image_splits("digits").train
    names = [str(digit) for digit in range(10)]
    noisy = add_noise(train, "symmetric_40", names, seed=1)
    assert noisy.images is train.images or torch.equal(noisy.images, train.images)
    assert torch.equal(noisy.clean_labels, train.labels)
    flipped = (noisy.labels != train.labels).double().mean().item()
    assert flipped == pytest.approx(0.4, abs=0.5 * 10 / len(train))
    assert torch.equal(noisy.labels, add_noise(train, "symmetric_40", names, seed=1).labels)


def test_noise_on_noise_is_refused(tmp_path):
    write_data_set(tmp_path)
    with pytest.raises(ValueError, match="noisy already"):
        add_noise(load_image_splits(str(tmp_path)).train, "symmetric_40", NAMES)


def test_semantic_noise_is_refused_on_other_classes():
    splits = load_image_splits("digits")
    with pytest.raises(ValueError, match="semantic_40.*airplane.*'0'"):
        add_noise(splits.train, "semantic_40", splits.label_names)
    renamed = add_noise(splits.train, "semantic_40", CIFAR10_CLASSES)
    assert not torch.equal(renamed.labels, splits.train.labels)


def test_contaminated_noise_is_passed_on():
    train = load_image_splits("digits").train
    noisy = add_noise(train, "semantic_40", CIFAR10_CLASSES, seed=3, contaminated=True)
    expected = make_noisy_labels(train.labels, "semantic_40", num_classes=10, seed=3, contaminated=True)
    assert noisy.labels.tolist() == expected.tolist() and torch.equal(noisy.clean_labels, train.labels)
    cats, dogs = ((noisy.labels != train.labels)[train.labels == label].float().mean() for label in (3, 5))
    assert cats < 0.32 < 0.35 < dogs  # 24 % and 40 %, of some 145 images each
    with pytest.raises(ValueError, match="contaminated: .* got spec symmetric_40"):
        add_noise(train, "symmetric_40", CIFAR10_CLASSES, contaminated=True)
    with pytest.raises(ValueError, match="contaminated: .* sampling 'bernoulli'"):
        add_noise(train, "semantic_40", CIFAR10_CLASSES, sampling="bernoulli", contaminated=True)
