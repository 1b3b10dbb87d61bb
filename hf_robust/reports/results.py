"""What `results.json` says of a run: its training settings, its history by epoch, its accuracy, where it ran.

Of it figures and tables read

- `settings`: `loss`, `noise`, `model`, `seed`;
- `noise`: `rate`, the realised share of wrong labels, or None where the clean labels are unknown, and `matrix`, their
  K x K transition matrix; `estimated_rate` and `estimated_matrix`, what a method made of the noisy labels alone;
  `estimate`, within what bounds, and whether that can be told, see [`~hf_robust.noise.summary.noise_summary`];
- `label_names`: the K classes;
- `accuracy`: `last` and `best`, test accuracies in 0..1, and `best_epoch`;
- `memorisation`: `train_memorised` and `train_separation_auc` of the last epoch;
- `history`: one dict an evaluation with `epoch` and `test_accuracy`, and where the clean labels of the training images
  are known `train_clean_accuracy` (all images, clean label), `train_memorised` (wrongly labelled images, the wrong
  label), `train_separation_auc` and `loss_histogram` (see `plot_loss_histograms`); shares in 0..1. Absent or None, a
  value is left out.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from itertools import pairwise
from typing import Any

from transformers import TrainingArguments

from hf_common.foreign import Check, check_fields, dict_of, list_of, number, read_json, refuse, short, whole
from hf_common.plugins import needs_plugins

from ..losses import format_loss_spec, parse_loss_spec
from ..noise.bounds import CANNOT_TELL, IN_SAMPLE, OK, TOO_FEW

# Always part of a run's settings. Any other training argument is if it has not its default, but for those of NEUTRAL,
# which change what is written, shown or fetched and not what is learned.
RECIPE = (
    "loss seed learning_rate weight_decay decay_bias_and_norm optim optim_args lr_scheduler_type max_grad_norm "
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps do_train"
).split()
NEUTRAL = set(
    "output_dir do_predict resume_from_checkpoint log_level log_level_replica log_on_each_node "
    "logging_strategy logging_steps logging_first_step disable_tqdm report_to run_name project trackio_space_id "
    "trackio_bucket_id trackio_static_space_id save_strategy save_steps save_total_limit save_on_each_node "
    "save_only_model enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy "
    "hub_always_push hub_revision per_device_eval_batch_size eval_accumulation_steps dataloader_num_workers "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context use_cpu local_rank ddp_backend ddp_timeout ddp_bucket_cap_mb "
    "skip_memory_metrics debug include_num_input_tokens_seen".split()
)


def _is_loss(value: object) -> bool:
    """the spec of a loss"""
    try:
        return isinstance(value, str) and bool(parse_loss_spec(value))
    except ValueError:
        return False


def _is_name(value: object) -> bool:
    """a text of 1 to 200 characters"""
    return isinstance(value, str) and 1 <= len(value) <= 200


SHARE = number(0, 1)
COUNT, EPOCH, LOSS = whole(0, 10**15), number(0, 1e9), number(-1e30, 1e30)  # as far as figures can show them
GIVEN = "given"  # labels of which nobody says that they are right
# What of a file others read: a name with "?" may be missing or None, as in files of older versions.
RESULT_FIELDS: dict[str, Check] = {
    "settings": dict,
    "accuracy": dict,
    "noise": dict,
    "history": list_of(dict),
    "memorisation?": dict_of(number()),
    "images_per_second?": number(0),
    "train_images?": COUNT,
    "test_images?": COUNT,
    "parameters?": COUNT,
    "label_names?": list_of(str),
    "hardware?": str,
    "versions?": dict_of(str),
    "plugins?": list_of(str),
    "finished?": str,
}
SETTING_FIELDS: dict[str, Check] = {"loss": _is_loss, "noise": _is_name, "model": str, "seed": whole()}
ACCURACY_FIELDS: dict[str, Check] = {"last": SHARE, "best": SHARE, "best_epoch": EPOCH}
NOISE_FIELDS: dict[str, Check] = {
    "rate?": SHARE,
    "matrix?": list_of(list_of(SHARE)),
    "estimated_rate?": SHARE,
    "estimated_matrix?": list_of(list_of(SHARE)),
    "test_labels?": lambda value: value == GIVEN,
    "estimate?": dict,
}
SHARES = "train_clean_accuracy train_given_accuracy train_memorised train_recovered train_separation_auc"
ROW_FIELDS: dict[str, Check] = {
    "epoch": EPOCH,
    "test_accuracy": SHARE,
    **{f"{name}?": SHARE for name in SHARES.split()},
    **{f"{name}?": number() for name in ("train_loss", "learning_rate", "test_loss", "test_cross_entropy")},
    "loss_histogram?": dict,
}
COUNTS = list_of(COUNT)
ESTIMATE_FIELDS: dict[str, Check] = {
    "verdict": lambda value: value in (OK, TOO_FEW, CANNOT_TELL, IN_SAMPLE),
    "images": COUNT,
    "agreement": SHARE,
    "kappa": number(-1, 1),
    "held_out_accuracy?": SHARE,
    "rate_interval?": list_of(SHARE, 2),
    "given_per_class": COUNTS,
    "confident_per_class": COUNTS,
    "low?": list,
    "high?": list,
}
HISTOGRAM_FIELDS: dict[str, Check] = {"edges": list_of(LOSS), "clean": COUNTS, "flipped": COUNTS}


def read_results(path: str | os.PathLike) -> dict:
    """The content of a run's `results.json`, of this version or an older one, checked as far as anyone reads it.

    What may be missing there and is missing is None, a missing `memorisation` is empty.

    Raises:
        ValueError: naming the file and what in it is not as it must be.
    """
    results = read_json(path)
    check_fields(results, RESULT_FIELDS, path)
    loss = results["settings"].get("loss")
    if results.get("plugins") and isinstance(loss, str) and not _is_loss(loss):
        raise refuse(path, f"loss {short(repr(loss), 80)} {needs_plugins(results['plugins'])}")
    check_fields(results["settings"], SETTING_FIELDS, path, "settings.")
    if results["accuracy"]:  # empty of a run that was never evaluated
        check_fields(results["accuracy"], ACCURACY_FIELDS, path, "accuracy.")
    _check_noise(results, path)
    for place, row in enumerate(results["history"]):
        check_fields(row, ROW_FIELDS, path, f"history[{place}].")
        if row.get("loss_histogram") is not None:
            _check_histogram(row["loss_histogram"], path, f"history[{place}].loss_histogram.")
    _check_summaries(results, path)
    absent = {"noise": {"rate": None} | results["noise"], "memorisation": results.get("memorisation") or {}}
    return {name.removesuffix("?"): None for name in RESULT_FIELDS if name != "plugins?"} | results | absent


def _check_noise(results: dict, path: str | os.PathLike) -> None:
    noise, names = results["noise"], results.get("label_names")
    check_fields(noise, NOISE_FIELDS, path, "noise.")
    if (estimate := noise.get("estimate")) is not None:
        check_fields(estimate, ESTIMATE_FIELDS, path, "noise.estimate.")
        if estimate["verdict"] == OK and estimate.get("rate_interval") is None:
            raise refuse(path, "'noise.estimate.rate_interval' is missing")
        size = max(1, len(names or noise.get("estimated_matrix") or ()))
        row = list_of(SHARE, size)
        for name in ("low", "high"):
            rows = estimate.get(name)
            if estimate["verdict"] == OK and not (
                isinstance(rows, list) and len(rows) == size and all(each is None or row(each) for each in rows)
            ):
                raise refuse(path, f"'noise.estimate.{name}' must have {size} rows of {size} shares, or none")
    for name in ("matrix", "estimated_matrix"):
        matrix = noise.get(name)
        if matrix is not None:
            size = len(matrix) if names is None else len(names)
            size = max(size, 1)
            square = list_of(list_of(SHARE, size), size)(matrix)
            if not square or any(abs(sum(row) - 1) > 1e-4 for row in matrix):
                raise refuse(path, f"'noise.{name}' must have {size} rows of {size} shares that sum to 1")
            rate, kept = noise.get(name.replace("matrix", "rate")), [row[place] for place, row in enumerate(matrix)]
            # A mean over the classes, whatever their sizes.
            if rate is not None and not 1 - max(kept) - 1e-4 <= rate <= 1 - min(kept) + 1e-4:
                raise refuse(path, f"'noise.{name.replace('matrix', 'rate')}' must be that of its matrix, is {rate}")


def _check_histogram(histogram: dict, path: str | os.PathLike, where: str) -> None:
    check_fields(histogram, HISTOGRAM_FIELDS, path, where)
    if {len(histogram["clean"]), len(histogram["flipped"])} != {len(histogram["edges"]) - 1}:
        raise refuse(path, f"{where}clean and {where}flipped must have a count between each two edges")
    if any(low >= high for low, high in pairwise(histogram["edges"])):
        raise refuse(path, f"{where}edges must ascend")


def _check_summaries(results: dict, path: str | os.PathLike) -> None:
    """What stands in a file twice must be the same."""
    history = results["history"]
    if results["accuracy"] != accuracy_summary(history):
        raise refuse(path, "'accuracy' must be that of its history")
    fits = {name: value for name, value in last_row(history).items() if name.startswith("train_")}
    if any(fits.get(name) != value for name, value in (results.get("memorisation") or {}).items()):
        raise refuse(path, "'memorisation' must be that of the last entry of its history")


def changed_arguments(args: TrainingArguments) -> dict:
    """The fields that differ from their defaults, in the order of the dataclass."""
    # A second object with the defaults, to compare with, is no way: making one resets the state of the processes.
    return {
        item.name: getattr(args, item.name)
        for item in fields(args)
        if getattr(args, item.name) != (item.default if item.default_factory is MISSING else item.default_factory())
    }


def training_settings(args: Any) -> dict:
    """What of `RobustTrainingArguments` a result depends on, as JSON values."""
    others = {name: value for name, value in args.not_default.items() if name not in NEUTRAL and name not in RECIPE}
    settings = {
        **{name: getattr(args, name) for name in RECIPE},
        "loss": format_loss_spec(parse_loss_spec(args.loss)),
        "processes": args.world_size,
        "other_arguments": others,
    }
    return json.loads(json.dumps(settings, default=str))


def epoch_history(log_history: list[dict]) -> list[dict]:
    """`Trainer`'s log, one entry an evaluation: its epoch, loss, learning rate, test scores and training fits.

    That of a resumed run is that of one that was never stopped.
    """
    names = {
        "loss": "train_loss",
        "learning_rate": "learning_rate",
        "eval_loss": "test_loss",
        "eval_accuracy": "test_accuracy",
        "eval_cross_entropy": "test_cross_entropy",
        "train_clean_accuracy": "train_clean_accuracy",
        "train_given_accuracy": "train_given_accuracy",
        "train_memorised": "train_memorised",
        "train_recovered": "train_recovered",
        "train_separation_auc": "train_separation_auc",
        "loss_histogram": "loss_histogram",
    }
    by_step: dict[int, dict] = {}
    for entry in log_history:
        row = {names[key]: value for key, value in entry.items() if key in names}
        by_step.setdefault(entry.get("step", 0), {"epoch": entry.get("epoch", 0.0)}).update(row)
    return [row for _, row in sorted(by_step.items()) if "test_accuracy" in row]


def accuracy_summary(history: list[dict]) -> dict:
    """Test accuracy of the last epoch, and the best with its epoch (the earliest of equals)."""
    if not history:
        return {}
    best = max(history, key=lambda row: row["test_accuracy"])
    return {"last": history[-1]["test_accuracy"], "best": best["test_accuracy"], "best_epoch": best["epoch"]}


def last_row(history: list[dict]) -> dict:
    """The last entry of a history, {} of an empty one."""
    return history[-1] if history else {}


def scored_on_given(results: Iterable[dict]) -> bool:
    """Whether one of the results was scored on labels of which nobody says that they are right."""
    return any(result["noise"].get("test_labels") == GIVEN for result in results)
