"""Losses for learning with noisy labels: `get_loss("nce + rce")(logits, labels)`.

`functional` holds the closed-form losses as functions, `list_losses` the table of all.
"""

from .base import (
    BELOW_ONE,
    FLAG,
    NON_NEGATIVE,
    OPEN_UNIT_INTERVAL,
    POSITIVE,
    UNIT_INTERVAL,
    Domain,
    LossInputs,
    StatefulLoss,
    above,
    at_least,
    loss_function,
    whole_number,
)
from .correction import check_transition_matrix
from .module import RobustLoss, get_loss
from .spec import LossTerm, format_loss_spec, loss_needs, parse_loss_spec, published_spec
from .table import PUBLISHED_SUMS, LossInfo, list_losses, register_loss

__all__ = [
    "BELOW_ONE",
    "FLAG",
    "NON_NEGATIVE",
    "OPEN_UNIT_INTERVAL",
    "POSITIVE",
    "PUBLISHED_SUMS",
    "UNIT_INTERVAL",
    "Domain",
    "LossInfo",
    "LossInputs",
    "LossTerm",
    "RobustLoss",
    "StatefulLoss",
    "above",
    "at_least",
    "check_transition_matrix",
    "format_loss_spec",
    "get_loss",
    "list_losses",
    "loss_function",
    "loss_needs",
    "parse_loss_spec",
    "published_spec",
    "register_loss",
    "whole_number",
]
