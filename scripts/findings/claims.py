"""What an earlier report claimed, and what the cells say to it: a computed verdict, and the numbers behind it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "not testable here"
SURE = 2.0  # standard errors from which on a difference counts


@dataclass(frozen=True)
class Claim:
    """One sentence of the report, its verdict, and the sentence that gives the numbers."""

    said: str
    verdict: str
    evidence: str

    def __post_init__(self):
        if self.verdict not in (CONFIRMED, REFUTED, OPEN):
            raise ValueError(f"verdict must be one of {[CONFIRMED, REFUTED, OPEN]}; got {self.verdict!r}")


def missing(said: str, what: str) -> Claim:
    """The claim whose cells are not there."""
    return Claim(said, OPEN, f"Not measured yet: {what}.")


def decide(differences: Iterable[tuple[float, float]]) -> str:
    """The verdict on "each of these differences is larger than 0".

    Args:
        differences: each with its standard error.

    Returns:
        `CONFIRMED` if each is positive by `SURE` standard errors, `REFUTED` if one is negative by as much, else
        `OPEN`: the spread hides it.
    """
    differences = list(differences)
    if any(value < -SURE * error for value, error in differences):
        return REFUTED
    return CONFIRMED if all(value > SURE * error for value, error in differences) else OPEN


def pooled_spread(groups: Iterable[Sequence[float]]) -> float | None:
    """The standard deviation within groups of repeats, pooled; None where nothing was repeated."""
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if not freedom:
        return None
    return math.sqrt(sum((len(group) - 1) * stdev(group) ** 2 for group in repeated) / freedom)


def difference(one: Sequence[float], other: Sequence[float], spread: float) -> tuple[float, float]:
    """The difference of the means of two groups of repeats, and its standard error for a spread of one repeat."""
    return mean(one) - mean(other), spread * math.sqrt(1 / len(one) + 1 / len(other))


def verdict_words(verdict: str) -> str:
    return {CONFIRMED: "**confirmed**", REFUTED: "**refuted**", OPEN: "*not testable here*"}[verdict]
