"""Image data sets with noisy labels, decoded once into memory: the Hub, a folder, or the embedded digits."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hf_common.images import image_column as find_image_column
from hf_common.images import to_rgb
from hf_common.names import data_source

from ..noise.draw import make_noisy_labels
from ..noise.kinds import KINDS
from ..noise.labels import check_labels
from ..noise.spec import NoiseSpec
from .memory import ImageTensorDataset

CLEAN_LABEL_COLUMN = "clean_label"


@dataclass(frozen=True)
class ImageSplits:
    """Training and clean test images of a data set, and the names of its K classes."""

    train: ImageTensorDataset
    test: ImageTensorDataset
    label_names: list[str]


def load_image_splits(
    dataset: str,
    config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str = "label",
    test_split: str = "test",
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
) -> ImageSplits:
    """Load a data set with `datasets.load_dataset` and decode its images into one uint8 tensor a split.

    Args:
        dataset (`str`): Hub id, local folder, or `"digits"`: scikit-learn's 1,797 handwritten 8x8 digits, embedded, as
            32x32 RGB, the last 20 % for testing.
        config (`str`, *optional*): the configuration, such as `"symmetric_40"`.
        image_column (`str`, *optional*): by default the only column of type `Image`.
        label_column (`str`, defaults to `"label"`): the given labels. Where a column `clean_label` stands beside them,
            it gives the clean labels; the test split is always scored against the clean ones.
        test_split (`str`, defaults to `"test"`).
        max_train_samples, max_test_samples (`int`, *optional*): keep the first so many images.

    Returns:
        [`ImageSplits`], images (N, 3, H, W): RGB by the one rule of [`to_rgb`].

    Raises:
        ValueError: a split or column is missing, labels are outside 0..K-1, or images differ in size. Integer labels
            without names have as many classes as the largest of the whole data set says.
    """
    for name, limit in (("max_train_samples", max_train_samples), ("max_test_samples", max_test_samples)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1; got {limit}")
    if dataset == "digits":
        if config is not None:
            raise ValueError(f"dataset 'digits' has no configs; got config {config!r}")
        return _digits(max_train_samples, max_test_samples)
    with data_source(dataset, "dataset"):
        loaded = datasets.load_dataset(dataset, config)
    image_column = _check_columns(dataset, loaded, test_split, image_column, label_column)
    label_names = _label_names([loaded["train"], loaded[test_split]], label_column)
    train, test = _first_rows(loaded["train"], max_train_samples), _first_rows(loaded[test_split], max_test_samples)
    labels = _label_tensor(train, label_column, len(label_names))
    clean = _label_tensor(train, CLEAN_LABEL_COLUMN, len(label_names)) if _has_clean(train) else None
    test_labels = _label_tensor(test, CLEAN_LABEL_COLUMN if _has_clean(test) else label_column, len(label_names))
    images = _decode_pixels(train, image_column, "train images")
    test_images = _decode_pixels(test, image_column, f"{test_split} images")
    if images.shape[1:] != test_images.shape[1:]:
        raise ValueError(
            f"train images are {tuple(images.shape[2:])} and {test_split} images {tuple(test_images.shape[2:])} "
            "pixels; they must have one size"
        )
    return ImageSplits(
        ImageTensorDataset(images, labels, clean),
        ImageTensorDataset(test_images, test_labels, test_labels),
        label_names,
    )


def add_noise(
    train: ImageTensorDataset,
    spec: str | NoiseSpec,
    label_names: Sequence[str],
    *,
    seed: int = 0,
    sampling: str = "quota",
    contaminated: bool = False,
) -> ImageTensorDataset:
    """The same images with labels made noisy by `spec`, and the labels they had as `clean_labels`.

    Args:
        train (`ImageTensorDataset`): images with clean labels.
        spec, seed, sampling: as for [`make_noisy_labels`].
        contaminated (`bool`, *optional*, defaults to `False`): `semantic` noise with the flips back of the code of Ma
            et al. (2020) and their successors, for comparisons with their tables; the default is the exact noise. As
            for [`make_noisy_labels`].
        label_names (`Sequence[str]`): the K class names in the order of the labels.

    Raises:
        ValueError: the labels are noisy already (noise on noise has neither the one rate nor the other), or `semantic`
            noise, which says what each class of CIFAR-10 is taken for, on other classes, or what
            [`make_noisy_labels`] refuses, such as `contaminated` with any other noise.
    """
    spec = NoiseSpec.parse(spec)
    classes = KINDS[spec.kind].classes
    if classes is not None and tuple(label_names) != classes:
        others = ", ".join(name for name, kind in KINDS.items() if kind.rated and kind.classes is None)
        raise ValueError(
            f"noise={str(spec)!r} is defined on CIFAR-10's classes {list(classes)}; the data set has "
            f"{list(label_names)}. Allowed on any classes: {others}"
        )
    if train.clean_labels is not None and not torch.equal(train.labels, train.clean_labels):
        raise ValueError(
            f"noise={str(spec)!r} was asked for a data set whose labels are noisy already (they differ from its "
            "clean_label column); take its clean config, or leave the noise out"
        )
    noisy = make_noisy_labels(
        train.labels.numpy(),
        spec,
        num_classes=len(label_names),
        seed=seed,
        images=train.images.permute(0, 2, 3, 1).numpy(),
        sampling=sampling,
        contaminated=contaminated,
    )
    return ImageTensorDataset(train.images, torch.from_numpy(noisy), train.labels)


def _digits(max_train_samples: int | None, max_test_samples: int | None) -> ImageSplits:
    from sklearn.datasets import load_digits  # half a second to import, and only the digits need it

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 17 grey levels -> 0..255
    pixels = pixels.repeat(4, axis=1).repeat(4, axis=2)  # 8x8 -> 32x32
    images = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    num_test = len(labels) // 5
    train, test = slice(0, len(labels) - num_test), slice(len(labels) - num_test, None)

    def split(part: slice, limit: int | None) -> ImageTensorDataset:
        return ImageTensorDataset(images[part][:limit], labels[part][:limit], labels[part][:limit])

    return ImageSplits(split(train, max_train_samples), split(test, max_test_samples), [str(d) for d in range(10)])


def _check_columns(
    dataset: str, loaded: datasets.DatasetDict, test_split: str, image_column: str | None, label_column: str
) -> str:
    """The name of the image column; a `ValueError` where a split or column is missing."""
    splits = ("train", test_split)
    for split in splits:
        if split not in loaded:
            raise ValueError(f"data set {dataset!r:.120} has no split {split!r:.120}; it has {sorted(loaded)}")
    image_column = find_image_column(loaded["train"].features, image_column)
    for split in splits:
        for column in (image_column, label_column):
            if column not in loaded[split].column_names:
                raise ValueError(
                    f"split {split!r:.120} has no column {column!r:.120}; it has {loaded[split].column_names}"
                )
    return image_column


def _has_clean(rows: datasets.Dataset) -> bool:
    return CLEAN_LABEL_COLUMN in rows.column_names


def _first_rows(rows: datasets.Dataset, limit: int | None) -> datasets.Dataset:
    if limit is None:
        return rows
    if limit > len(rows):
        raise ValueError(f"{limit} images were asked for, the split has {len(rows)}")
    return rows.select(range(limit))


def _label_names(splits: list[datasets.Dataset], column: str) -> list[str]:
    feature = splits[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if not isinstance(feature, datasets.Value) or "int" not in feature.dtype:
        raise ValueError(f"label column {column!r} must be a ClassLabel or an integer column; it is {feature}")
    columns = [split[name][:] for split in splits for name in (column, CLEAN_LABEL_COLUMN) if name in split.features]
    return [str(label) for label in range(max(map(max, columns)) + 1)]


def _label_tensor(rows: datasets.Dataset, column: str, num_classes: int) -> torch.Tensor:
    labels = rows.with_format("numpy")[column][:]
    return torch.from_numpy(check_labels(f"column {column!r}", labels, num_classes))


def _decode_pixels(rows: datasets.Dataset, column: str, what: str) -> torch.Tensor:
    """(N, 3, H, W) uint8."""
    images = None
    encoded = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    for position, image in enumerate(tqdm(encoded, desc=what, unit="image", leave=False)):
        pixels = np.asarray(to_rgb(image[column], f"{what}: image {position}"))
        if images is None:
            images = np.empty((len(rows), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"{what}: image {position} has {pixels.shape[0]}x{pixels.shape[1]} pixels, image 0 has "
                f"{images.shape[1]}x{images.shape[2]}; all must have one size"
            )
        images[position] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
