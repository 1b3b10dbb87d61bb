"""What the config of a DiT may say, checked before anything of the sizes in it is made: it may come from elsewhere."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

MOST = {  # of whole numbers from 1 on: more than any model has
    "patch_size": 1024,
    "in_channels": 65_536,
    "num_layers": 4096,
    "num_attention_heads": 65_536,
    "attention_head_dim": 65_536,
    "num_classes": 10_000_000,
}
MOST_SIDE = 1 << 20  # of a sample
MOST_PARAMETERS = 10**12
HIGHEST = {"class_dropout_prob": 1, "dropout": 1, "mlp_ratio": 1024, "norm_eps": 1, "mlp_norm_eps": 1}  # from 0 on
MAY_BE_NONE = ("num_classes", "mlp_norm_eps", "qk_norm")
# Of words, the default first.
CHOICES: dict[str, tuple[str | None, ...]] = {
    "conditioning": ("adaln_zero", "adaln", "cross_attention", "in_context"),
    "qk_norm": (None, "rms_norm"),
    "position": ("sincos", "rope"),
    "mlp": ("gelu", "swiglu"),
    "embedders": ("shared", "separate"),
}


def check_dit_config(config: Mapping) -> None:
    """Raise a `ValueError` for an argument of the model that is outside its range; what is not there is not looked at.

    Args:
        config: arguments of `DiTModel` by name, of any types.
    """
    given = {name: value for name, value in config.items() if value is not None or name not in MAY_BE_NONE}
    for name in MOST.keys() & given.keys():
        _check_whole(name, given[name], MOST[name])
    for name in HIGHEST.keys() & given.keys():
        value, highest = given[name], HIGHEST[name]
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= highest:  # NaN is in no range
            raise ValueError(f"{name} must lie in [0, {highest}], got {_cut(value)}")
    for name in {"learn_sigma", "attention_bias"} & given.keys():
        if not isinstance(given[name], bool):
            raise ValueError(f"{name} must be true or false, got {_cut(given[name])}")
    shift = given.get("downscale_freq_shift", 0)
    if isinstance(shift, bool) or not isinstance(shift, Real) or shift not in (0, 1):
        raise ValueError(f"downscale_freq_shift must be 0 or 1, got {_cut(shift)}")
    for name in CHOICES.keys() & given.keys():
        if not isinstance(given[name], str) or given[name] not in CHOICES[name]:
            raise ValueError(f"{name} must be {' or '.join(map(str, CHOICES[name]))}, got {_cut(given[name])}")
    attention = given.get("attention", "full")
    if not isinstance(attention, str):  # None is what set_attn_processor leaves for a processor without a spec
        raise ValueError(f"attention must be a spec such as 'full' or 'na7', got {_cut(attention)}")
    if "sample_size" in given:
        _check_sample_size(given["sample_size"], given.get("patch_size", 1))
    _check_width(given)
    _check_variant(given)


def label_rows(num_classes: int | None, class_dropout_prob: float) -> int:
    """Rows of a table of labels: the classes, and the null class where labels are dropped; 0 without classes."""
    return 0 if num_classes is None else num_classes + (class_dropout_prob > 0)


def plain(value: object) -> object:
    """An argument of the model as JSON knows it: numbers of numpy, alone or in a list, become Python's."""
    if isinstance(value, list | tuple) and any(isinstance(part, np.generic) for part in value):
        return type(value)(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _check_whole(name: str, value: Any, most: int) -> None:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole:
        none = ", or None for an unconditional model" if name == "num_classes" else ""
        raise ValueError(f"{name} must be a whole number{none}, got {_cut(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {_cut(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {_cut(value)}")


def _check_sample_size(size: object, patch: int) -> None:
    sides = tuple(size) if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    for side in sides:
        _check_whole("sample_size", side, MOST_SIDE)
    if any(side % patch for side in sides):
        raise ValueError(f"height and width must be multiples of patch_size={patch}, got {sides[0]} x {sides[1]}")


def _check_width(config: Mapping) -> None:
    names = ("num_attention_heads", "attention_head_dim", "num_layers")
    if not config.keys() >= set(names):
        return
    heads, head_dim, layers = (config[name] for name in names)
    width = heads * head_dim
    if width % 4:
        raise ValueError(
            "num_attention_heads * attention_head_dim must be divisible by 4 for the position embedding, got "
            f"{heads} * {head_dim}"
        )
    # Of a block: attention, modulation (or a second attention), MLP.
    parameters = layers * width**2 * (4 + 6 + 2 * config.get("mlp_ratio", 4))
    embedders = layers if config.get("embedders") == "separate" else 1
    parameters += embedders * width * config.get("num_classes", 0)
    parameters += width * 2 * config.get("in_channels", 1) * config.get("patch_size", 1) ** 2
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"num_layers={layers} of num_attention_heads * attention_head_dim={heads} * {head_dim} channels would be "
            f"{float(parameters):.2g} parameters; at most {MOST_PARAMETERS:.0e} are taken"
        )


def _check_variant(config: Mapping) -> None:
    if config.get("position") == "rope" and config.get("attention_head_dim", 4) % 4:
        raise ValueError(
            "attention_head_dim must be divisible by 4 for position='rope', which turns pairs of channels by row and "
            f"by column, got {config['attention_head_dim']}"
        )
    if config.get("embedders") == "separate" and config.get("conditioning") == "in_context":
        raise ValueError(
            "embedders must be 'shared' for conditioning='in_context', whose tokens enter before the first block, got "
            "'separate'"
        )


def _cut(value: Any) -> str:
    # Python writes no whole number of more than some thousand digits.
    is_whole = isinstance(value, Integral)
    text = "a number of many digits" if is_whole and abs(value) > 10**30 else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
