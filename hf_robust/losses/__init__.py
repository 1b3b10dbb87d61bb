"""Losses for learning with noisy labels: `get_loss("nce + rce")(logits, labels)`.

`functional` holds the closed-form losses as functions, `list_losses` the table of all.
"""

from .correction import check_transition_matrix
from .module import RobustLoss, get_loss
from .spec import LossTerm, format_loss_spec, loss_needs, parse_loss_spec, published_spec
from .table import PUBLISHED_SUMS, LossInfo, list_losses

__all__ = [
    "PUBLISHED_SUMS",
    "LossInfo",
    "LossTerm",
    "RobustLoss",
    "check_transition_matrix",
    "format_loss_spec",
    "get_loss",
    "list_losses",
    "loss_needs",
    "parse_loss_spec",
    "published_spec",
]
