"""The CIFAR networks by name, and any saved classifier by its folder or Hub id."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from numbers import Integral
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_common.foreign import dict_of, first_line, list_of, short, whole
from hf_common.names import did_you_mean

from ..networks import NETWORKS

# name -> callable that makes a config; keyword arguments are the fields of that config
MODELS: dict[str, Callable] = {
    name: partial(getattr(import_module(f".{network.module}", __package__), network.config), **network.fields)
    for name, network in NETWORKS.items()
}

MOST_LABELS = 10_000_000


def load_model(
    name_or_path: str | os.PathLike,
    *,
    num_labels: int,
    id2label: Mapping[int, str] | None = None,
    image_size: int | None = None,
    trust_remote_code: bool = False,
    fresh_head: bool = True,
    text: bool = False,
    **config_overrides: Any,
) -> PreTrainedModel:
    """A classifier for `num_labels` classes: a fresh network of `MODELS`, or one from a folder or the Hub.

    The names of `MODELS` come first, then folders, then Hub ids. Fresh weights are drawn from PyTorch's global
    generator (seed it first). Loaded weights are exact, complete and in float32, whatever the file has; only the head
    is drawn afresh where the saved one has another number of classes, or where a backbone without a head was saved.

    Args:
        name_or_path: a key of `MODELS`, a folder written by `save_pretrained`, or a Hub id that
            `AutoModelForImageClassification` loads.
        num_labels: number of classes, at least 2.
        id2label: class names for the config, with exactly the keys `0..num_labels-1`. Without it a loaded model
            with `num_labels` classes keeps its own names, any other gets `LABEL_0`, ...
        image_size: height and width of the images, for fresh networks whose linear layer fixes it (`cnn_small`,
            `cnn8`; default 32). The others take any size, and loaded models bring theirs.
        trust_remote_code: as in `from_pretrained`.
        fresh_head: whether the head of a saved model may be drawn afresh; False for a model that is only scored.
        text: whether it classifies texts, as `AutoModelForSequenceClassification` does; those of `MODELS` do not.
        config_overrides: further fields of the config, e.g. `batch_norm=False` for `cnn_small`.

    Returns:
        A model with `model(pixel_values).logits` of shape `(B, num_labels)`. Fresh ones are in training mode, loaded
        ones in evaluation mode.

    Raises:
        TypeError: `name_or_path` or `num_labels` is of another type.
        ValueError: the name is neither one of `MODELS` nor loadable, `num_labels` is below 2, `id2label` has other
            keys, a fresh network's config has no such field, or a file lacks weights, has others, or another shape.
    """
    labels = _check_labels(name_or_path, num_labels, id2label)
    name = os.fspath(name_or_path)
    if name in MODELS:
        if text:
            raise ValueError(f"model {name!r} takes images; of texts give a folder or Hub id")
        return _fresh_model(name, labels, image_size, config_overrides)
    kind = AutoModelForSequenceClassification if text else AutoModelForImageClassification
    return _saved_model(kind, name, labels, fresh_head, trust_remote_code, config_overrides)


def _saved_model(
    kind: Any, name: str, labels: dict, fresh_head: bool, trust_remote_code: bool, overrides: dict
) -> PreTrainedModel:
    saved, num_labels = saved_config(name, trust_remote_code=trust_remote_code), labels["num_labels"]
    try:
        model, info = kind.from_pretrained(
            name,
            **labels,
            **{"dtype": torch.float32} | overrides,  # a file in half precision is no wish to train in it
            # Only then: in a head of the right size a mismatch is damage that must not go unnoticed.
            ignore_mismatched_sizes=saved.num_labels != num_labels,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ImportError:  # of a package that the file needs: it says which
        raise
    except Exception as error:  # of any kind: the library takes what is in the files for what it wrote itself
        raise ValueError(
            f"model {short(repr(name), 120)} can't be loaded as its config says: {short(first_line(error), 160)}"
        ) from error
    resized = {
        weight
        for weight, was, is_now in info["mismatched_keys"]
        if fresh_head
        and len(was)
        and len(is_now)
        and (was[0], is_now[0]) == (saved.num_labels, num_labels)
        and was[1:] == is_now[1:]
    }
    lacking = set(info["missing_keys"]) | {weight for weight, *_ in info["mismatched_keys"]}
    of_backbone = bool(saved.architectures) and type(model).__name__ not in (saved.architectures or ())
    if fresh_head and of_backbone:
        lacking = {weight for weight in lacking if _of_backbone(model, weight)}
    if lost := sorted(lacking - resized):
        raise ValueError(f"model {name!r} does not hold all weights of {type(model).__name__}: {_some_of(lost)}")
    if not of_backbone and (unknown := sorted(info["unexpected_keys"])):
        raise ValueError(f"model {name!r} holds weights that {type(model).__name__} has not: {_some_of(unknown)}")
    if set(model.config.id2label) != set(range(num_labels)):
        kept = short(sorted(model.config.id2label), 80)
        raise ValueError(f"model {name!r}: id2label of its config must name 0..{num_labels - 1}, names {kept}")
    return model


def _some_of(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _of_backbone(model: PreTrainedModel, weight: str) -> bool:
    """Whether a weight of a classifier is one that a backbone saved without its head holds."""
    part, own = weight.split(".")[0], model.base_model_prefix
    if own and hasattr(model, own):
        # Some classes count the pooling before the head to the backbone, which is saved without.
        return part == own and not weight.startswith(f"{own}.pooler.")
    # CLIP, SigLIP and others hold the backbone under another name: the head is what comes last.
    return part != [name for name, module in model.named_children() if any(True for _ in module.parameters())][-1]


def _check_labels(name_or_path: str | os.PathLike, num_labels: int, id2label: Mapping[int, str] | None) -> dict:
    """What a config says of the classes; raises for arguments of [`load_model`] that can't be."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"name_or_path must be a str or a path, got {type(name_or_path).__name__}")
    if not isinstance(num_labels, Integral) or isinstance(num_labels, bool):
        raise TypeError(f"num_labels must be an int, got {num_labels!r}")
    if not 2 <= num_labels <= MOST_LABELS:
        raise ValueError(f"num_labels must lie in 2..{MOST_LABELS}, got {short(num_labels, 40)}")
    if id2label is None:
        return {"num_labels": int(num_labels)}
    if set(id2label) != set(range(num_labels)):
        raise ValueError(f"id2label must have the keys 0..{num_labels - 1}, got {list(id2label)}")
    return {
        "num_labels": int(num_labels),
        "id2label": dict(id2label),
        "label2id": {name: index for index, name in id2label.items()},
    }


def _fresh_model(name: str, labels: dict, image_size: int | None, overrides: dict) -> PreTrainedModel:
    fields = MODELS[name]().to_dict()
    if unknown := sorted(set(overrides) - set(fields)):
        own = sorted(set(fields) - set(PreTrainedConfig().to_dict()))
        raise ValueError(f"model {name!r} has no config field {unknown}; its own fields are {own}")
    if image_size is not None and "image_size" in fields:
        overrides = overrides | {"image_size": image_size}
    return AutoModelForImageClassification.from_config(MODELS[name](**labels, **overrides))


def saved_config(name_or_path: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a saved model, a folder or Hub id; a `ValueError` that lists `MODELS` where there is none."""
    try:
        _check_labels_of(PreTrainedConfig.get_config_dict(name_or_path)[0])
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except Exception as error:  # of any kind: the library takes the file's fields for what it wrote itself
        raise ValueError(
            f"model {short(repr(name_or_path), 120)} is neither one of {list(MODELS)} nor a folder or Hub id with a "
            f"model: {short(first_line(error), 120)}{did_you_mean(str(name_or_path), MODELS)}"
        ) from error


def _check_labels_of(content: dict) -> None:
    """Raise a `ValueError` if the fields of a config's file name no classes or too many, whose names are made."""
    if not isinstance(content, dict):
        raise ValueError(f"config.json must hold an object, holds {type(content).__name__}")
    count = content.get("num_labels")
    if count is not None and not whole(0, MOST_LABELS)(count):
        raise ValueError(f"num_labels must be a whole number up to {MOST_LABELS}, got {short(repr(count), 40)}")
    if not list_of(str)(content.get("architectures") or []):
        raise ValueError(f"architectures must be a list of str, got {short(repr(content['architectures']), 60)}")
    for name, kind in (("id2label", str), ("label2id", int)):
        names = content.get(name)
        if names is not None and not dict_of(kind)(names):
            raise ValueError(f"{name} must be an object of {kind.__name__}, got {short(repr(names), 60)}")
