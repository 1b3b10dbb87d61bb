"""Losses for learning with noisy labels: `get_loss("nce + rce")(logits, labels)`."""

from .functional import ce, fl, gce, mae, nce, nfl, rce, sce
from .module import RobustLoss, get_loss
from .spec import LossInfo, LossTerm, format_loss_spec, list_losses, parse_loss_spec

__all__ = [
    "LossInfo",
    "LossTerm",
    "RobustLoss",
    "ce",
    "fl",
    "format_loss_spec",
    "gce",
    "get_loss",
    "list_losses",
    "mae",
    "nce",
    "nfl",
    "parse_loss_spec",
    "rce",
    "sce",
]
