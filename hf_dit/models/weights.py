"""What tells models with other weights apart."""

import hashlib
from collections.abc import Iterable

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
