"""Tensors that are made once and kept, and what a tracer makes in their place, which is not."""

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made", bound=Tensor | tuple[Tensor, ...])


def is_traced() -> bool:
    """Whether new tensors hold no numbers: `torch.export` and other tracers have a class of their own for them."""
    return type(torch.empty(0, device="cpu")) is not Tensor


class KeptTensors(Generic[Made]):
    """A function that makes tensors of numbers and words, whose last `maxsize` results are kept, as by `lru_cache`.

    While a model is traced, nothing is kept and nothing that was kept is given: neither would fit the other's place.
    """

    def __init__(self, make: Callable[..., Made], maxsize: int):
        update_wrapper(self, make)
        self._make = torch.inference_mode(False)(make)  # what is kept is for training too
        self._kept = lru_cache(maxsize=maxsize)(self._make)
        self.cache_clear = self._kept.cache_clear

    def __call__(self, *args: object) -> Made:
        return self._make(*args) if is_traced() else self._kept(*args)


def kept_tensors(maxsize: int) -> Callable[[Callable[..., Made]], KeptTensors[Made]]:
    """Decorator that makes a [`KeptTensors`] of a function."""
    return lambda make: KeptTensors(make, maxsize)
