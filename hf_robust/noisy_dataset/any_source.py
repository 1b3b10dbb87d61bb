"""Any data set of classes as a source: images or text, of the Hub, a folder or a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ..data.load import (
    CLEAN_LABEL_COLUMN,
    check_limits,
    check_splits,
    label_column_of,
    label_names_of,
    label_tensor,
    train_and_test,
    with_classes,
    without_corrupt,
)
from ..data.sources import TABLES, open_data
from ..noise.superclass import ring_targets
from .source import SourceData, check_kept, image_columns, make_source

OURS = ("label", CLEAN_LABEL_COLUMN)  # the columns that a config gets
SUPERCLASS_COLUMN = "coarse_label"  # as CIFAR-100 has it


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        config: of the source.
        label_column: of the clean labels; None: `label`, where there is no `labels` beside it.
        columns: that are kept beside the labels, in this order; None: all others.
        text_columns: that hold the texts; None: what is read are images, or a table is taken as it is.
        test_split: the split that becomes `test`; None: there is none.
        validation_split: instead, the share of each class that is held out as `test`.
        superclass_column: of the superclass of each row; None: `coarse_label`, if there is one.
        skip_corrupt: leave out rows with an image that cannot be read, count and name them in the log.
    """

    config: str | None = None
    label_column: str | None = None
    columns: Sequence[str] | None = None
    text_columns: Sequence[str] | None = None
    test_split: str | None = "test"
    validation_split: float | None = None
    superclass_column: str | None = None
    skip_corrupt: bool = False

    def __post_init__(self):
        check_limits(None, None, self.validation_split)
        if self.test_split == "train":
            raise ValueError("test_split: 'train' is what the noise is put on; name another, or hold out a part of it")
        if self.skip_corrupt and self.text_columns is not None:
            raise ValueError(
                f"skip_corrupt=True is of images; text_column_name={list(self.text_columns)!r:.80} of texts"
            )


def load_any(
    source: str, how: Reading, superclasses: bool, check: Callable[[list[str], dict[int, int] | None], None]
) -> SourceData:
    """The source.

    Args:
        superclasses: whether the ring inside them is asked for.
        check: of the classes' names and that ring, if it is asked for and the source says which they are; called
            before the rows are looked at, one by one.

    Raises:
        ValueError: a split or column is missing, a column would be overwritten, the labels are noisy already, no
            classes or no whole numbers or text, or an image cannot be read.
    """
    loaded = _open_source(source, how)
    held_out = how.validation_split is not None
    splits = ("train",) if held_out or how.test_split is None else ("train", how.test_split)
    check_splits(source, loaded, splits, "rows")
    column = _column_of_labels(loaded, splits, how)
    kept = _kept_columns(loaded, splits, column, how)
    _check_class_numbers(loaded, splits, column)
    loaded = with_classes(loaded, splits, column)
    names = label_names_of([loaded[split] for split in splits], column)
    if how.skip_corrupt:
        for image in image_columns(loaded["train"].features):
            loaded = without_corrupt(loaded, splits, image)
    train, test = train_and_test(loaded, splits, column, how.validation_split, "rows")
    rows = {"train": train, **({"test": test} if held_out or len(splits) > 1 else {})}
    read = {
        split: (part.select_columns(kept), label_tensor(part, column, len(names)).numpy())
        for split, part in rows.items()
    }
    check(names, _ring(train, read["train"][1], len(names), how) if superclasses else None)
    return make_source(source, how.config, read, names)


def _open_source(source: str, how: Reading) -> datasets.DatasetDict:
    path = Path(source)
    images = how.text_columns is None
    table = path.suffix.lower() in TABLES and path.is_file()
    if not source or (table and how.config is not None):
        came = "an empty name" if not source else f"{how.config!r:.80} of a table, which has none"
        raise ValueError(f"{'source_config' if source else 'source'}: expected a data set, got {came}")
    try:
        return open_data(source, how.config, images=images)
    except ValueError as error:
        if images and table:
            raise ValueError(f"{error}; of texts give the text_column_name") from None
        raise


def _column_of_labels(loaded: datasets.DatasetDict, splits: Sequence[str], how: Reading) -> str:
    columns = loaded["train"].column_names
    column = label_column_of(columns, how.label_column)
    for split in splits:
        if column not in loaded[split].column_names:
            raise ValueError(
                f"label_column_name: split {split!r:.120} has no column {column!r:.120}; it has "
                f"{loaded[split].column_names!s:.300}"
            )
        missing = loaded[split].with_format("arrow")[column][:].is_null().to_numpy()
        if missing.any():
            raise ValueError(
                f"label column {column!r:.120} of split {split!r:.120} has {missing.sum()} rows without a label, the "
                f"first is row {missing.argmax()}"
            )
    return column


def _check_class_numbers(loaded: datasets.DatasetDict, splits: Sequence[str], column: str) -> None:
    """Raise a `ValueError` for numbers that are no classes, such as years: there would be as many as the largest."""
    feature = loaded["train"].features[column]
    if not isinstance(feature, datasets.Value) or "int" not in feature.dtype:
        return
    largest = max(max(loaded[split][column][:], default=0) for split in splits)
    rows = sum(len(loaded[split]) for split in splits)
    if largest >= max(rows, 2):
        raise ValueError(
            f"label_column_name: whole numbers are classes 0..K-1; column {column!r:.120} has {largest} in {rows} rows"
        )


def _kept_columns(loaded: datasets.DatasetDict, splits: Sequence[str], label: str, how: Reading) -> list[str]:
    """The columns beside the labels."""
    features = loaded["train"].features
    check_kept(list(features), how.text_columns or (), "text_column_name")
    check_kept(list(features), how.columns or (), "columns")
    if CLEAN_LABEL_COLUMN in features and label != CLEAN_LABEL_COLUMN:
        raise ValueError(
            f"label_column_name: labels beside a {CLEAN_LABEL_COLUMN} are noisy already; take that column, and name "
            "the columns to keep beside it"
        )
    kept = [name for name in (how.columns or features) if name != label]
    taken = [name for name in kept if name in OURS]
    if taken:
        raise ValueError(
            f"columns: the source has {taken[0]!r} beside its labels {label!r:.120}, and a config calls its own so; "
            "name those to keep without it"
        )
    if len(set(kept)) < len(kept):
        raise ValueError(f"columns: each must be named once, got {kept!s:.200}")
    if not kept:
        raise ValueError(f"columns: nothing would be left beside the labels; the source has {list(features)}")
    for name in how.text_columns or ():
        if name not in kept:
            raise ValueError(
                f"columns: {name!r:.120}, which holds the texts, must be among those to keep beside labels"
            )
        if "string" not in str(getattr(features[name], "dtype", "")):
            raise ValueError(f"text column {name!r:.120} must hold text; it is {features[name]!s:.120}")
    for split in splits[1:]:
        check_kept(loaded[split].column_names, kept, f"columns of split {split!r:.120}")
    return kept


def _ring(rows: datasets.Dataset, labels: np.ndarray, num_classes: int, how: Reading) -> dict[int, int] | None:
    """The ring inside each superclass, by a column that says the superclass of each row."""
    asked = how.superclass_column
    column = asked or SUPERCLASS_COLUMN
    if column not in rows.column_names:
        if asked is not None:
            check_kept(rows.column_names, [asked], "superclass_column")
        return None
    values = rows.with_format("arrow")[column][:]
    if values.null_count or pa.types.is_nested(values.type):
        raise ValueError(f"superclass_column: {column!r:.120} must hold one superclass a row, text or whole numbers")
    _, of_row = np.unique(np.asarray(values.to_pylist()), return_inverse=True)
    of_class = np.full(num_classes, -1)
    of_class[labels] = of_row
    mixed = np.flatnonzero(of_class[labels] != of_row)
    if mixed.size:
        raise ValueError(
            f"superclass_column: {column!r:.120} must say one superclass for each class; class {labels[mixed[0]]} has "
            "several"
        )
    absent = np.flatnonzero(of_class < 0)  # classes without rows are alone
    of_class[absent] = -1 - np.arange(len(absent))
    return ring_targets(of_class.tolist())
