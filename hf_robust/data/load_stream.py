"""A data set's training images as a stream, and its test images beside it."""

from dataclasses import dataclass
from typing import Any

import datasets

from .labelled import LabelledImages
from .load import (
    check_columns,
    check_limits,
    images_of_rows,
    label_column_of,
    label_names_of,
    label_tensor,
    label_to_score,
)
from .sources import open_data
from .stream import StreamedImages


@dataclass(frozen=True)
class StreamedSplits:
    """Training images of a stream, test images, and the names of the K classes."""

    train: StreamedImages
    test: LabelledImages
    label_names: list[str]


def load_stream(
    dataset: str,
    config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = "label",
    test_split: str | None = "test",
    max_test_samples: int | None = None,
    buffer: int = 1000,
    seed: int = 0,
) -> StreamedSplits:
    """The training images of a data set as they are read, for sets that fit on no disk.

    Args:
        dataset, config, image_column, label_column: as for [`~hf_robust.data.load.load_image_splits`]; labels must be
            of the type `ClassLabel`, which alone says how many classes there are.
        test_split (`str`, defaults to `"test"`): read to its end, and kept; None where nothing is scored: one training
            image stands for it.
        max_test_samples (`int`, *optional*): read no more than the first so many of it.
        buffer, seed: see [`StreamedImages`].

    Raises:
        ValueError: a split or column is missing, or labels have no classes.
    """
    check_limits(None, max_test_samples, None)
    loaded: Any = open_data(dataset, config, image_column, streaming=True)
    splits = ["train"] if test_split is None else ["train", test_split]
    label_column = label_column_of(loaded["train"].column_names or () if "train" in loaded else (), label_column)
    image_column = check_columns(dataset, loaded, splits, image_column, label_column)
    if not isinstance(loaded["train"].features[label_column], datasets.ClassLabel):
        raise ValueError(
            f"column {label_column!r} of a stream must be of the type ClassLabel, which says how many classes there "
            f"are; it is {loaded['train'].features[label_column]}. Load the data set without streaming"
        )
    names = label_names_of([loaded["train"]], label_column)
    raw = {split: loaded[split].cast_column(image_column, datasets.Image(decode=False)) for split in splits}
    rows = raw[splits[-1]].take(1 if test_split is None else max_test_samples or 10**12)
    test = datasets.Dataset.from_list(list(rows), features=raw[splits[-1]].features)
    scored = label_tensor(test, label_to_score(test, label_column), len(names))
    return StreamedSplits(
        StreamedImages(raw["train"], image_column, label_column, names, buffer=buffer, seed=seed),
        images_of_rows(test, image_column, None, f"{splits[-1]} images", scored, scored),
        names,
    )
