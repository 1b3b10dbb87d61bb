"""Networks that a training goes on from: where they are found, and other classes for them."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_common.foreign import first_line, read_json, short
from hf_common.names import did_you_mean

from ..models.dit import DiTModel
from ..models.sizes import DIT_SIZES

SUBFOLDER = "transformer"  # of a pipeline


def pretrained_config(name: str) -> dict:
    """The config of a saved model, or of a pipeline's; a `ValueError` that lists the sizes where there is none."""
    try:
        return DiTModel.load_config(name, **_subfolder(name))
    except OSError as error:
        try:
            if Path(name).exists():
                raise
            return DiTModel.load_config(name, subfolder=SUBFOLDER)
        except OSError:
            raise ValueError(
                f"model {short(repr(name), 120)} is neither a size, {', '.join(DIT_SIZES)}, nor a folder or Hub id of "
                f"a DiTModel: {short(first_line(error), 120)}{did_you_mean(name, DIT_SIZES)}"
            ) from error


def pretrained_network(name: str) -> DiTModel:
    """The saved model, or that of a saved pipeline, from safetensors alone."""
    try:
        return DiTModel.from_pretrained(name, use_safetensors=True, **_subfolder(name))
    except OSError:
        if Path(name).exists():
            raise
        return DiTModel.from_pretrained(name, use_safetensors=True, subfolder=SUBFOLDER)


def trained_prediction(name: str) -> str | None:
    """What the network of a local pipeline was trained to predict; None where no scheduler lies beside it."""
    folder = Path(name) if (Path(name) / SUBFOLDER).is_dir() else Path(name).parent
    path = folder / "scheduler" / SchedulerMixin.config_name
    if not path.is_file():
        return None
    config = read_json(path, dict)
    kind = config.get("prediction_type", "epsilon")
    is_flow = str(config.get("_class_name")).startswith("FlowMatch") or kind == "flow_prediction"
    return "flow" if is_flow else str(kind)


def _subfolder(name: str) -> dict[str, str]:
    return {"subfolder": SUBFOLDER} if (Path(name) / SUBFOLDER / DiTModel.config_name).is_file() else {}


@torch.no_grad()
def with_new_labels(network: DiTModel, num_classes: int, said: Callable[[str], object] = print) -> DiTModel:
    """The network with labels of `num_classes` classes: the rows of the label table are drawn anew, all else is kept.

    The row of the null class is kept too, so that the unconditional predictions that guidance needs stay what they
    were. A network of so many classes already is returned as it is, rows included. New rows are drawn as in
    `reset_parameters`, from PyTorch's global generator.

    Args:
        said: gets a sentence of what was done.

    Raises:
        ValueError: an unconditional network.
    """
    old = network.config.num_classes
    if old is None:
        raise ValueError(f"network must have classes to be given {num_classes} others; it's unconditional")
    if old == num_classes:
        return network
    other = DiTModel.from_config({**network.config, "num_classes": num_classes})
    kept, made = network.state_dict(), other.state_dict()
    for name, value in made.items():
        if kept[name].shape == value.shape:
            value.copy_(kept[name])
        elif network.config.class_dropout_prob:
            value[-1] = kept[name][-1]  # the null class
    said(f"label table of {num_classes} classes drawn anew in place of {old}; the other weights are kept")
    return other.train(network.training)
