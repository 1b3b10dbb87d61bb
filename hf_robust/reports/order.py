"""Results in groups, and their noises in the order of figures and tables."""

import re
from collections.abc import Callable, Iterable

from ..noise.kinds import KINDS


def compact(loss: str) -> str:
    """A loss spec without white space, as figures and tables write it."""
    return re.sub(r"\s", "", loss)


def grouped(results: Iterable[dict], key: Callable) -> dict:
    """Lists of the results by what `key` gives of each, in the order in which it first gives it."""
    groups: dict = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def kind_and_rate(result: dict) -> tuple[str, float] | None:
    """`("symmetric", 40.0)` of symmetric_40, `("human", 9.01)` of human_aggregate, `("clean", 0.0)`.

    None where neither the name nor the result tells the rate.
    """
    name, realised = result["settings"]["noise"], result["noise"]["rate"]
    if name == "clean":
        return "clean", 0.0
    kind, _, last = name.rpartition("_")
    if kind and re.fullmatch(r"\d+(\.\d+)?", last):
        return kind, float(last)
    if realised is None:
        return None
    return name.partition("_")[0], 100 * realised


def kind_order(kind: str) -> tuple[int, str]:
    """Sorts kinds of noise: as in the table of kinds, then all others by name."""
    order = list(KINDS)
    return (order.index(kind) if kind in order else len(order)), kind


def noise_order(name: str) -> tuple:
    """Sorts names of noises: by kind, rate and name."""
    kind, _, last = name.rpartition("_")
    if kind and re.fullmatch(r"\d+(\.\d+)?", last):
        return *kind_order(kind), float(last), name
    return *kind_order(name.partition("_")[0]), 0.0, name
