"""The model card of a training whose script and data are not ours to know: what its trainer tells."""

from collections.abc import Mapping, Sequence, Sized
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_common.environment import hardware, versions
from hf_common.public import without_paths

from .. import LIBRARIES
from ..reports.card import render_card
from ..reports.results import NEUTRAL, accuracy_summary, epoch_history, last_row, training_settings


def trainer_card(
    trainer: Any,
    *,
    base_model: str | None,
    dataset: str | None,
    noise: str | None,
    name: str | None,
    task: str | None,
    metadata: Mapping,
    tags: Sequence[str],
) -> str:
    """The card, Markdown with its YAML, of what a [`~hf_robust.training.trainer.RobustTrainer`] has trained.

    Args:
        base_model: Hub id. By default the one that the model was loaded from.
        dataset, noise: of the training data: name or Hub id, and config, such as `symmetric_40`.
        name: the title. By default the last part of `hub_model_id`.
        task: by default `image-classification` with an image processor, `text-classification` with a tokenizer.
        metadata, tags: as for [`render_card`].
    """
    args = trainer.args
    config = trainer.model.config if isinstance(trainer.model, PreTrainedModel) else None
    loaded_from = config.name_or_path if config is not None else ""
    if base_model is None and loaded_from and not Path(loaded_from).exists():
        base_model = loaded_from
    if task is None and isinstance(trainer.processing_class, BaseImageProcessor):
        task = "image-classification"
    elif task is None and isinstance(trainer.processing_class, PreTrainedTokenizerBase):
        task = "text-classification"
    name = name or (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    arguments = {key: value for key, value in args.not_default.items() if key not in NEUTRAL}
    return render_card(
        [_trainer_results(trainer, base_model, dataset, noise)],
        repo_id=args.hub_model_id or name,
        name=name,
        task=task,
        reproduce=python_arguments({"loss": trainer.loss.spec} | without_paths(arguments)),
        metadata=metadata,
        tags=tags,
    )


def _trainer_results(trainer: Any, base_model: str | None, dataset: str | None, noise: str | None) -> dict:
    """What is known of this training, as `results.json` of an experiment has it."""
    model, history = trainer.model, epoch_history(trainer.state.log_history)
    config = model.config.to_dict() if isinstance(model, PreTrainedModel) else {}
    settings = training_settings(trainer.args) | {"loss": trainer.loss.spec, "dataset": dataset, "noise": noise}
    train, test = trainer.train_dataset, trainer.eval_dataset
    return {
        "settings": without_paths(settings) | {"model": base_model or type(model).__name__},
        "accuracy": accuracy_summary(history),
        "noise": {"rate": None},
        "memorisation": {key: value for key, value in last_row(history).items() if key.startswith("train_")},
        "history": history,
        "images_per_second": None,
        "train_images": len(train) if isinstance(train, Sized) else None,
        "test_images": len(test) if isinstance(test, Sized) else None,
        "label_names": list(config.get("id2label", {}).values()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "remote_code": isinstance(model, PreTrainedModel) and model.is_remote_code(),
        "hardware": hardware(trainer.args.device),
        "versions": versions(LIBRARIES),
    }


def python_arguments(arguments: Mapping) -> str:
    """How to reproduce a training whose data and script are not ours to know: its arguments, Markdown."""
    values = {
        name: value.value if isinstance(value, Enum) else value  # an enum's repr is no Python
        for name, value in {"output_dir": "runs/again", **arguments}.items()
    }
    lines = "\n".join(f"    {name}={value!r}," for name, value in values.items())
    return (
        "Trained by a script of its author's with `RobustTrainer`; its arguments were\n\n"
        "```python\n"
        "from hf_robust import RobustTrainingArguments\n\n"
        f"args = RobustTrainingArguments(\n{lines}\n)\n"
        "```"
    )


def first_name(names: str | list[str] | None) -> str | None:
    """The first of several names, or the only one."""
    if isinstance(names, list):
        return names[0] if names else None
    return names or None
