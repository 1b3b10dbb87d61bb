"""What every loss is built on: its inputs, checked once, and its parameters' domains.

A loss is a pure function `core(x, *, params) -> (B,)` of a [`LossInputs`]; `loss_function` makes the public function
`loss(logits, labels, *, params)` of it, with the core as its attribute. A sum of losses calls the cores with the same
inputs and so computes one log-softmax.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_INDEX = -100


class Domain(NamedTuple):
    """The values that a parameter takes: in words, and as a test."""

    text: str
    contains: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def at_least(low: float) -> Domain:
    """Finite numbers >= low."""
    return Domain(f"a finite number >= {low:g}", lambda value: _is_number(value) and low <= value < math.inf)


def above(low: float) -> Domain:
    """Finite numbers > low."""
    return Domain(f"a finite number > {low:g}", lambda value: _is_number(value) and low < value < math.inf)


def whole_number(low: int) -> Domain:
    """Whole numbers >= low."""
    return Domain(
        f"a whole number >= {low}",
        lambda value: _is_number(value) and low <= value < math.inf and float(value).is_integer(),
    )


FLAG = Domain("true or false", lambda value: isinstance(value, bool))
NON_NEGATIVE = at_least(0)
POSITIVE = above(0)
UNIT_INTERVAL = Domain("a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
OPEN_UNIT_INTERVAL = Domain("a number in (0, 1)", lambda value: _is_number(value) and 0 < value < 1)
BELOW_ONE = Domain("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1)


def check_params(loss: str, domains: dict[str, Domain], params: dict[str, object]) -> None:
    """Raise `ValueError` if the loss has no such parameter or the parameter does not take such a value."""
    for name, value in params.items():
        if name not in domains:
            valid = f"its parameters are {', '.join(domains)}" if domains else "it has none"
            raise ValueError(f"{loss} has no parameter {name!r}; {valid}")
        if not domains[name].contains(value):
            raise ValueError(f"{name} of {loss} must be {domains[name].text}, got {value!r}")


def check_batch(logits: Tensor, labels: Tensor, views: int = 1) -> bool:
    """Raise unless logits are float (views * B, K) with K >= 2 and labels int64 (B,) in 0..K-1 or -100.

    True where it is known that no label is -100; False on an accelerator and in compiled code, where it is not looked.
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (B, K), got {tuple(logits.shape)}")
    rows, num_classes = logits.shape
    if num_classes < 2:
        raise ValueError(
            f"logits must have K >= 2 columns, got shape {tuple(logits.shape)}; give a binary problem two columns"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        _refuse_labels(labels)
    if labels.shape[0] * views != rows:
        per_label = "one entry per row of logits" if views == 1 else f"one entry per {views} rows (views) of logits"
        raise ValueError(f"labels must have {per_label}: got {len(labels)} for {rows} rows")
    # On an accelerator this would wait for the device at every step, and compiled code cannot branch on values; there
    # `gather` itself stops at an index outside 0..K-1.
    if not labels.is_cpu or torch.compiler.is_compiling():
        return False
    if rows == 0:
        return True
    low, high = torch.aminmax(labels)  # one pass, and of most batches the only one
    if low.item() >= 0 and high.item() < num_classes:
        return True
    outside = ((labels < 0) | (labels >= num_classes)) & (labels != IGNORE_INDEX)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"labels must be in 0..{num_classes - 1} or {IGNORE_INDEX} (ignored), "
            f"got {int(labels[index])} at index {index}"
        )
    return False


def _refuse_labels(labels: Tensor) -> None:
    if labels.is_floating_point() or labels.ndim != 1:
        error = TypeError if labels.is_floating_point() else ValueError
        raise error(
            f"labels must be int64 class indices of shape (B,), got {labels.dtype} of shape {tuple(labels.shape)}; "
            "multi-label and soft targets are not supported"
        )
    raise TypeError(f"labels must be int64, got {labels.dtype}; convert them with labels.long()")


class LossInputs:
    """A batch as the losses see it, checked.

    Args:
        logits (`Tensor`): (B, K) float16, bfloat16, float32 or float64, any finite values, K >= 2. -inf masks a class:
            where p_y > 0 value and gradient are finite, the limit or as the loss says; `ls` and `backward` have none
            and raise a `ValueError` (on the CPU outside compiled code; elsewhere the loss is infinite).
        labels (`Tensor`): (B,) int64 in 0..K-1, or -100 where a sample is to be ignored.
        views (`int`, defaults to 1): with V > 1 `logits` are (V * B, K), all samples of the first view first.
        index (`Tensor`, *optional*): (B,) int64, the samples' places in the training set.
        epoch (`int`, defaults to 0).

    Attributes:
        logits: (B, K) float32, or float64 for float64 logits; of the first view.
        labels: (B,) int64, 0 where a sample is ignored.
        keep: (B,) bool, False where a sample is ignored.
        all_kept (`bool`): it is known that no sample is ignored, so that nothing need be masked.
        logp, logp_y: (B, K) log-probabilities of the first view and (B,) their entries at the labels, computed when
            first asked for. Half precision is converted inside the log-softmax: in bfloat16 1 - p would have 8 bits.
        minus_logp_y: (B,) -logp_y, which is cross-entropy.
        logp_total: (B,) sum_k log p_k. To be asked for before logp_y by a loss of both: they then have one gradient.
        other_views: (V - 1) tensors (B, K), the logits of the other views.

    Raises `TypeError` for a wrong dtype and `ValueError` for a wrong shape, K < 2 and, for labels on the CPU outside
    compiled code, a label that is neither in 0..K-1 nor -100.
    """

    def __init__(self, logits: Tensor, labels: Tensor, *, views: int = 1, index: Tensor | None = None, epoch: int = 0):
        self.all_kept = check_batch(logits, labels, views)
        if index is not None and (index.dtype != torch.int64 or index.shape != labels.shape):
            raise ValueError(
                f"index must be int64 of shape {tuple(labels.shape)}, got {index.dtype} of {tuple(index.shape)}"
            )
        self.dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self._logits, *self.other_views = logits.chunk(views) if views > 1 else (logits,)
        self._given = labels
        self.labels = labels if self.all_kept else labels.masked_fill(labels == IGNORE_INDEX, 0)
        self.index, self.epoch = index, epoch
        self._logp: Tensor | None = None
        self._logp_y: Tensor | None = None
        self._minus_logp_y: Tensor | None = None
        self._logp_total: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        return self._logits.to(self.dtype)

    @property
    def keep(self) -> Tensor:
        return self._given != IGNORE_INDEX

    def places(self) -> Tensor:
        """`index`, of a batch that has it."""
        assert self.index is not None  # `RobustLoss` sees to it
        return self.index

    @property
    def num_classes(self) -> int:
        return self._logits.shape[1]

    @property
    def logp(self) -> Tensor:
        if self._logp is None:
            self._logp = torch.log_softmax(self._logits, dim=1, dtype=self.dtype)
        return self._logp

    @property
    def logp_y(self) -> Tensor:
        if self._logp_y is None:
            self._logp_y = -self.minus_logp_y
        return self._logp_y

    @property
    def minus_logp_y(self) -> Tensor:
        if self._minus_logp_y is None:
            # One operator forth and one back; `gather` and the reshaping around it are three each.
            known = self._logp_y
            self._minus_logp_y = F.nll_loss(self.logp, self.labels, reduction="none") if known is None else -known
        return self._minus_logp_y

    @property
    def logp_total(self) -> Tensor:
        if self._logp_total is None and self._logp_y is None:
            self._logp_total, self._logp_y = _LogSums.apply(self.logp, self.labels)
        elif self._logp_total is None:
            self._logp_total = self.logp.sum(1)
        return self._logp_total

    def at_labels(self, values: Tensor) -> Tensor:  # (B, K) -> (B,)
        """The entries at the labels."""
        return -F.nll_loss(values, self.labels, reduction="none")

    def one_a_sample(self, loss: str, losses: Tensor) -> Tensor:  # (B,) -> (B,)
        """`losses`, or a `ValueError` that names the loss: from another shape a sum would make other numbers."""
        if not isinstance(losses, Tensor) or losses.shape != self.labels.shape:
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"loss {loss!r} must return one value a sample, shape (B,) = {tuple(self.labels.shape)}; got {got}"
            )
        return losses

    def without_ignored(self, losses: Tensor) -> Tensor:  # (B,) -> (B,)
        """`losses`, 0 where a sample is ignored."""
        return losses if self.all_kept else losses.masked_fill(self._given == IGNORE_INDEX, 0.0)

    def refuse_masked(self, loss: str, losses: Tensor) -> Tensor:
        """`losses` (B,) of a loss that is infinite where any class has probability 0; a `ValueError` says so."""
        # A sum is finite only if all it adds is, so that most batches need no other look.
        if losses.is_cpu and not torch.compiler.is_compiling() and not losses.detach().sum().isfinite():
            bad = self.keep & ~losses.isfinite()
            # Looked at only then, since it is another pass; logits that are NaN give NaN, as for any loss.
            if bad.any() and (masked := bad.unsqueeze(1) & self.logp.isneginf()).any():
                row, column = masked.nonzero()[0].tolist()
                raise ValueError(
                    f"{loss} takes no class of probability 0, and so no logit of -inf: it would be infinite; "
                    f"got one in row {row}, class {column}"
                )
        return losses


class _LogSums(torch.autograd.Function):
    """sum_k log p_k and log p_y, two (B,) tensors of `logp` (B, K) and `labels` (B,), with one gradient of both."""

    @staticmethod
    def forward(ctx: Any, logp: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        at = labels.unsqueeze(1)
        ctx.save_for_backward(at)
        ctx.num_classes = logp.shape[1]
        return logp.sum(1), logp.gather(1, at).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_y: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        total = grad_total.unsqueeze(1).expand(-1, ctx.num_classes)
        return total.scatter_add(1, at, grad_y.unsqueeze(1)), None


def loss_function(**domains: Domain) -> Callable:
    """Decorator: make the public loss on logits and labels of a core on [`LossInputs`]; the core stays as `.core`.

    The public function takes (B, K) logits and (B,) labels as [`LossInputs`] describes them and returns (B,) float32
    (float64 for float64 logits), zero where the label is -100. Its `.domains` maps each parameter to the values that
    it takes; others raise `ValueError`.
    """

    def build(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def loss(logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
            check_params(core.__name__, domains, params)
            x = LossInputs(logits, labels)
            return x.without_ignored(x.one_a_sample(core.__name__, core(x, **params)))

        signature = inspect.signature(core)
        _, *keywords = signature.parameters.values()
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        arguments = [inspect.Parameter(name, kind, annotation="Tensor") for name in ("logits", "labels")]
        made: Any = functools.wraps(core)(loss)
        made.__signature__ = signature.replace(parameters=[*arguments, *keywords])
        made.core = core
        made.domains = domains
        return made

    return build


def lowest(dtype: torch.dtype) -> float:
    """What stands for -inf where it would be multiplied by 0: its products with small numbers are finite."""
    return torch.finfo(dtype).min / 16


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1 of x <= 0 whose float32 gradient is precise too; larger x have none here."""
    # torch takes expm1's result + 1 as its derivative, which in float32 rounds exp(x) to a multiple of 6e-8: the
    # gradient of 1 - p_y, which is p_y, would be up to 3 % off at p_y = 1e-6 and 0 below 3e-8. Below 0 ELU is the same
    # function, and its derivative exp(x).
    return F.elu(x)


def in_one_block(matrix: Tensor) -> bool:
    """Whether blocks of rows do not pay: few elements, an accelerator, or compiled code, which fuses passes itself."""
    return matrix.numel() <= BLOCK_ELEMENTS or torch.compiler.is_compiling() or not matrix.is_cpu


def row_blocks(*tensors: Tensor | None) -> Iterator[tuple]:
    """Blocks of rows of tensors (B, ...), (b, ...) each, for several elementwise passes in a row.

    Each block fits the cache of the CPU core that works on it. The first tensor is (B, K) and says how many rows that
    are; None stays None.
    """
    matrix = tensors[0]
    assert matrix is not None
    if in_one_block(matrix):
        yield tensors
        return
    rows = max(1, BLOCK_ELEMENTS * torch.get_num_threads() // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield tuple(None if tensor is None else tensor[start : start + rows] for tensor in tensors)


# A block and its two or three temporaries in float32 take about 2 MB of cache; smaller ones would be more calls.
BLOCK_ELEMENTS = 131072


class StatefulLoss(nn.Module):
    """A loss that needs more than logits and labels: `module(x: LossInputs) -> (B,)` per-sample losses.

    In training mode it may look at `x.index`, `x.epoch` and `x.other_views` and keep a state, which lies in buffers of
    any shape: `state_dict` saves and `load_state_dict` restores it. In evaluation mode it gives what its docstring
    says from logits and labels alone.

    Attributes:
        needs (`tuple[str, ...]`): of "index", "views", "learning_rate", "transition_matrix"; a trainer supplies them.
        domains (`dict[str, Domain]`): of its parameters, the keyword arguments of the constructor.
        gather: what makes of a (B, ...) tensor the rows of all processes; a trainer with several sets it.
    """

    needs: tuple[str, ...] = ()
    domains: dict[str, Domain] = {}

    def __init__(self):
        super().__init__()
        self.gather: Callable[[Tensor], Tensor] = _identity

    def prepare(self, num_samples: int) -> None:
        """Called before training, which begins with nothing remembered: the training set has `num_samples` samples."""

    def step(self, learning_rate: float) -> None:
        """Called after each optimizer step, with the learning rate of the next."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name in self._buffers:
            if prefix + name in state_dict:  # the shape may be another, or the buffer still None
                self._buffers[name] = torch.empty_like(state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _identity(rows: Tensor) -> Tensor:
    return rows
