"""What all attention processors of the DiT share: a *pattern* (who sees whom) and the call that computes it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]  # rows and columns of tokens
Reference = tuple[str, str, str, str | None]  # authors, title, where and when, number on arXiv


class DiTAttnProcessor(ABC):
    """Base of the processors: projections around [`attend`], which a subclass defines.

    Foreign processors need none of this but `__call__`; a model saves the attention of this package's own alone.

    Attributes:
        forms: the specs of the class, as errors name them.
        spec: that of the processor, which [`from_spec`] reads.
        words: what a token sees, as a clause.
        papers: what pattern and kernel come from.
        takes_more: whether tokens without a place on the grid may follow those of the grid.
    """

    forms: ClassVar[str]
    spec: str
    words: str
    papers: Sequence[Reference] = ()
    takes_more = True

    @classmethod
    def from_spec(cls, spec: str) -> "DiTAttnProcessor | None":
        """The processor that a spec names; None where it names none of this class."""
        return None

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        """(B, N, heads, head_dim) each -> (B, N, heads, head_dim); N = rows * columns of `grid`, row-major."""

    @abstractmethod
    def mask(self, grid: Grid) -> Tensor | None:
        """(N, N) bool, True where a query (row) sees a key (column); None where each sees all."""

    def attend_with_more(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid) -> Tensor:
        """[`attend`] of more tokens than the grid has: those after its N see all, and all see them.

        (B, N + more, heads, head_dim) each -> the same. A local pattern is computed under its dense mask: exact, in
        the time of full attention. A kernel whose pattern cannot be masked is a ValueError.
        """
        check_takes_more([self])
        mask = self.mask(grid)
        if mask is None:
            return self.attend(query, key, value, grid)
        more = query.shape[1] - len(mask)
        mask = F.pad(mask.to(query.device), (0, more, 0, more), value=True)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    def sees_all(self, grid: Grid) -> bool:
        """Whether a pattern that is meant to be local is full attention on this grid, which is too small for it."""
        return False

    def check(  # noqa: B027 most kernels run wherever PyTorch does
        self, *, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool
    ) -> None:
        """Raises an ImportError or RuntimeError if the kernel cannot run, backward included if `training`."""

    def __call__(self, attn: Any, hidden_states: Tensor, grid: Grid) -> Tensor:
        """(B, N, dim) -> (B, N, dim); `attn` is the `DiTAttention` whose projections are used.

        More than N = rows * columns tokens: the rest sees all and is seen by all.
        """
        query, key, value = attn.project(hidden_states, grid)
        attend = self.attend if query.shape[1] == grid[0] * grid[1] else self.attend_with_more
        out = attend(query, key, value, grid)
        if out.shape != query.shape:  # one that broadcasts would be another attention
            raise ValueError(
                f"attention {self.spec!r} must return the shape of its query, {tuple(query.shape)}; "
                f"got {tuple(out.shape)}"
            )
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))

    def _probe(self, device: torch.device, dtype: torch.dtype, grid: Grid, head_dim: int, training: bool) -> None:
        """Runs the kernel once on one head, backward included if `training`; its refusal becomes a RuntimeError."""
        shape = (1, grid[0] * grid[1], 1, head_dim)
        query, key, value = (torch.zeros(shape, device=device, dtype=dtype, requires_grad=training) for _ in range(3))
        try:
            with torch.set_grad_enabled(training):
                out = self.attend(query, key, value, grid)
                if training:
                    out.sum().backward()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            use = "training" if training else "sampling"
            raise RuntimeError(
                f"attention {self.spec!r} cannot run for {use} on {device} in {dtype} with head_dim={head_dim}, "
                f"grid={grid}: {error}"
            ) from error


class KernelAttnProcessor(DiTAttnProcessor):
    """The pattern of another processor by another kernel: the same values but for rounding.

    Attributes:
        kernel: its name before the colon of a spec.
        paper: of the kernel.
        pattern: the processor whose pattern it is.
    """

    kernel: ClassVar[str]
    paper: ClassVar[Reference]

    def __init__(self, pattern: DiTAttnProcessor):
        self.pattern, self.words = pattern, pattern.words
        self.spec = f"{self.kernel}:{pattern.spec}"
        self.papers = (*pattern.papers, self.paper)

    @property
    def takes_more(self) -> bool:  # type: ignore[override]  # of the class in the base
        """Full attention does, whatever its kernel; no kernel of a local pattern here has keys that all see."""
        return self.pattern.spec == "full"

    def mask(self, grid: Grid) -> Tensor | None:
        return self.pattern.mask(grid)

    def sees_all(self, grid: Grid) -> bool:
        return self.pattern.sees_all(grid)

    def _require(self, package: str) -> None:
        """An ImportError with the way out where a package is not installed."""
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(f"attention {self.spec!r} needs {package}: pip install {package}") from error


def check_takes_more(processors: Iterable[Any]) -> None:
    """Raises a ValueError that names the first processor to which no tokens without a place may be given.

    Those that are not of this package are not asked.
    """
    for processor in processors:
        if isinstance(processor, DiTAttnProcessor) and not processor.takes_more:
            raise ValueError(
                f"attention {processor.spec!r} takes no tokens beside those of the grid, which "
                f"conditioning='in_context' adds; take {processor.spec.partition(':')[2]!r}, or full attention"
            )


def processor_of_spec(spec: str, classes: Sequence[type[DiTAttnProcessor]]) -> DiTAttnProcessor | None:
    """The processor of the first of `classes` that knows the spec."""
    found = (cls.from_spec(spec) for cls in classes)
    return next((processor for processor in found if processor is not None), None)
