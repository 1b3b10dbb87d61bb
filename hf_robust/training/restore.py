"""Weights from a checkpoint into a living model: all of them, or an error that names those that are missing."""

import copy
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"


def restore_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Give every parameter and persistent buffer of `model` the value that `checkpoint` has for it.

    A `PreTrainedModel` is read as its class reads it, which knows the names that `save_pretrained` writes and those of
    older versions; any other module by its names; of a model with `peft` adapters, these and what is trained beside.

    Raises:
        ValueError: naming the checkpoint, where it can't be read, lacks a tensor or has one that the model lacks.
    """
    checkpoint = Path(checkpoint)
    if getattr(model, "peft_config", None):
        _restore_adapters(model, checkpoint)
    elif isinstance(model, PreTrainedModel):
        _restore_by_class(model, checkpoint)
    else:
        _restore_by_names(model, _read_weights(checkpoint, checkpoint / WEIGHTS), checkpoint)


def saved_weights_digest(checkpoint: str | Path) -> str:
    """SHA-256 of the names, types, shapes and values of the tensors in a checkpoint, however its files are cut."""
    checkpoint, digest = Path(checkpoint), hashlib.sha256()
    for path in [*_weight_files(checkpoint), *sorted(checkpoint.rglob(ADAPTER_WEIGHTS))]:
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _restore_by_class(model: PreTrainedModel, checkpoint: Path) -> None:
    problem: str | None
    dtypes = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    try:
        # Without drawing a number: what the file lacks is filled with random ones before it is reported.
        with torch.random.fork_rng(devices=[]):
            read: Any = type(model).from_pretrained(
                checkpoint,
                config=copy.deepcopy(model.config),
                # The widest of them holds all; copied into the model, each is its own again.
                dtype=functools.reduce(torch.promote_types, dtypes),
                output_loading_info=True,
            )
        loaded, info = read
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        problem = str(error).strip().splitlines()[0]
    else:
        weights = loaded.state_dict()
        missing = set(info["missing_keys"]) | _not_reported(model, checkpoint) | (model.state_dict().keys() - weights)
        problem = _difference(missing, set(info["unexpected_keys"]) | (weights.keys() - model.state_dict().keys()))
        if problem is None:
            problem = _copy(weights, model)
    if problem is not None and not _has_names_of(model, checkpoint):
        raise ValueError(f"checkpoint {str(checkpoint)!r} does not restore {type(model).__name__}: {problem}")
    if problem is not None:  # the model was changed after its class made it, and is saved under its own names
        _restore_by_names(model, _read_all(checkpoint), checkpoint)


def _restore_by_names(model: nn.Module, weights: dict[str, torch.Tensor], checkpoint: Path) -> None:
    problem = _difference(_missing(model, weights), weights.keys() - model.state_dict().keys())
    if problem is None:
        problem = _copy(weights, model, strict=False)
    if problem is not None:
        raise ValueError(f"checkpoint {str(checkpoint)!r} does not restore {type(model).__name__}: {problem}")


def _restore_adapters(model: Any, checkpoint: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    kept = set()  # the places of all that the checkpoint gives
    for adapter in model.peft_config:
        folder = checkpoint if adapter == "default" or not (checkpoint / adapter).is_dir() else checkpoint / adapter
        expected = get_peft_model_state_dict(model, adapter_name=adapter)
        weights = _read_weights(checkpoint, folder / ADAPTER_WEIGHTS)
        if not hasattr(model, "get_base_model"):  # an adapter of transformers' own: saved as if of peft's model
            weights = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
        problem = _difference(expected.keys() - weights.keys(), weights.keys() - expected.keys())
        if problem is None:
            problem = _wrong_shapes(expected, weights)
        if problem is not None:
            raise ValueError(f"checkpoint {str(checkpoint)!r} does not restore adapter {adapter!r}: {problem}")
        set_peft_model_state_dict(model, weights, adapter_name=adapter)
        kept |= {tensor.data_ptr() for tensor in get_peft_model_state_dict(model, adapter_name=adapter).values()}
    lost = [name for name, tensor in _changed_by_training(model) if tensor.data_ptr() not in kept]
    if lost:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} holds adapters alone, while training changes {_listed(lost)}; name their "
            "modules in modules_to_save of the peft config"
        )


def _changed_by_training(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            assert module.running_mean is not None  # since it is tracked
            yield f"{name}.running_mean", module.running_mean


def _not_reported(model: PreTrainedModel, checkpoint: Path) -> set[str]:
    """Names that the file lacks and that the class says to be silent about."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
    tied = getattr(model, "all_tied_weights_keys", {})
    silent = {name for name in model.state_dict() if any(re.search(pattern, name) for pattern in patterns)}
    return silent & _missing(model, _names_in(checkpoint)) - set(tied) if silent else set()


def _missing(model: nn.Module, given: Iterable[str]) -> set[str]:
    """The names of the state that those `given` leave out; of names that share one tensor, any gives all."""
    state = model.state_dict()
    covered = {_place(name, state[name]) for name in given if name in state}
    return {name for name, tensor in state.items() if _place(name, tensor) not in covered}


def _place(name: str, tensor: torch.Tensor) -> tuple | str:
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name


def _has_names_of(model: nn.Module, checkpoint: Path) -> bool:
    try:
        names = _names_in(checkpoint)
    except ValueError:
        return False
    return bool(names) and not _missing(model, names) and names <= model.state_dict().keys()


def _weight_files(checkpoint: Path) -> list[Path]:
    whole = checkpoint / WEIGHTS
    return [whole] if whole.exists() else sorted(checkpoint.glob("model-*.safetensors"))


def _names_in(checkpoint: Path) -> set[str]:
    names = set()
    for path in _weight_files(checkpoint):
        try:
            with safe_open(path, "pt") as file:
                names |= set(file.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"checkpoint {str(checkpoint)!r}: {path.name} can't be read: {error}") from None
    return names


def _read_all(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for path in _weight_files(checkpoint) for name, tensor in _read_weights(checkpoint, path).items()
    }


def _read_weights(checkpoint: Path, path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {str(checkpoint)!r}: {path.name} can't be read: {error}") from None


def _copy(weights: dict[str, torch.Tensor], model: nn.Module, strict: bool = True) -> str | None:
    """`weights` into the model; what is wrong with them, before any is copied, if anything is."""
    problem = _wrong_shapes(model.state_dict(), weights)
    if problem is None:
        model.load_state_dict(weights, strict=strict)
    return problem


def _wrong_shapes(expected: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != expected[name].shape
    ]
    return f"of another shape: {_listed(wrong)}" if wrong else None


def _difference(missing: set[str], unexpected: set[str]) -> str | None:
    parts = [f"missing {_listed(sorted(missing))}"] if missing else []
    parts += [f"unexpected {_listed(sorted(unexpected))}"] if unexpected else []
    return "; ".join(parts) or None


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
