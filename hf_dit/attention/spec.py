"""Specs: what the layers of a model attend to, in words that a config holds.

| spec | processor | sees |
| --- | --- | --- |
| `full` | [`FullAttnProcessor`] | every token; the kernel is diffusers' attention backend (`set_attention_backend`) |
| `swa64` | [`SlidingWindowAttnProcessor`] | tokens at most 64 away in row-major order |
| `na7`, `na7/truncate` | [`NeighborhoodAttnProcessor`] | 7 x 7 tokens around it on the grid |
| `na7x5`, `na4`, `na7d2`, `na7s3`, `na7c` | the same | 7 rows of 5, an even kernel, dilation, stride, causal |
| `xformers:full`, `xformers:swa64` | [`XFormersAttnProcessor`] | the same, by xformers' kernels (CUDA) |
| `flex:full`, `flex:swa64`, `flex:na7` | [`FlexAttnProcessor`] | the same, by a compiled `flex_attention` |
| `natten:na7` | [`NattenAttnProcessor`] | the same, by NATTEN's kernels |

A spec names one item for all layers, or items with counts, first layer first: `na7*11,full`. Further classes join by
[`register_attn_processor`].
"""

import sys
from collections.abc import Sequence

from hf_common.identity import same_code

from .base import DiTAttnProcessor, Grid, processor_of_spec
from .flex import FlexAttnProcessor
from .full import FullAttnProcessor
from .natten import NattenAttnProcessor
from .neighborhood import NeighborhoodAttnProcessor
from .sliding_window import SlidingWindowAttnProcessor
from .xformers import XFormersAttnProcessor

PROCESSORS: list[type[DiTAttnProcessor]] = [
    FullAttnProcessor,
    SlidingWindowAttnProcessor,
    NeighborhoodAttnProcessor,
    XFormersAttnProcessor,
    FlexAttnProcessor,
    NattenAttnProcessor,
]
BUILT_IN = tuple(PROCESSORS)


def register_attn_processor(cls: type[DiTAttnProcessor]) -> type[DiTAttnProcessor]:
    """Let the specs of a processor of one's own be known, as a decorator too; of the same class the last counts.

    The class says in `from_spec` which specs it reads, and in `forms` how errors name them. Models that use it save
    its spec; where they are loaded it has to be registered first. [`export_pipeline`] refuses it, for its code would
    not be in the folder.

    Raises:
        TypeError: no concrete subclass of `DiTAttnProcessor` with `forms`, `words` and `from_spec` of its own.
        ValueError: another one has these forms, or one of this package reads its spec.
    """
    if not (isinstance(cls, type) and issubclass(cls, DiTAttnProcessor)):
        raise TypeError(f"cls must be a subclass of DiTAttnProcessor, got {cls!r:.120}")
    lacking = [*sorted(cls.__abstractmethods__), *(name for name in ("forms", "words") if not hasattr(cls, name))]
    if "from_spec" not in vars(cls):
        lacking.append("from_spec")
    if lacking:
        raise TypeError(f"{cls.__name__} lacks {', '.join(lacking)}")
    others = [known for known in PROCESSORS if not same_code(known, cls)]
    spec = getattr(cls, "spec", None)  # that of a class with a parameter is each processor's own
    if cls.forms in [known.forms for known in others] or (isinstance(spec, str) and processor_of_spec(spec, BUILT_IN)):
        raise ValueError(
            f"there is an attention {cls.forms!r:.80} already; give {cls.__name__} forms and a spec of its own"
        )
    PROCESSORS[:] = [*others, cls]
    return cls


def parse_attn_item(item: str) -> DiTAttnProcessor:
    """The processor that one item of a spec names (`"na7/truncate"`); a `ValueError` says what is allowed."""
    processor = _first_that_reads(item.strip())
    if processor is None:
        raise ValueError(
            f"attention item {item[:80]!r} is not known; allowed are {', '.join(cls.forms for cls in PROCESSORS)} "
            "(W, K whole numbers of at most 9 digits), and what --plugins register"
        )
    if not _comes_back(processor):
        cls, spec = type(processor).__name__, getattr(processor, "spec", None)
        raise ValueError(
            f"attention item {item[:80]!r}: {cls} gives it the spec {spec!r:.80}, which is not read as the same"
        )
    return processor


def _first_that_reads(spec: str) -> DiTAttnProcessor | None:
    for cls in PROCESSORS:
        try:
            processor = cls.from_spec(spec)
        except Exception as error:
            if cls in BUILT_IN:
                raise
            raise ValueError(
                f"attention item {spec[:80]!r}: from_spec of {cls.__name__} raised {type(error).__name__}: {error}"
            ) from error
        if processor is not None and not isinstance(processor, DiTAttnProcessor):
            raise ValueError(
                f"attention item {spec[:80]!r}: from_spec of {cls.__name__} must give a processor or None; "
                f"got {processor!r:.80}"
            )
        if processor is not None:
            return processor
    return None


def _comes_back(processor: DiTAttnProcessor) -> bool:
    """Whether a model that is saved with the processor's spec is loaded with the same."""
    spec = getattr(processor, "spec", None)
    again = _first_that_reads(spec) if isinstance(spec, str) else None
    return again is not None and type(again) is type(processor) and again.spec == spec


def make_attn_processors(spec: str, num_layers: int) -> list[DiTAttnProcessor]:
    """A processor for each layer.

    Args:
        spec (`str`): `"na7"` (every layer), or items with counts that add up to the layers: `"na7*11,full"`.
        num_layers (`int`): of the model.

    Raises:
        ValueError: an item or a count is malformed, or the counts do not add up to `num_layers`.
    """
    shown, items = spec if len(spec) <= 200 else f"{spec[:200]}...", spec.split(",")
    if len(items) == 1 and "*" not in spec:
        return [parse_attn_item(spec) for _ in range(num_layers)]
    runs = []
    for item in items:
        name, star, count = item.partition("*")
        if star and not (count.strip().isascii() and count.strip().isdecimal()):
            raise ValueError(f"attention {shown!r}: the count of {item[:80]!r} must be a whole number")
        # More digits than any number of layers has; Python refuses to read thousands of them.
        runs.append((name, 1 if not star else int(count) if len(count.strip()) < 19 else sys.maxsize))
    named = sum(count for _, count in runs)
    if named != num_layers:  # before that many are made
        raise ValueError(f"attention {shown!r} names {named} layers; the model has {num_layers}")
    return [parse_attn_item(name) for name, count in runs for _ in range(count)]


def in_tokens(grid: Grid) -> str:
    """A grid in words."""
    return f"a grid of {grid[0]} x {grid[1]} tokens"


def seeing_all(spec: str, grid: Grid) -> list[str]:
    """The items of a spec whose patterns are meant to be local and see the whole of this grid."""
    items = dict.fromkeys(item.partition("*")[0].strip() for item in spec.split(","))
    return [item for item in items if parse_attn_item(item).sees_all(grid)]


def format_attn_spec(processors: Sequence) -> str | None:
    """The spec that [`make_attn_processors`] takes; None if one of them is no processor of this package.

    A subclass is foreign too: it may compute something else than the spec that it inherits says; and so is one whose
    spec another class reads.
    """
    if not all(type(processor) in PROCESSORS and _comes_back(processor) for processor in processors):
        return None
    runs: list[list] = []
    for processor in processors:
        if runs and runs[-1][0] == processor.spec:
            runs[-1][1] += 1
        else:
            runs.append([processor.spec, 1])
    if len(runs) == 1:
        return runs[0][0]
    return ",".join(spec if count == 1 else f"{spec}*{count}" for spec, count in runs)
