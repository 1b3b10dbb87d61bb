"""Time and memory of the attention processors, alone and within a model, beside what attention can gain at most.

Two levels: the *operator* (`attend` of a processor, from queries, keys and values to their output) and the whole
*step* of a [`DiTModel`]. Two phases: `forward`, and `forward+backward`.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_common.environment import hardware, versions

from .. import LIBRARIES
from ..attention.base import Grid
from ..attention.spec import parse_attn_item
from ..models.dit import DiTModel
from ..models.sizes import dit_config
from .axes import PHASES
from .measure import BASELINE, Call, empty_row, measure, one_line

LEVELS = ("operator", "step")
IN_CHANNELS, NUM_CLASSES = 4, 1000  # of the model, as for latents of ImageNet; without weight in the times


def attention_share(tokens: int, dim: int) -> float:
    """Share of the attention in the multiply-adds of a DiT block of width `dim` over `tokens` tokens: N / (6 d + N).

    A token costs 12 d^2 in the projections (4 d^2) and the MLP (8 d^2), and 2 N d in scores and weighted values; the
    modulation, which is one a sample, is not counted.
    """
    return tokens / (6 * dim + tokens)


def speedup_bound(share: float) -> float:
    """How many times faster the whole becomes if a part of it, `share` in [0, 1), costs nothing (Amdahl)."""
    return 1 / (1 - share)


def operator_call(attention: str, inputs: Sequence[Tensor], grid: Grid, backward: bool) -> Callable[[], None]:
    """One call of a processor's `attend` on queries, keys and values, and then the gradients of the three."""
    # (B, N, H, D) float each
    processor = parse_attn_item(attention)
    query, key, value = inputs = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    gradient = torch.ones_like(inputs[0])

    def call() -> None:
        with torch.set_grad_enabled(backward):
            output = processor.attend(query, key, value, grid)
        if backward:
            torch.autograd.grad(output, inputs, gradient)

    return call


def step_call(model: DiTModel, sample: Tensor, backward: bool) -> Callable[[], None]:
    """One call of the model, and then the gradients of its parameters."""
    # (B, C, H, W) float
    labels = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)
    parameters = list(model.parameters())

    def call() -> None:
        with torch.set_grad_enabled(backward):
            output = model(sample, 500, labels, return_dict=False)[0]
        if backward:
            torch.autograd.grad(output.sum(), parameters)

    return call


def make_model(config: dict, grid: Grid, generator: torch.Generator) -> DiTModel:
    """A model of a config as `dit_config` gives it, whose native grid is `grid`.

    All its parameters are drawn anew: the zeros of a model before training would make work of another kind.
    """
    patch = config["patch_size"]
    model = DiTModel(
        **config, sample_size=(grid[0] * patch, grid[1] * patch), in_channels=IN_CHANNELS, num_classes=NUM_CLASSES
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model.eval()  # a step of training has no other operations than this with gradients


def run_benchmark(
    attentions: Sequence[str],
    grids: Sequence[Grid],
    *,
    size: str = "dit-s-2",
    heads: int | None = None,
    head_dim: int | None = None,
    num_layers: int | None = None,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    repeats: int = 5,
    phases: Sequence[str] = PHASES,
    seed: int = 0,
) -> dict:
    """Measure processors at both levels on each grid; `full` is always among them, and the first.

    Args:
        attentions: items of an attention spec, such as `"na7"`. One that cannot run here, by its own `check` or by an
            error of its kernel, keeps its row, with the reason in place of times.
        grids: rows and columns of tokens.
        size: of the model, a key of `DIT_SIZES`; `heads`, `head_dim`, `num_layers` in place of that size's own.
        batch, dtype, device: B samples in a call, and what weights and inputs are.
        repeats: samples of each time.
        phases: of `PHASES`.
        seed: of the random weights and inputs.

    Returns:
        A dict ready for JSON. `rows` holds what [`measure`] gives, with `level`, `phase`, `grid`, `tokens`,
        `attention`; `shares` holds, for each grid and phase, attention's share of the multiply-adds and of the
        measured time, and the speed-up that each leaves at most; beside these `settings`, `hardware`, `versions`.

    Raises:
        ValueError: an unknown attention, size or phase, an empty list, or a number that is too small.
    """
    attentions = [BASELINE, *(item for item in dict.fromkeys(attentions) if item != BASELINE)]
    _check_benchmark(attentions, grids, phases, batch=batch, repeats=repeats, num_layers=num_layers)
    given = {"num_attention_heads": heads, "attention_head_dim": head_dim, "num_layers": num_layers}
    config = dit_config(size, **{key: value for key, value in given.items() if value is not None})
    bench = _Bench(config, grids[0], torch.device(device), dtype, batch, repeats, seed)
    rows, shares = [], []
    for grid, phase in tqdm(list(itertools.product(grids, phases)), desc="grids and phases"):
        of_case, share = bench.case(grid, phase, attentions)
        rows += of_case
        shares.append(share)
    settings = {"size": size, **bench.settings(), "attentions": attentions}
    return {
        "settings": settings | {"grids": [list(grid) for grid in grids], "phases": list(phases)},
        "rows": rows,
        "shares": shares,
        "hardware": hardware(bench.device),
        "versions": versions(LIBRARIES),
    }


def _check_benchmark(
    attentions: Sequence[str], grids: Sequence[Grid], phases: Sequence[str], **numbers: int | None
) -> None:
    """Raise a `ValueError` for what [`run_benchmark`] can't measure."""
    for attention in attentions:
        parse_attn_item(attention)
    for name, values in (("grids", grids), ("phases", phases)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    if not set(phases) <= set(PHASES):
        raise ValueError(f"phases must be of {', '.join(PHASES)}; got {list(phases)}")
    if min(itertools.chain(*grids)) < 1:
        raise ValueError(f"grids: rows and columns must be 1 or more; got {list(grids)}")
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")


class _Bench:
    """A model and inputs on a device, all from one generator, and what is measured of them."""

    def __init__(
        self,
        config: dict,
        native_grid: Grid,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
        repeats: int,
        seed: int,
    ):
        self.heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        self.num_layers, self.patch = config["num_layers"], config["patch_size"]
        self.device, self.dtype, self.batch, self.repeats, self.seed = device, dtype, batch, repeats, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.model = make_model(config, native_grid, self.generator)
        torch.nn.Module.to(self.model, device, dtype)  # ModelMixin's own warns of every cast, whatever the model

    def settings(self) -> dict:
        return {
            "heads": self.heads,
            "head_dim": self.head_dim,
            "num_layers": self.num_layers,
            "batch": self.batch,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "repeats": self.repeats,
            "seed": self.seed,
        }

    def case(self, grid: Grid, phase: str, attentions: Sequence[str]) -> tuple[list[dict], dict]:
        """The rows of a grid and a phase, and what attention is of its step."""
        backward = phase == PHASES[1]
        reasons = self._reasons(grid, attentions, backward)
        able = [attention for attention in attentions if attention not in reasons]
        measured = measure(
            self._calls(grid, able, backward),
            self.repeats,
            self.device,
            prepare=lambda key: self.model.set_attn_processor(key[1]),
        )
        case: dict[str, Any] = {"phase": phase, "grid": list(grid), "tokens": grid[0] * grid[1]}
        rows = []
        for level, attention in itertools.product(LEVELS, attentions):
            row = measured[level, attention] if attention in able else empty_row(reasons[attention])
            rows.append({"level": level, **case, "attention": attention, **row})
        of_macs = attention_share(case["tokens"], self.heads * self.head_dim)
        share = {**case, "share_of_macs": of_macs, "speedup_bound": speedup_bound(of_macs), "share_of_time": None}
        times = [measured[level, BASELINE]["samples"] if BASELINE in able else [] for level in LEVELS]
        if all(times):
            share["share_of_time"] = statistics.median(
                self.num_layers * operator / whole for operator, whole in zip(*times, strict=True)
            )
        return rows, share

    def _reasons(self, grid: Grid, attentions: Sequence[str], backward: bool) -> dict[str, str]:
        """Why those that cannot run here cannot."""
        reasons = {}
        for attention in attentions:
            try:
                parse_attn_item(attention).check(
                    device=self.device, dtype=self.dtype, grid=grid, head_dim=self.head_dim, training=backward
                )
            except (ImportError, RuntimeError, ValueError) as error:
                reasons[attention] = one_line(error)
        return reasons

    def _calls(self, grid: Grid, attentions: Sequence[str], backward: bool) -> dict[Call, Callable[[], None]]:
        shape = (self.batch, grid[0] * grid[1], self.heads, self.head_dim)
        inputs = [self._random(shape) for _ in range(3)]
        step = step_call(
            self.model, self._random((self.batch, IN_CHANNELS, *(side * self.patch for side in grid))), backward
        )
        calls = {("operator", attention): operator_call(attention, inputs, grid, backward) for attention in attentions}
        return calls | {("step", attention): step for attention in attentions}

    def _random(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
