"""Caches of blocks (`DiTModel.enable_cache`) in a sampling: what is kept for which pass, and for how long."""

from contextlib import AbstractContextManager, nullcontext

from diffusers.utils.torch_utils import unwrap_module
from torch import nn


def caching_of_pass(transformer: nn.Module, samples: int) -> AbstractContextManager:
    """The context of one pass of so many samples; passes with and without guidance keep apart what they kept."""
    model = unwrap_module(transformer)
    # Code that version 0.1 exported has a model without caches.
    if not getattr(model, "is_cache_enabled", False):
        return nullcontext()
    return model.cache_context(f"{samples} samples")


def forget_caches(transformer: nn.Module) -> None:
    """Drop what an earlier sampling left in the caches: one that failed on its way has not done it."""
    model = unwrap_module(transformer)
    if getattr(model, "is_cache_enabled", False):
        model._reset_stateful_cache()
