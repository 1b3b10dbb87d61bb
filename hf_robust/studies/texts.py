"""The texts of a run as its network takes them: tokens by the network's own tokenizer."""

from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from hf_common.foreign import first_line, short

from ..data.text import TextSplits, token_limit
from .flags import DataArguments, ModelArguments


def make_tokenizer(model: ModelArguments) -> Any:
    """The tokenizer in the folder or repository of a model.

    Raises:
        ValueError: there is none, or it knows no words, or has no token for padding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.model, trust_remote_code=model.trust_remote_code)
    except ImportError:  # of a package that it needs: it says which
        raise
    except Exception as error:  # of any kind: the library takes what is in the files for what it wrote itself
        raise ValueError(
            f"model {short(repr(model.model), 120)} has no tokenizer that loads: {short(first_line(error), 160)}"
        ) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # what the library makes of no files at all
        raise ValueError(f"model {short(repr(model.model), 120)} has no tokenizer: save one in its folder")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer of model {short(repr(model.model), 120)} has no token for padding: set its pad_token, "
            "in a folder with the model"
        )
    return tokenizer


def tokenized_splits(data: DataArguments, splits: TextSplits, tokenizer: Any, network: PreTrainedModel) -> TextSplits:
    """The texts as the network takes them, which learns what the padding is."""
    config: Any = network.config
    if getattr(config, "pad_token_id", None) is None:  # by which decoders find the last token
        config.pad_token_id = tokenizer.pad_token_id
    words = network.get_input_embeddings()
    if isinstance(words, nn.Embedding) and len(tokenizer) > words.num_embeddings:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model knows {words.num_embeddings}: they do not belong "
            "together"
        )
    limit = token_limit(tokenizer, network, data.max_seq_length)
    if (
        len(splits.train.columns) == 2
        and limit is not None
        and limit <= (own := tokenizer.num_special_tokens_to_add(True))
    ):
        raise ValueError(f"max_seq_length must be more than {own}, the special tokens of a pair; got {limit}")
    train, test = (part.tokenized(tokenizer, limit) for part in (splits.train, splits.test))
    return TextSplits(train, test, splits.label_names)
