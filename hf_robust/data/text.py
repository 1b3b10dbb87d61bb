"""Labelled texts, or pairs of texts: of the Hub, a folder or a table, made into tokens when their batch is due."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..losses.base import IGNORE_INDEX
from .labelled import EPOCH_SHIFT, LabelledSamples, LabelledSplits
from .load import check_limits, check_splits, label_column_of, labelled_splits
from .sources import open_data

PLACES = (1 << EPOCH_SHIFT) - 1  # the bits of an index that are no epoch


@dataclass(eq=False, repr=False)
class LabelledTexts(LabelledSamples):
    """N texts, or pairs of them, with their labels.

    Args:
        columns: name -> N texts; one column, or the two of the pairs.
        labels (`torch.Tensor`): int64 (N,), the given labels, which may be wrong.
        clean_labels (`torch.Tensor`, *optional*): int64 (N,), the true labels where they are known; never part of a
            batch.
        tokenizer: a `PreTrainedTokenizerBase` with a token for padding; without one there are no batches.
        max_length: tokens of a text or pair, what is beyond is cut off; None: no end.

    A batch is what the tokenizer makes of its texts, int64 (B, L) with L the longest of them, padded by zeros of
    `attention_mask`, and `labels` and `index`, int64 (B,); indices are those of [`LabelledSamples`]. It is the only
    entry of a list: [`one_batch`] is the collator.
    """

    columns: dict[str, list[str]]
    labels: Tensor
    clean_labels: Tensor | None = None
    tokenizer: Any = None
    max_length: int | None = None

    def __post_init__(self):
        if len(self.columns) not in (1, 2):
            raise ValueError(f"columns must be one or two of texts; got {list(self.columns)!r:.120}")
        if len(self.labels) == 0:
            raise ValueError("there must be at least one text; got none")
        if self.labels.dtype != torch.int64 or any(len(texts) != len(self.labels) for texts in self.columns.values()):
            lengths = {name: len(texts) for name, texts in self.columns.items()}
            raise ValueError(
                f"labels must be int64, one a text; got {self.labels.dtype} {len(self.labels)}, {lengths}"
            )

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        if self.tokenizer is None:
            raise ValueError("tokenizer must be given before batches are: texts.tokenized(tokenizer)")
        index = torch.as_tensor(indices, dtype=torch.int64) & PLACES
        places = index % len(self)
        texts = [[column[place] for place in places.tolist()] for column in self.columns.values()]
        tokens = self.tokenizer(
            *texts, padding=True, truncation=self.max_length is not None, max_length=self.max_length,
            return_tensors="pt",
        )  # fmt: skip
        labels = self.labels[places].masked_fill(index >= len(self), IGNORE_INDEX)
        return [{**tokens, "labels": labels, "index": places}]

    @property
    def random(self) -> bool:
        return False

    def tokenized(self, tokenizer: Any, max_length: int | None = None) -> "LabelledTexts":
        """The same texts for the model of a tokenizer."""
        return replace(self, tokenizer=tokenizer, max_length=max_length)

    def still(self) -> "LabelledTexts":
        return self

    def with_labels(self, labels: Tensor, clean_labels: Tensor | None) -> "LabelledTexts":
        return replace(self, labels=labels, clean_labels=clean_labels)

    def subset(self, places: np.ndarray) -> "LabelledTexts":
        kept = np.flatnonzero(places) if places.dtype == bool else places
        columns = {name: [texts[place] for place in kept.tolist()] for name, texts in self.columns.items()}
        clean = None if self.clean_labels is None else self.clean_labels[kept]
        return replace(self, columns=columns, labels=self.labels[kept], clean_labels=clean)

    def described(self, place: int) -> dict[str, str | None]:
        """`text`, and of a pair `text_pair`."""
        texts = [texts[place] for texts in self.columns.values()]
        return dict(zip(("text", "text_pair"), texts, strict=False))


@dataclass(frozen=True)
class TextSplits(LabelledSplits):
    """Training and test texts of a data set, and the names of its K classes."""

    train: LabelledTexts
    test: LabelledTexts


def one_batch(samples: list[dict]) -> dict:
    """The collator of [`LabelledTexts`], whose lists hold one ready batch."""
    (batch,) = samples
    return batch


def load_text_splits(
    dataset: str,
    config: str | None = None,
    *,
    text_columns: Sequence[str],
    label_column: str | None = None,
    test_split: str | None = "test",
    validation_split: float | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
) -> TextSplits:
    """The labelled texts of a data set.

    Args:
        dataset (`str`): a Hub id, a folder that `datasets` knows, or a CSV, TSV, JSON or Parquet file, which is a
            training split.
        text_columns (`Sequence[str]`): one, or two whose texts make a pair.
        label_column (`str`, *optional*): by default `label`, if there is no `labels` beside it.
        config, test_split, validation_split, max_train_samples, max_test_samples: as for [`load_image_splits`].

    Raises:
        ValueError: a split or column is missing, a row has no text, labels are no classes, whole numbers or text.
    """
    check_limits(max_train_samples, max_test_samples, validation_split)
    loaded = open_data(dataset, config, images=False)
    splits = ("train",) if validation_split is not None or test_split is None else ("train", test_split)
    label_column = _check_columns_of_text(dataset, loaded, splits, text_columns, label_column)

    def make(rows: datasets.Dataset, split: str, labels: Tensor, clean: Tensor | None) -> LabelledTexts:
        return LabelledTexts({name: rows[name][:] for name in text_columns}, labels, clean)

    return TextSplits(
        *labelled_splits(
            loaded,
            splits,
            label_column,
            make,
            validation_split=validation_split,
            max_train_samples=max_train_samples,
            max_test_samples=max_test_samples,
            what="texts",
        )
    )


def _check_columns_of_text(
    dataset: str,
    loaded: datasets.DatasetDict,
    splits: Sequence[str],
    text_columns: Sequence[str],
    label_column: str | None,
) -> str:
    """The name of the label column; a `ValueError` where a split or column is missing or of another type."""
    check_splits(dataset, loaded, splits, "texts")
    label_column = label_column_of(loaded["train"].column_names, label_column)
    for split in splits:
        features = loaded[split].features
        for column in (*text_columns, label_column):
            if column not in features:
                raise ValueError(f"split {split!r:.120} has no column {column!r:.120}; it has {list(features)!s:.200}")
        for column in text_columns:
            if "string" not in str(getattr(features[column], "dtype", "")):
                raise ValueError(f"text column {column!r:.120} must hold text; it is {features[column]!s:.120}")
            missing = loaded[split].with_format("arrow")[column][:].is_null().to_numpy()
            if missing.any():
                raise ValueError(
                    f"text column {column!r:.120} of split {split!r:.120} has {missing.sum()} rows without text, the "
                    f"first is row {missing.argmax()}"
                )
    return label_column


def token_limit(tokenizer: Any, model: torch.nn.Module, asked: int | None = None) -> int | None:
    """How many tokens a text may have: what is `asked`, or the tokenizer's limit, at most the model's.

    Returns:
        None where neither has a limit and none was asked for.

    Raises:
        ValueError: more was asked for than the model takes.
    """
    config: Any = model.config
    limit = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind that of padding.
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    limit = limit if isinstance(limit, int) and limit > 0 else None
    if asked is not None and limit is not None and asked > limit:
        raise ValueError(f"max_seq_length must be at most {limit}, which the model takes; got {asked}")
    if asked is not None:
        return asked
    own = tokenizer.model_max_length
    bounds = [bound for bound in (limit, own if own < 10**9 else None) if bound is not None]  # 1e30: none was said
    return min(bounds) if bounds else None
