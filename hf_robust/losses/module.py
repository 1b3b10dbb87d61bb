"""The `nn.Module` front of the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import IGNORE_INDEX, LossInputs
from .correction import check_transition_matrix
from .spec import LOSSES, format_loss_spec, link_words, loss_needs, parse_loss_spec

_REDUCTIONS = ("mean", "sum", "none")


class RobustLoss(nn.Module):
    """A weighted sum of losses, given by its spec string (see `parse_loss_spec`).

    >>> loss = RobustLoss("10*nce + 0.1*rce")
    >>> loss(logits, labels)

    `terms` are the parsed terms, `spec` is the canonical spec string. No parameters; what losses such as ELR remember
    is in buffers, and so in `state_dict`. `needs` says what the losses look at beside logits and labels:

    - `"index"`: the samples' places in the training set, as `index` of every training batch;
    - `"views"`: logits of two augmented views of every training batch, one after the other;
    - `"parameters"`: `penalty(model.parameters())` is to be added once an optimizer step;
    - `"learning_rate"`: `step(learning_rate)` is to be called after every optimizer step;
    - `"transition_matrix"`: the argument of that name.

    `RobustTrainer` supplies all of it. In evaluation mode (`loss.eval()`) logits and labels are enough.

    Args:
        spec (`str`): as for `parse_loss_spec`.
        class_weights (`Sequence[float]`, *optional*): one weight >= 0 a class; the mean is the weighted mean, as in
            `F.cross_entropy`.
        transition_matrix (`np.ndarray`, *optional*): (K, K), T[i, j] = P(given = j | clean = i), for forward and
            backward correction.

    Raises:
        ValueError: the spec can't be read, weights are negative, not finite or all zero, or the matrix is missing,
            not wanted, not one of probabilities, or singular.
    """

    def __init__(
        self,
        spec: str,
        *,
        class_weights: Sequence[float] | None = None,
        transition_matrix: np.ndarray | Sequence[Sequence[float]] | None = None,
    ):
        super().__init__()
        self.terms = parse_loss_spec(spec)
        self.needs = loss_needs(spec)
        given: dict[str, np.ndarray] = {}
        if transition_matrix is not None:
            given["transition_matrix"] = check_transition_matrix(np.asarray(transition_matrix))
        if (transition_matrix is None) == ("transition_matrix" in self.needs):
            raise ValueError(
                f"loss {self.spec!r} "
                + ("needs a" if transition_matrix is None else "takes no")
                + " transition_matrix"
            )
        self.transition_matrix = given.get("transition_matrix")
        # One operator has all of it: reductions, class weights and labels that are ignored.
        self._is_cross_entropy = [(term.weight, term.name) for term in self.terms] == [(1, "ce")]
        # By position: a sum may hold a loss twice, with other parameters and a state of its own.
        self.stateful: Any = nn.ModuleDict()
        for position, (_, name, params) in enumerate(self.terms):
            if LOSSES[name].stateful:
                matrix = given if "transition_matrix" in LOSSES[name].needs else {}
                self.stateful[str(position)] = LOSSES[name].build(**params, **matrix)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _as_weights(class_weights), persistent=False)

    @property
    def spec(self) -> str:
        return format_loss_spec(self.terms)

    @property
    def l1(self) -> float:
        """The factor of the L1 norm of all parameters, sum of weight * delta over the terms that have one."""
        terms = [term for term in self.terms if "parameters" in LOSSES[term.name].needs]
        return sum(weight * (params["delta"] or 0.0) for weight, _, params in terms)

    def __repr__(self) -> str:
        return f"RobustLoss({self.spec!r})"

    def to_dict(self) -> dict:
        """The loss as JSON values, without what it remembers; `get_loss` makes the loss of it again."""
        config: dict = {"spec": self.spec}
        if self.class_weights is not None:
            config["class_weights"] = self.class_weights.tolist()
        if self.transition_matrix is not None:
            config["transition_matrix"] = self.transition_matrix.tolist()
        return config

    def prepare(self, num_samples: int) -> None:
        """Before training: forget what is remembered, and say how many samples the training set has."""
        for loss in self.stateful.values():
            loss.prepare(num_samples)

    def set_gather(self, gather: Callable[[Tensor], Tensor]) -> None:
        """With several processes: `gather` makes of a (B, ...) tensor the rows of all processes."""
        for loss in self.stateful.values():
            loss.gather = gather

    def step(self, learning_rate: float) -> None:
        """After each optimizer step, with the learning rate of the next."""
        for loss in self.stateful.values():
            loss.step(learning_rate)

    def penalty(self, parameters: Iterable[Tensor]) -> Tensor | float:
        """delta sum |theta| over all parameters; 0.0 for a loss without such a term."""
        return self.l1 * sum(parameter.abs().sum() for parameter in parameters) if self.l1 else 0.0

    def num_items(self, labels: Tensor) -> Tensor:
        """What the sum is divided by to give the mean: the number, or weight, of labels that are not -100."""
        keep = labels != IGNORE_INDEX
        if self.class_weights is None:
            return keep.sum()
        return (self.class_weights.to(labels.device)[labels.masked_fill(~keep, 0)] * keep).sum()

    def check_num_classes(self, num_classes: int) -> None:
        """Raise a `ValueError` if the class weights or the transition matrix are of another number of classes."""
        for name in ("class_weights", "transition_matrix"):
            values = getattr(self, name)
            if values is not None and len(values) != num_classes:
                raise ValueError(f"{name} must have one row a class: got {len(values)} for {num_classes} classes")

    @property
    def link_words(self) -> str:
        """What makes probabilities of logits z, in words; `softmax(z)` for all but a few losses."""
        return link_words(self.terms)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What the model says of each class, by the loss that it was trained with.  # (B, K) float -> (B, K)

        That is softmax(z) of the logits z, the tempered softmax for `bi_tempered`, and the softmax of the clipped
        logits for `logit_clip`: these losses train them, and softmax(z) would be under- or overconfident. The order of
        the classes is the same. Losses that are bounded, margins or corrected for noise are functions of softmax(z),
        and so are theirs. A sum whose terms differ in this has the mean of their probabilities, weighted as they are.

        The result is float32, or float64 for float64 logits. Raises as `LossInputs` does for bad logits.
        """
        x = LossInputs(logits, torch.full((len(logits),), IGNORE_INDEX, device=logits.device))
        parts = [
            weight * (x.logp.exp() if (link := LOSSES[name].link) is None else link(x.logits, **params))
            for weight, name, params in self.terms
        ]
        total: Any = sum(parts)
        return total / sum(term.weight for term in self.terms)

    def forward(
        self, logits: Tensor, labels: Tensor, reduction: str = "mean", *, index: Tensor | None = None, epoch: int = 0
    ) -> Tensor:
        """Loss of a batch.  # (B, K) float, (B,) int64 -> () or, with reduction "none", (B,)

        The result is float32, or float64 for float64 logits, under autocast too. Samples with label -100 are ignored
        as in `F.cross_entropy`: zero in "none", absent from "sum", not counted by "mean" (which is NaN if no sample is
        left). A loss that needs views takes logits (2 B, K) in training mode. Raises what `LossInputs` raises, and
        `ValueError` for an `index` that is needed and missing, class weights of another number of classes, or a loss
        of one's own that is not (B,); labels on an accelerator are not checked for their range.
        """
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
        if self.training and index is None and "index" in self.needs:
            raise ValueError(f"loss {self.spec!r} needs index, the samples' places in the training set; got None")
        views = 2 if self.training and "views" in self.needs else 1
        x = LossInputs(logits, labels, views=views, index=index, epoch=epoch)
        weights = self.class_weights
        if weights is not None and len(weights) != x.num_classes:
            raise ValueError(f"class_weights must have one weight a class: got {len(weights)} for {x.num_classes}")
        if self._is_cross_entropy:
            weights = None if weights is None else weights.to(x.logp)
            return F.nll_loss(x.logp, labels, weights, ignore_index=IGNORE_INDEX, reduction=reduction)
        losses = x.without_ignored(self._sum_of_terms(x))
        if weights is not None:
            losses = losses * weights.to(losses)[x.labels]
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        return losses.mean() if x.all_kept and weights is None else losses.sum() / self.num_items(labels)

    def _sum_of_terms(self, x: LossInputs) -> Any:  # -> (B,)
        total: Any = None
        for position, (weight, name, params) in enumerate(self.terms):
            info = LOSSES[name]
            losses = self.stateful[str(position)](x) if info.stateful else info.build.core(x, **params)
            losses = x.one_a_sample(name, losses)
            losses = losses if weight == 1 else weight * losses
            total = losses if total is None else total + losses
        return total


def _as_weights(class_weights: Sequence[float] | None) -> Tensor | None:
    if class_weights is None:
        return None
    weights = torch.tensor(class_weights, dtype=torch.float32)
    if weights.ndim != 1 or not ((weights >= 0) & weights.isfinite()).all() or not weights.any():
        raise ValueError(f"class_weights must be finite, >= 0 and not all 0, one a class; got {list(class_weights)}")
    return weights


def get_loss(spec: str | dict | RobustLoss, **kwargs: Any) -> RobustLoss:
    """The loss of a spec string, or of what [`RobustLoss.to_dict`] gave; a `RobustLoss` is returned as it is.

    A trained model's config holds the latter: `get_loss(model.config.robust_loss)` is the loss it was trained with.
    The keyword arguments, for a spec string, are those of [`RobustLoss`], which raises for what can't be read.
    """
    made = isinstance(spec, RobustLoss) or (isinstance(spec, dict) and "spec" in spec)
    if made and kwargs:
        raise TypeError(f"{', '.join(kwargs)}: allowed beside a spec string alone, got {spec!r}")
    if isinstance(spec, RobustLoss):
        return spec
    options: Any = spec if made else {"spec": spec, **kwargs}
    return RobustLoss(**options)
