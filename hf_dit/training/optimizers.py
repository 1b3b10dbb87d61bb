"""The optimizers of a training by the names that transformers gives them."""

from collections.abc import Iterable
from typing import Any

import torch

from .arguments import DiTTrainingArguments


def make_optimizer(parameters: Iterable[torch.nn.Parameter], args: DiTTrainingArguments) -> torch.optim.Optimizer:
    """AdamW with the rates of `args`: PyTorch's, its fused one, or that of bitsandbytes with states of 8 bits.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    given: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }
    if args.optim == "adamw_bnb_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]  # optional
        except ImportError as error:
            raise ImportError("optim='adamw_bnb_8bit' needs bitsandbytes: pip install bitsandbytes") from error
        return AdamW8bit(parameters, **given)
    return torch.optim.AdamW(parameters, **given, fused=True if args.optim == "adamw_torch_fused" else None)
