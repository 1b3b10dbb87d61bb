"""The `nn.Module` front of the losses."""

from __future__ import annotations

from torch import Tensor, nn

from .functional import log_probs
from .spec import LOSSES, format_loss_spec, parse_loss_spec

_REDUCTIONS = ("mean", "sum", "none")


class RobustLoss(nn.Module):
    """A weighted sum of losses, given by its spec string (see `parse_loss_spec`).

    >>> loss = RobustLoss("10*nce + 0.1*rce")
    >>> loss(logits, labels)

    `terms` are the parsed terms, `spec` is the canonical spec string. No parameters, no buffers.
    """

    def __init__(self, spec: str):
        super().__init__()
        self.terms = parse_loss_spec(spec)

    @property
    def spec(self) -> str:
        return format_loss_spec(self.terms)

    def extra_repr(self) -> str:
        return repr(self.spec)

    def forward(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Loss of a batch.  # (B, K) float, (B,) int64 -> () or, with reduction "none", (B,)

        The result is float32, or float64 for float64 logits, under autocast too. Samples with label -100 are ignored
        as in `F.cross_entropy`: zero in "none", absent from "sum", not counted by "mean" (which is NaN if no sample is
        left). Raises what `functional.log_probs` raises; labels on an accelerator are not checked for their range.
        """
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
        logp, logp_y, keep = log_probs(logits, labels)
        terms = (weight * LOSSES[name].function.core(logp, logp_y, **params) for weight, name, params in self.terms)
        losses = sum(terms).masked_fill(~keep, 0.0)
        if reduction == "none":
            return losses
        return losses.sum() if reduction == "sum" else losses.sum() / keep.sum()


def get_loss(spec: str | RobustLoss) -> RobustLoss:
    """The loss of a spec string; a `RobustLoss` is returned as it is.

    Raises `ValueError` for a spec that cannot be read (see `parse_loss_spec`), `TypeError` for anything else.
    """
    return spec if isinstance(spec, RobustLoss) else RobustLoss(spec)
