"""Weights of saved models: whether all are there, and what tells them from others."""

import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def weights_digest(*modules: nn.Module | None) -> str:
    """A hash of all tensors of the modules."""
    digest = hashlib.sha256()
    for module in modules:
        add_tensors(digest, module.state_dict().items() if module is not None else ())
    return digest.hexdigest()[:16]


def add_tensors(digest: "hashlib._Hash", tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Update a hash with names, dtypes, shapes and values."""
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def whole_model(
    load: Callable[..., Any], name: str | os.PathLike, *, output_loading_info: bool = False, **kwargs: Any
) -> Any:
    """What a `from_pretrained` of diffusers gives, which draws weights that the files do not hold, and warns.

    Raises:
        ValueError: there are such weights: a damaged folder, or one of another class.
    """
    model, info = load(name, output_loading_info=True, **kwargs)
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more weights" if len(missing) > 1 else ""
        raise ValueError(f"{name}: the files of this {type(model).__name__} lack {missing[0]}{more}")
    return (model, info) if output_loading_info else model
