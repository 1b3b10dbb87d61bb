"""Sentences of two topics, and a BERT small enough to learn them in seconds."""

import csv

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

TOPICS = {
    "cooking": "oven flour recipe butter sugar sauce onion garlic simmer bake pan spice".split(),
    "sport": "goal team match league player coach striker referee stadium cup season score".split(),
}
FILLERS = "the a of with in and then very some this was they".split()


def sentences(count, seed=0):
    """Texts and their topics: two words in five are of the topic."""
    draw, names = np.random.default_rng(seed), list(TOPICS)
    topics = [names[place % 2] for place in range(count)]
    texts = [
        " ".join(draw.choice(TOPICS[topic] if draw.random() < 0.4 else FILLERS) for _ in range(draw.integers(6, 15)))
        for topic in topics
    ]
    return texts, topics


def with_wrong(topics, share, seed=0):
    """So large a share of the topics swapped for the other one, exactly and in each alike."""
    names, given = list(TOPICS), list(topics)
    for topic in names:
        places = [place for place, own in enumerate(topics) if own == topic]
        for place in np.random.default_rng(seed).permutation(places)[: round(share * len(places))]:
            given[place] = names[1 - names.index(topic)]
    return given


def write_csv(path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(list(columns))
        writer.writerows(zip(*columns.values(), strict=True))


def save_bert(folder, texts, classes=2, **changes):
    """A folder with a BERT of random weights and a tokenizer of the words in the texts."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    # Far from zero: of 0.02, the usual deviation, nothing is learned in so few steps.
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.2, num_labels=classes,
        **{**size, **changes},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return tokenizer
