"""Labelled texts: where they come from, and the batches that they make."""

import datasets
import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from hf_robust.data.load import add_noise
from hf_robust.data.text import LabelledTexts, load_text_splits, token_limit
from tests.hf_robust.texts import save_bert, sentences, with_wrong, write_csv

TEXTS, TOPICS = sentences(20)
NAMES = ["cooking", "sport"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"), TEXTS)


def made(tokenizer, max_length=None, columns=None, n=5):
    columns = {"text": TEXTS[:n]} if columns is None else columns
    return LabelledTexts(columns, torch.arange(n) % 2).tokenized(tokenizer, max_length)


def test_a_batch_is_the_tokenizers_with_labels_and_places(tokenizer):
    (batch,) = made(tokenizer).__getitems__([3, 0])
    alone = [tokenizer(TEXTS[place])["input_ids"] for place in (3, 0)]
    assert batch["input_ids"].shape == (2, max(map(len, alone)))  # padded to the longest, no further
    for row, mask, ids in zip(batch["input_ids"], batch["attention_mask"], alone, strict=True):
        assert row[mask.bool()].tolist() == ids and mask.sum() == len(ids)
    assert batch["labels"].tolist() == [1, 0] and batch["index"].tolist() == [3, 0]
    assert "clean_labels" not in batch


def test_indices_beyond_the_end_count_for_nothing(tokenizer):
    texts = made(tokenizer)
    (batch,) = texts.__getitems__([4, 5, 9, (3 << 40) + 1])
    assert batch["labels"].tolist() == [0, -100, -100, 1] and batch["index"].tolist() == [4, 0, 4, 1]
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][2])
    with pytest.raises(IndexError, match=r"0\.\.4; got 5"):
        texts[5]


def test_pairs_and_what_is_too_long(tokenizer):
    pairs = made(tokenizer, 9, {"a": TEXTS[:5], "b": TEXTS[5:10]})
    (batch,) = pairs.__getitems__([0, 1])
    expected = tokenizer(TEXTS[:2], TEXTS[5:7], truncation=True, max_length=9, padding=True)
    assert batch["input_ids"].tolist() == expected["input_ids"] and batch["input_ids"].shape[1] == 9
    assert batch["token_type_ids"].tolist() == expected["token_type_ids"]
    assert pairs.described(1) == {"text": TEXTS[1], "text_pair": TEXTS[6]}


@pytest.mark.parametrize("kept", [np.array([4, 1]), np.array([False, True, False, False, True])])
def test_a_part_and_other_labels(tokenizer, kept):
    part = made(tokenizer).with_labels(torch.tensor([1, 1, 1, 0, 0]), torch.arange(5) % 2).subset(kept)
    order = kept if kept.dtype != bool else np.array([1, 4])
    assert part.columns["text"] == [TEXTS[place] for place in order]
    assert part.labels.tolist() == [[1, 1, 1, 0, 0][place] for place in order]
    assert part.clean_labels.tolist() == [place % 2 for place in order] and part.tokenizer is tokenizer


def saved(folder, kind, columns):
    path = folder / f"data.{kind}"
    rows = datasets.Dataset.from_dict(columns)
    if kind in ("csv", "tsv"):
        write_csv(path, columns)
    elif kind == "json":
        rows.to_json(path)
    else:
        rows.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "parquet"])
@pytest.mark.parametrize("form", ["text", "numbers"])
def test_tables_give_the_same_samples(tmp_path, kind, form):
    given = with_wrong(TOPICS, 0.3)
    numbers = {"text": lambda names: names, "numbers": lambda names: [NAMES.index(name) for name in names]}[form]
    columns = {"words": TEXTS, "label": numbers(given), "clean_label": numbers(TOPICS)}
    splits = load_text_splits(saved(tmp_path, kind, columns), text_columns=["words"], validation_split=0.2)
    assert splits.label_names == (NAMES if form == "text" else ["0", "1"])
    assert (len(splits.train), len(splits.test)) == (16, 4)
    for part in (splits.train, splits.test):
        for place, text in enumerate(part.columns["words"]):
            row = TEXTS.index(text)
            assert part.clean_labels[place] == NAMES.index(TOPICS[row])
    places = [TEXTS.index(text) for text in splits.train.columns["words"]]
    assert splits.train.labels.tolist() == [NAMES.index(given[place]) for place in places]
    assert torch.equal(splits.test.labels, splits.test.clean_labels)  # scored against the truth, where it is known


def test_a_folder_with_splits_and_classes_in_their_own_order(tmp_path):
    features = datasets.Features(
        {"words": datasets.Value("string"), "label": datasets.ClassLabel(names=["sport", "cooking"])}
    )
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_dict({"words": TEXTS, "label": TOPICS}, features=features)
        rows.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load_text_splits(str(tmp_path), text_columns=["words"], test_split="validation", max_train_samples=3)
    assert splits.label_names == ["sport", "cooking"] and splits.train.labels.tolist() == [1, 0, 1]
    assert len(splits.test) == 20 and splits.test.clean_labels is not None


def test_noise_is_that_of_the_labels_alone():
    texts = LabelledTexts({"text": TEXTS}, torch.arange(20) % 2)
    noisy = add_noise(texts, "symmetric_40", NAMES, seed=1)
    assert (noisy.labels != noisy.clean_labels).sum() == 8 and torch.equal(noisy.clean_labels, texts.labels)
    with pytest.raises(ValueError, match="noisy already"):
        add_noise(noisy, "symmetric_40", NAMES)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_columns": ["nosuch"]}, r"no column 'nosuch'; it has \['words', 'score', 'hole', 'label'\]"),
        ({"text_columns": ["score"]}, "'score' must hold text; it is Value"),
        ({"text_columns": ["hole"]}, "'hole' of split 'train' has 1 rows without text, the first is row 2"),
        ({"label_column": "score"}, "'score' must hold classes, whole numbers or text"),
        ({"label_column": "hole"}, "'hole' has rows without a label"),
        ({"validation_split": None}, "no split 'test'; .*validation_split=0.1 holds out a tenth"),
        ({"max_train_samples": 50}, "50 texts were asked for"),
    ],
)
def test_what_can_not_be_trained_on_is_one_line(tmp_path, change, message):
    hole = [*TEXTS[:2], None, *TEXTS[3:]]
    path = saved(tmp_path, "parquet", {"words": TEXTS, "score": np.linspace(0, 1, 20), "hole": hole, "label": TOPICS})
    with pytest.raises(ValueError, match=message) as raised:
        load_text_splits(path, **{"text_columns": ["words"], "validation_split": 0.2} | change)
    assert "\n" not in str(raised.value)


def test_two_columns_that_may_be_the_labels(tmp_path):
    path = saved(tmp_path, "parquet", {"words": TEXTS, "label": TOPICS, "labels": TOPICS[::-1]})
    with pytest.raises(ValueError, match="label_column_name must say which"):
        load_text_splits(path, text_columns=["words"], validation_split=0.2)
    splits = load_text_splits(path, text_columns=["words"], label_column="labels", test_split=None)
    assert splits.train.labels.tolist() == [NAMES.index(topic) for topic in TOPICS[::-1]]


def test_clean_labels_of_another_type(tmp_path):
    path = saved(tmp_path, "parquet", {"words": TEXTS, "label": TOPICS, "clean_label": list(range(20))})
    with pytest.raises(ValueError, match="'clean_label' must hold text as 'label' does"):
        load_text_splits(path, text_columns=["words"], test_split=None)


def test_the_models_limit_leaves_room_where_positions_begin_behind_padding(tokenizer):
    config = RobertaConfig(
        vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).eval()
    assert token_limit(tokenizer, model) == 32
    model(torch.full((1, 32), 5))  # as many go in, and no more
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))
    assert token_limit(tokenizer, model, 7) == 7
    with pytest.raises(ValueError, match="at most 32, which the model takes; got 33"):
        token_limit(tokenizer, model, 33)
