"""What a loss needs of the training set and the model, looked at before the first step."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, TrainerCallback

from ..data.labelled import LabelledSamples
from ..data.memory import Positions
from ..data.stream import StreamedImages
from ..data.transform import ImageTransform
from ..losses import RobustLoss
from ..losses.base import IGNORE_INDEX
from .arguments import RobustTrainingArguments


class LossStepCallback(TrainerCallback):
    """Tells the loss of a [`~hf_robust.training.trainer.RobustTrainer`] when training begins and a step is made."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and isinstance(self.trainer.train_dataset, Sized):  # else it was just restored
            self.trainer.loss.prepare(len(self.trainer.train_dataset))
        self.trainer.go_on_with_losses()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.loss.step(self.trainer.lr_scheduler.get_last_lr()[0])


def with_index(train_dataset):
    """`train_dataset`, with places in the whole where it is put together of parts that each count their own."""
    if isinstance(train_dataset, ConcatDataset) and has_index(train_dataset):
        return Positions(train_dataset)
    return train_dataset


def has_index(dataset: Any) -> bool:
    """Whether the samples of a data set have their place in it, `index`; of a stream, whether its columns say so."""
    if isinstance(dataset, LabelledSamples):
        return True
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        return "index" in (dataset.column_names or [])
    sample = dataset[0] if hasattr(dataset, "__len__") else None
    return isinstance(sample, Mapping) and "index" in sample


def refuse_text_labels(data: Iterable, collator: Callable | None, name: str) -> None:
    """Raise a `ValueError` where a column of labels holds text, of which a collator of the caller's own alone, or a
    transform of the data set, makes numbers."""
    for dataset in data if collator is None else ():
        features = dataset.features if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)) else None
        if features is None or getattr(dataset, "format", {}).get("type") == "custom":
            continue
        for column in (name, "label"):
            if "string" in str(getattr(features.get(column), "dtype", "")):
                raise ValueError(
                    f"labels must be whole numbers; column {column!r} of the data set holds text, of which "
                    f"class_encode_column({column!r}) of a datasets.Dataset makes numbers"
                )


def check_train_dataset(
    dataset: Any, loss: RobustLoss, transform: ImageTransform | None, args: RobustTrainingArguments
) -> None:
    """Raise a `ValueError` where the training set can't give what the loss, the transform or the arguments need."""
    advice = "which train_dataset lacks; with datasets: train.add_column('index', range(len(train)))"
    random = transform is not None and transform.random
    if random and not has_index(dataset):
        raise ValueError(
            "image_transform with crop_padding or horizontal_flip draws by each sample's 'index' in the training "
            f"set, a column {advice}"
        )
    if "index" in loss.needs and not isinstance(dataset, Sized):
        raise ValueError(
            f"loss {loss.spec!r} remembers something of each training sample and so needs their number, which a "
            f"train_dataset without length ({type(dataset).__name__}) does not say; load it without streaming"
        )
    if "index" in loss.needs and not has_index(dataset):
        raise ValueError(
            f"loss {loss.spec!r} needs an 'index' column, each sample's place 0..N-1 in the training set, {advice}"
        )
    if "index" in loss.needs and isinstance(dataset, datasets.Dataset):
        _check_places(dataset, loss)
    drawn = (isinstance(dataset, LabelledSamples) and dataset.random) or (
        isinstance(dataset, StreamedImages) and dataset.augment
    )
    if "views" in loss.needs and not (random or drawn):
        raise ValueError(
            f"loss {loss.spec!r} needs two augmented views of each image: give an image_transform with "
            "crop_padding or horizontal_flip"
        )
    labels = _labels(dataset, args.label_names[0])
    if labels is not None and (labels == IGNORE_INDEX).all():
        raise ValueError(f"all {len(labels)} labels of train_dataset are {IGNORE_INDEX}, which is ignored")
    if labels is not None and loss.class_weights is not None:
        _check_some_weight(labels, loss.class_weights.numpy(force=True))
    if args.dataloader_drop_last and isinstance(dataset, Sized):
        _check_dropped(dataset, args)


def _check_places(dataset: datasets.Dataset, loss: RobustLoss) -> None:
    index = np.asarray(dataset.with_format("numpy")["index"][:])
    outside = index[(index < 0) | (index >= len(dataset))]
    if len(outside):
        raise ValueError(
            f"index must be in 0..{len(dataset) - 1}, the places in the training set, got {outside[0]}; loss "
            f"{loss.spec!r} remembers something of each"
        )
    if len(np.unique(index)) < len(index):
        raise ValueError(
            f"index must be another one for each sample, since loss {loss.spec!r} remembers something of each; "
            f"train_dataset has {len(index)} samples and {len(np.unique(index))} of them"
        )


def _check_some_weight(labels: np.ndarray, weights: np.ndarray) -> None:
    found = np.unique(labels[labels != IGNORE_INDEX])
    if found.max() >= len(weights):
        raise ValueError(
            f"class_weights must have one row a class: got {len(weights)} for {found.max() + 1} classes or more, "
            f"since a label is {found.max()}"
        )
    if found.min() >= 0 and not weights[found].any():
        raise ValueError(f"class_weights are 0 for all labels of train_dataset, which are of the classes {found[:10]}")


def _labels(dataset: Any, name: str) -> np.ndarray | None:
    """The whole numbers that are the labels, where they can be read without the images."""
    if isinstance(dataset, Positions):
        return _labels(dataset.dataset, name)
    if isinstance(dataset, ConcatDataset):
        parts = [_labels(part, name) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    if isinstance(dataset, Subset):
        whole = _labels(dataset.dataset, name)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, LabelledSamples):
        return dataset.labels.numpy()
    if not isinstance(dataset, datasets.Dataset):
        return None
    for column in (name, "label", "label_ids"):  # those that a collator makes labels of
        feature = dataset.features.get(column)
        integers = isinstance(feature, datasets.ClassLabel) or "int" in str(getattr(feature, "dtype", ""))
        if integers and len(dataset):
            return np.asarray(dataset.with_format("numpy")[column][:])
    return None


def _check_dropped(dataset: Sized, args: RobustTrainingArguments) -> None:
    batch = args.train_batch_size * args.world_size
    step = batch * args.gradient_accumulation_steps
    if len(dataset) < step:
        raise ValueError(
            f"dataloader_drop_last=True would drop all of the {len(dataset)} training samples: a step takes {step}"
        )
    cut = isinstance(dataset, LabelledSamples) and args.train_sampling_strategy == "random"  # by EpochShuffleSampler
    if not cut and len(dataset) // batch % args.gradient_accumulation_steps:
        raise ValueError(
            f"dataloader_drop_last=True drops what is left of a batch of {batch}, and the last of an epoch's steps of "
            f"{step} would be a short one: {len(dataset)} training samples hold {len(dataset) // batch} batches, no "
            f"multiple of gradient_accumulation_steps={args.gradient_accumulation_steps}. Leave one of the two out"
        )


def class_indices(labels: torch.Tensor) -> torch.Tensor:
    """Whole numbers of any type as int64; others as they are, for the loss to say what is wrong with them."""
    whole = isinstance(labels, torch.Tensor) and not labels.is_floating_point() and not labels.is_complex()
    return labels.long() if whole else labels


def base_model(model: Any) -> nn.Module | None:
    """The model itself; below `peft` adapters, the one that they change."""
    return model.get_base_model() if hasattr(model, "peft_type") else model


def image_name(model: nn.Module | None) -> str:
    """The argument of `forward` that takes the images: the model's own word, `pixel_values`, or the first one."""
    model = base_model(model)
    if model is None or isinstance(model, PreTrainedModel):
        return getattr(model, "main_input_name", "pixel_values")
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return "pixel_values" if takes_any or "pixel_values" in parameters or not parameters else next(iter(parameters))


def named_outputs(outputs: Any) -> dict:
    """What a model gives, `logits` first: a mapping, a tensor, or a tuple in which they follow a loss, if any.

    Raises:
        ValueError: there are none.
    """
    if isinstance(outputs, torch.Tensor):
        return {"logits": outputs}
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(f"the model's output has no 'logits'; it has {sorted(outputs)}")
        return {"logits": outputs["logits"], **{k: v for k, v in outputs.items() if k not in ("logits", "loss")}}
    given = [entry for entry in outputs if not _is_no_logits(entry)]
    if not given:
        raise ValueError(f"the model's output, a tuple of {len(outputs)}, holds no logits (B, K)")
    return {"logits": given[0], **{str(position): entry for position, entry in enumerate(given[1:], 1)}}


def _is_no_logits(entry: Any) -> bool:
    return entry is None or (isinstance(entry, torch.Tensor) and entry.ndim == 0)


def refuse_scattered(loss: RobustLoss, deepspeed: bool) -> None:
    """Raise a `ValueError` where DeepSpeed hides from a loss the parameters that it needs."""
    if deepspeed and "parameters" in loss.needs:
        raise ValueError(
            f"loss {loss.spec!r} has an L1 norm of the parameters, which DeepSpeed keeps in pieces of its own. Train "
            "without DeepSpeed (FSDP2 works), or with a loss that has no such norm"
        )


def penalty(loss: RobustLoss, parameters: Iterable[torch.Tensor]) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """The loss's L1 norm of what is trained: of whole parameters, and of those that `fully_shard` has cut.

    The latter has the value of all shards and the gradient of the own one, which no one averages over processes.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    cut = [parameter for parameter in trained if isinstance(parameter, DTensor)]
    whole = loss.penalty(parameter for parameter in trained if not isinstance(parameter, DTensor))
    if not cut or not loss.l1:
        return whole, 0.0
    own = loss.penalty(parameter.to_local() for parameter in cut)
    sums: list[Any] = [parameter.detach().abs().sum() for parameter in cut]
    total = loss.l1 * sum(part.full_tensor() for part in sums)
    return whole, own + (total - own).detach()
