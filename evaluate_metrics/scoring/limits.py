"""Limits of scores, for a command that must fail when samples get worse: `cmmd=0.5`."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hf_common.names import did_you_mean

from .registry import SCORES


class Limit(NamedTuple):
    """What a value may be: `bound` at most, or with `below` at least."""

    name: str
    bound: float
    below: bool

    @property
    def words(self) -> str:
        return f"{'below' if self.below else 'above'} {self.bound:g}"

    @property
    def key(self) -> str:
        """Of the value in a result."""
        return _key(self.name)


def parse_limits(above: Sequence[str], below: Sequence[str], metrics: Sequence[str]) -> list[Limit]:
    """Limits from words such as `cmmd=0.5`.

    Args:
        above: the scores that fail where they are larger.
        below: those that fail where they are smaller.
        metrics: what is scored, of `SCORES`; a limit is of a value of one of these, or of one that has a single value.

    Raises:
        ValueError: no such words, an unknown name, no number, or a score that is not asked for.
    """
    found = []
    of_values = {value.key: name for name, info in SCORES.items() for value in info.values}
    known = [*of_values, *(name for name, info in SCORES.items() if len(info.values) == 1 and name not in of_values)]
    for flag, words in (("fail_above", above), ("fail_below", below)):
        for word in words:
            name, equals, number = word.partition("=")
            if not equals:
                raise ValueError(f"{flag} must be name=number, such as cmmd=0.5; got {word!r:.80}")
            if name not in known:
                raise ValueError(
                    f"{flag} must name a score of {', '.join(known)}; got {name!r:.80}{did_you_mean(name, known)}"
                )
            metric = of_values.get(name, name)
            if metric not in metrics:
                raise ValueError(f"{flag} names {name}, which is not scored; add {metric} to metrics")
            found.append(Limit(name, _bound(flag, word, number), flag == "fail_below"))
    return found


def _key(name: str) -> str:
    """Of a value in results: `fd` is the one that the metric of this name has."""
    return SCORES[name].values[0].key if name in SCORES else name


def _bound(flag: str, word: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{flag} must be name=number, such as cmmd=0.5; got {word!r:.80}")
    return number


def failed_limits(scores: Sequence[Mapping], limits: Sequence[Limit]) -> list[dict]:
    """The limits that results do not keep: each as `name`, `value`, `limit`, `predictions`, `encoder` and `words`.

    A value that is None or NaN keeps none. Where a score is not defined for an encoder, the others' count; where it
    is for none, it fails.
    """
    failed = []
    for limit in limits:
        for predictions in dict.fromkeys(row["predictions"] for row in scores):
            rows = [row for row in scores if row["predictions"] == predictions]
            having = [row for row in rows if limit.key in row] or rows
            for row in having:
                value = row.get(limit.key)
                if value is not None and math.isnan(value):
                    value = None
                if value is not None and (value >= limit.bound if limit.below else value <= limit.bound):
                    continue
                shown = f"has no value, and must not be {limit.words}"
                if value is not None:
                    shown = f"is {value:.6g}, {limit.words}"
                failed.append(
                    {
                        "name": limit.name,
                        "value": value,
                        "limit": limit.bound,
                        "predictions": predictions,
                        "encoder": row["encoder"],
                        "words": f"{limit.name} of {predictions} with {row['encoder']} {shown}",
                    }
                )
    return failed
