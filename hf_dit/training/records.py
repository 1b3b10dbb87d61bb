"""What a training wrote down of itself, read back as the files of others: its results, the state of a checkpoint."""

import math
import os
from dataclasses import fields
from typing import get_args, get_type_hints

from hf_common.foreign import Check, check_fields, dict_of, list_of, number, read_json, refuse, short, whole

from ..attention.spec import make_attn_processors
from ..models.config import check_dit_config
from .arguments import FLOW_TIMES, PREDICTION_TYPES, DataArguments, DiTTrainingArguments, ModelArguments
from .figures import smoothed


def _is_from_hub(name: object) -> bool:
    """dataset_name, model or vae"""
    return name in ("dataset_name", "model", "vae")


SCALE: dict[str, Check] = {"loss": number(), "learning_rate": number(0)}
RESULT_FIELDS: dict[str, Check] = {
    "settings": dict,
    "steps": whole(1),
    "loss": number(),
    "history": list_of(dict),
    "images_per_second?": number(0),
    "processes": whole(1),
    "sharded?": bool,
    "train_images": whole(1),
    "skipped_images": whole(),
    "label_names": (list_of(str), None),
    "sample_shape": list_of(whole(1), 3),
    "config": dict,
    "from_hub": list_of(_is_from_hub),
    "parameters": whole(1),
    "trained_parameters?": whole(1),
    "hardware": str,
    "versions": dict_of(str),
    "plugins?": list_of(str),
    "scored?": list_of(dict_of(number())),
    "finished": str,
}
NEEDED_SETTINGS: dict[str, Check] = {  # of those that the card reads; files of all versions have them
    "dataset_name": (str, None),
    "train_data_dir": (str, None),
    "model": str,
    "config_overrides": (str, None),
    "vae": (str, None),
    "resolution": (whole(1), None),
    "global_batch": whole(1),
    "mixed_precision": str,
    "ddpm_num_steps": whole(1),
    "prediction_type": lambda value: value in PREDICTION_TYPES,
    "flow_times?": lambda value: value in FLOW_TIMES,
    "rescale_betas_zero_snr?": bool,
    **dict.fromkeys(
        ["snr_gamma?", "flow_logit_mean?", "flow_logit_std?", "flow_mode_scale?", "flow_shift?"], number()
    ),
}
CONFIG_FIELDS: dict[str, Check] = {  # beside what `check_dit_config` says of them
    "sample_size": (int, list_of(int, 2)),
    **dict.fromkeys("patch_size in_channels num_layers num_attention_heads attention_head_dim".split(), int),
    "num_classes": (int, None),
    "learn_sigma": bool,
    "class_dropout_prob": float,
    "attention": str,
}
STATE_FIELDS: dict[str, Check] = {
    "step": whole(1),
    "global_batch": whole(1),
    "train_images": whole(1),
    "history": list_of(dict),
    "window": (list_of(list_of(number(), 2)), list_of(list_of(number(), 3))),
    "scored?": list_of(dict_of(number())),
    "files?": dict_of(str),  # their digests; none in those of older versions
}


def read_training(path: str | os.PathLike) -> dict:
    """The content of a training's `results.json`, of this version or an older one.

    Raises:
        ValueError: naming the file and what in it is not as it must be.
    """
    results = read_json(path)
    check_fields(results, RESULT_FIELDS, path)
    settings, config = results["settings"], results["config"]
    check_fields(settings, NEEDED_SETTINGS, path, "settings.")
    # Those of older versions are fewer; what is there must be as the flag of that name takes it.
    given = {name: check for name, check in _flags().items() if name in settings}
    check_fields(settings, given, path, "settings.")
    if settings["dataset_name"] is None and settings["train_data_dir"] is None:
        raise refuse(path, "its settings must have a dataset_name or a train_data_dir")
    check_fields(config, CONFIG_FIELDS, path, "config.")
    try:
        check_dit_config(config)
        make_attn_processors(config["attention"], config["num_layers"])
    except ValueError as error:
        raise refuse(path, f"config: {error}") from None
    classes, names = config.get("num_classes"), results.get("label_names")
    if (None if names is None else len(names)) != classes:
        raise refuse(path, f"must have label_names of num_classes={classes}, has {short(names, 80)}")
    history = results["history"]
    _check_history(history, results["steps"], path, {"smoothed": number()})
    # What stands in a file twice must be the same.
    if not history or (history[-1]["step"], history[-1]["loss"]) != (results["steps"], results["loss"]):
        raise refuse(path, "'steps' and 'loss' must be those of the last entry of its history")
    again = [row["smoothed"] for row in smoothed(history)]
    if not all(math.isclose(row["smoothed"], mean) for row, mean in zip(history, again, strict=True)):
        raise refuse(path, "'smoothed' must be the mean of the last fifth of the losses")
    return results


def read_state(path: str | os.PathLike, step: int) -> dict:
    """What stands in the checkpoint of a step beside its tensors.

    Raises:
        ValueError: naming the file and what in it is not as it must be.
    """
    state = read_json(path)
    check_fields(state, STATE_FIELDS, path)
    if state["step"] != step:
        raise refuse(path, f"'step' must be {step}, as in the folder's name, is {state['step']}")
    _check_history(state["history"], state["step"], path, {})
    if not all(_adds_up(*losses) for losses in state["window"]):
        raise refuse(path, "'window' must hold losses that are the sums of their parts")
    for name in state.get("files") or {}:
        if name.startswith("/") or ".." in name.split("/"):
            raise refuse(path, f"'files' must name files of the checkpoint, names {short(repr(name), 80)}")
    return state


def _check_history(rows: list[dict], steps: int, path: str | os.PathLike, more: dict[str, Check]) -> None:
    last = 0
    for place, row in enumerate(rows):
        parts = [part for part in ("mse", "vb") if part in row]
        fields_of_row = {"step": whole(last + 1, steps), **SCALE, **dict.fromkeys(parts, number()), **more}
        check_fields(row, fields_of_row, path, f"history[{place}].")
        last = row["step"]
        if row.keys() != rows[0].keys():
            raise refuse(path, f"history[{place}] must have the values of history[0], {sorted(rows[0])}")
        if not _adds_up(row["loss"], *(row[part] for part in parts)):
            raise refuse(path, f"'history[{place}].loss' must be the sum of its parts, is {row['loss']}")


def _adds_up(loss: float, *parts: float) -> bool:
    # Each is a mean in float32 of its own.
    return not parts or math.isclose(loss, sum(parts), rel_tol=1e-3, abs_tol=1e-6)


def _flags() -> dict[str, Check]:
    """The type of each flag: `int | None` as `(int, NoneType)`."""
    parts = (DataArguments, ModelArguments, DiTTrainingArguments)
    hints = {field.name: get_type_hints(part)[field.name] for part in parts for field in fields(part)}
    return {name: tuple(get_args(hint)) or hint for name, hint in hints.items() if not hasattr(hint, "__origin__")}
