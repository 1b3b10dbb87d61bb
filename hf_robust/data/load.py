"""Labelled images, in memory or read as they come: of the Hub, a folder, a table, or the embedded digits."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from hf_common.environment import memory_bytes
from hf_common.images import image_column as find_image_column

from ..noise.draw import make_noisy_labels
from ..noise.labels import check_labels
from ..noise.spec import NoiseSpec
from .files import EncodedImages, ImageFileDataset
from .labelled import LabelledImages, LabelledSamples, LabelledSplits
from .memory import ImageTensorDataset
from .sources import open_data

CLEAN_LABEL_COLUMN = "clean_label"
MEMORY_SHARE = 4  # decoded images may take this part of the machine's memory, before they stay encoded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSplits(LabelledSplits):
    """Training and test images of a data set, and the names of its K classes."""

    train: LabelledImages
    test: LabelledImages


def load_image_splits(
    dataset: str,
    config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = "label",
    test_split: str | None = "test",
    validation_split: float | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    keep_in_memory: bool | None = None,
    skip_corrupt: bool = False,
) -> ImageSplits:
    """The labelled images of a data set, see [`open_data`].

    Args:
        dataset (`str`): what [`open_data`] takes, or `"digits"`: scikit-learn's 1,797 handwritten 8x8 digits,
            embedded, as 32x32 RGB, the last 20 % for testing.
        config (`str`, *optional*): the configuration, such as `"symmetric_40"`.
        image_column (`str`, *optional*): by default the only column of type `Image`.
        label_column (`str`, defaults to `"label"`): the given labels: classes, whole numbers or text. Where a column
            `clean_label` stands beside them, the test split is scored against that. None: `label` without `labels`.
        test_split (`str`, defaults to `"test"`): None where nothing is scored: one training image stands for it.
        validation_split (`float`, *optional*): instead, hold out this share of each class, drawn with seed 0.
        max_train_samples, max_test_samples (`int`, *optional*): keep the first so many images.
        keep_in_memory (`bool`, *optional*): decode all images at once, or each when its batch is due; by default the
            former where they share one size and take at most a quarter of the machine's memory.
        skip_corrupt (`bool`, defaults to `False`): leave out images that cannot be read, count and name them in the
            log. Without it, one is an error.

    Returns:
        [`ImageSplits`]: RGB by the one rule of [`~hf_common.images.to_rgb`], (N, 3, H, W) in memory.

    Raises:
        ValueError: a split or column is missing, labels are outside 0..K-1 or no classes, or images that are to be
            kept in memory differ in size. Integer labels without names have as many classes as the largest says.
    """
    check_limits(max_train_samples, max_test_samples, validation_split)
    if dataset == "digits":
        return _digits(config, validation_split, max_train_samples, max_test_samples)
    loaded = open_data(dataset, config, image_column)
    splits = ("train",) if validation_split is not None or test_split is None else ("train", test_split)
    label_column = label_column_of(loaded["train"].column_names if "train" in loaded else (), label_column)
    image_column = check_columns(dataset, loaded, splits, image_column, label_column)

    def make(rows: datasets.Dataset, split: str, *labels: Any) -> LabelledImages:
        return images_of_rows(rows, image_column, keep_in_memory, f"{split} images", *labels)

    return ImageSplits(
        *labelled_splits(
            loaded,
            splits,
            label_column,
            make,
            validation_split=validation_split,
            max_train_samples=max_train_samples,
            max_test_samples=max_test_samples,
            readable=(lambda found: without_corrupt(found, splits, image_column)) if skip_corrupt else None,
        )
    )


def labelled_splits(
    loaded: datasets.DatasetDict,
    splits: Sequence[str],
    label_column: str,
    make: Callable[[datasets.Dataset, str, torch.Tensor, torch.Tensor | None], Any],
    *,
    validation_split: float | None,
    max_train_samples: int | None,
    max_test_samples: int | None,
    readable: Callable[[datasets.DatasetDict], datasets.DatasetDict] | None = None,
    what: str = "images",
) -> tuple[Any, Any, list[str]]:
    """Training and test samples with their labels, and the K classes' names: what [`load_image_splits`] ends with.

    Args:
        splits: of `loaded`: that of training, and that of testing, if it is none of the training's.
        make: samples of rows, the name of their split, given labels int64 (N,) and the clean ones, if known.
        readable: keeps the rows that can be read.
        what: errors call the samples.
    """
    loaded = with_classes(loaded, splits, label_column)
    label_names = label_names_of([loaded[split] for split in splits], label_column)
    if readable is not None:
        loaded = readable(loaded)
    train, test = train_and_test(loaded, splits, label_column, validation_split, what)
    train, test = _first_rows(train, max_train_samples, what), _first_rows(test, max_test_samples, what)
    labels = label_tensor(train, label_column, len(label_names))
    clean = label_tensor(train, CLEAN_LABEL_COLUMN, len(label_names)) if _has_clean(train) else None
    test_labels = label_tensor(test, label_to_score(test, label_column), len(label_names))
    # Of labels that were held out nobody says that they are right.
    known = test_labels if _has_clean(test) or len(splits) > 1 else None
    return make(train, "train", labels, clean), make(test, splits[-1], test_labels, known), label_names


def check_splits(dataset: str, loaded: Mapping, splits: Sequence[str], what: str) -> None:
    """Raise a `ValueError` where a split is missing; `what` it has."""
    for split in splits:
        if split not in loaded:
            hint = "" if split == "train" else f"; validation_split=0.1 holds out a tenth of the training {what}"
            raise ValueError(f"data set {dataset!r:.120} has no split {split!r:.120}; it has {sorted(loaded)}{hint}")


def label_column_of(columns: Sequence[str], asked: str | None) -> str:
    """The column of given labels; a `ValueError` where it was not asked for and may be one of two."""
    if asked is None and {"label", "labels"} <= set(columns):
        raise ValueError("label_column_name must say which: the data set has both 'label' and 'labels'")
    return asked or "label"


def check_limits(train: int | None, test: int | None, share: float | None) -> None:
    for name, limit in (("max_train_samples", train), ("max_test_samples", test)):
        if limit is not None and limit < 1:
            raise ValueError(f"{name} must be at least 1; got {limit}")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"validation_split must be a share in (0, 1); got {share}")


def add_noise(
    train: LabelledSamples,
    spec: str | NoiseSpec,
    label_names: Sequence[str],
    *,
    seed: int = 0,
    sampling: str = "quota",
    contaminated: bool = False,
) -> LabelledSamples:
    """The same samples with labels made noisy by `spec`, and the labels they had as `clean_labels`.

    Args:
        train (`LabelledSamples`): with clean labels; images in memory for `instance` noise, which looks at the pixels.
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
    spec.noise.check_classes(spec, label_names)
    if train.clean_labels is not None and not torch.equal(train.labels, train.clean_labels):
        raise ValueError(
            f"noise={str(spec)!r} was asked for a data set whose labels are noisy already (they differ from its "
            "clean_label column); take its clean config, or leave the noise out"
        )
    if spec.noise.needs_images and not isinstance(train, ImageTensorDataset):
        raise ValueError(
            f"noise={str(spec)!r} looks at the pixels of all images, which must share one size and be kept in memory"
        )
    noisy = make_noisy_labels(
        train.labels.numpy(),
        spec,
        num_classes=len(label_names),
        seed=seed,
        images=train.images.permute(0, 2, 3, 1).numpy() if isinstance(train, ImageTensorDataset) else None,
        sampling=sampling,
        contaminated=contaminated,
    )
    return train.with_labels(torch.from_numpy(noisy), train.labels)


def _digits(
    config: str | None, share: float | None, max_train_samples: int | None, max_test_samples: int | None
) -> ImageSplits:
    if config is not None:
        raise ValueError(f"dataset 'digits' has no configs; got config {config!r}")
    if share is not None:
        raise ValueError(f"dataset 'digits' is scored on its last fifth; got validation_split={share}")
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


def check_columns(
    dataset: str, loaded: datasets.DatasetDict, splits: Sequence[str], image_column: str | None, label_column: str
) -> str:
    """The name of the image column; a `ValueError` where a split or column is missing."""
    check_splits(dataset, loaded, splits, "images")
    image_column = find_image_column(loaded["train"].features, image_column)
    for split in splits:
        for column in (image_column, label_column):
            if column not in loaded[split].column_names:
                raise ValueError(
                    f"split {split!r:.120} has no column {column!r:.120}; it has {loaded[split].column_names}"
                )
    return image_column


def with_classes(loaded: datasets.DatasetDict, splits: Sequence[str], column: str) -> datasets.DatasetDict:
    """Labels that are text as classes, given and clean ones, in the order of the alphabet over all splits."""
    if "string" not in str(getattr(loaded["train"].features[column], "dtype", "")):
        return loaded
    names: set = set()
    columns = [name for name in (column, CLEAN_LABEL_COLUMN) if name in loaded["train"].features]
    if not _is_text(loaded["train"], columns[-1]):
        kind = loaded["train"].features[columns[-1]]
        raise ValueError(f"column {columns[-1]!r} must hold text as {column!r:.120} does; it is {kind!s:.120}")
    found = [(split, name) for split in splits for name in columns if _is_text(loaded[split], name)]
    for split, name in found:
        names |= set(own := loaded[split].unique(name))
        if None in own:
            raise ValueError(f"label column {name!r} has rows without a label")
    classes, parts = datasets.ClassLabel(names=sorted(names, key=str)), {split: loaded[split] for split in splits}
    for split, name in found:
        # Older `datasets` make classes of `string` alone, not of the `large_string` that tables are read as.
        parts[split] = parts[split].cast_column(name, datasets.Value("string")).cast_column(name, classes)
    return datasets.DatasetDict(parts)


def _is_text(rows: datasets.Dataset, column: str) -> bool:
    return "string" in str(getattr(rows.features.get(column), "dtype", ""))


def without_corrupt(loaded: datasets.DatasetDict, splits: Sequence[str], column: str) -> datasets.DatasetDict:
    """The rows whose image can be decoded."""
    kept = {}
    for split in splits:
        rows, damaged, good = _undecoded(loaded[split], column), [], []
        read = EncodedImages(rows, column, f"{split} images")
        for place in tqdm(range(len(rows)), desc=f"{split} images: reading", unit="image", leave=False):
            try:
                read(place)
                good.append(place)
            except ValueError as error:
                damaged.append(str(error))
        if damaged:
            shown = "; ".join(damaged[:5]) + ("; ..." if len(damaged) > 5 else "")
            logger.warning("%d of %d %s images are left out: %s", len(damaged), len(rows), split, shown)
        kept[split] = loaded[split].select(good)
    return datasets.DatasetDict(kept)


def train_and_test(
    loaded: datasets.DatasetDict, splits: Sequence[str], column: str, share: float | None, what: str
) -> tuple[datasets.Dataset, datasets.Dataset]:
    if share is None:
        return loaded["train"], loaded[splits[1]] if len(splits) > 1 else loaded["train"].select([0])
    from sklearn.model_selection import train_test_split  # half a second to import

    rows = loaded["train"]
    labels = np.asarray(rows.with_format("numpy")[column][:])
    counts = np.bincount(labels)
    if (few := np.flatnonzero(counts == 1)).size:
        raise ValueError(f"validation_split needs two {what} or more of each class; class {few[0]} has one")
    try:
        train, test = train_test_split(np.arange(len(rows)), test_size=share, random_state=0, stratify=labels)
    except ValueError as error:  # too few images for one of each class on both sides
        raise ValueError(f"validation_split={share} of {len(rows)} {what}: {error}") from None
    logger.warning(
        "no test split: %d of the %d training %s, drawn by class with seed 0, are held out", len(test), len(rows), what
    )
    return rows.select(np.sort(train)), rows.select(np.sort(test))


def label_to_score(rows: datasets.Dataset, label_column: str) -> str:
    """The column that test images are scored against."""
    return CLEAN_LABEL_COLUMN if _has_clean(rows) else label_column


def _has_clean(rows: datasets.Dataset) -> bool:
    return CLEAN_LABEL_COLUMN in rows.column_names


def _first_rows(rows: datasets.Dataset, limit: int | None, what: str) -> datasets.Dataset:
    if limit is None:
        return rows
    if limit > len(rows):
        raise ValueError(f"{limit} {what} were asked for, the split has {len(rows)}")
    return rows.select(range(limit))


def label_names_of(splits: list[datasets.Dataset], column: str) -> list[str]:
    feature = splits[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        if len(feature.names) < 2:
            raise ValueError(f"label column {column!r} must hold two classes or more; it has {feature.names}")
        return list(feature.names)
    if not isinstance(feature, datasets.Value) or "int" not in feature.dtype:
        raise ValueError(f"label column {column!r} must hold classes, whole numbers or text; it is {feature}")
    columns = [split[name][:] for split in splits for name in (column, CLEAN_LABEL_COLUMN) if name in split.features]
    return [str(label) for label in range(max(map(max, columns)) + 1)]


def label_tensor(rows: datasets.Dataset, column: str, num_classes: int) -> torch.Tensor:
    labels = rows.with_format("numpy")[column][:]
    return torch.from_numpy(check_labels(f"column {column!r}", labels, num_classes))


def _undecoded(rows: datasets.Dataset, column: str) -> datasets.Dataset:
    return rows.select_columns(column).cast_column(column, datasets.Image(decode=False))


def images_of_rows(
    rows: datasets.Dataset,
    column: str,
    keep: bool | None,
    what: str,
    labels: torch.Tensor,
    clean: torch.Tensor | None,
) -> LabelledImages:
    """In memory, or read as they come."""
    read = EncodedImages(_undecoded(rows, column), column, what)
    files = ImageFileDataset(read, labels, clean)
    if keep is False:
        return files
    first = read(0).numpy()
    if keep is None and first.size * len(rows) > memory_bytes() // MEMORY_SHARE:
        return files
    images = np.empty((len(rows), *first.shape), np.uint8)
    for position in tqdm(range(len(rows)), desc=what, unit="image", leave=False):
        pixels = read(position).numpy()
        if pixels.shape != first.shape:
            if keep is None:
                return replace(files, one_size=False)
            raise ValueError(
                f"{what}: image {position} has {pixels.shape[0]}x{pixels.shape[1]} pixels, image 0 has "
                f"{first.shape[0]}x{first.shape[1]}; all must have one size to be kept in memory"
            )
        images[position] = pixels
    return ImageTensorDataset(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, clean, read)
