"""Spec strings of losses: `nce + rce`, `10*nce + 0.1*rce`, `gce(q=0.7)`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from hf_common.foreign import short
from hf_common.names import did_you_mean

from .base import POSITIVE, check_params
from .table import LOSSES, PUBLISHED_SUMS


class LossTerm(NamedTuple):
    """One term of a weighted sum; `params` holds all parameters of the loss, defaults included."""

    weight: float
    name: str
    params: dict[str, float | bool | None]


_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([-+*(),=])|$)")
_WORDS = {"true": True, "false": False, "none": None}


def parse_loss_spec(spec: str) -> tuple[LossTerm, ...]:
    """Parse a weighted sum of losses, such as `10*nce + 0.1*rce` or `nce + 2*gce(q=0.5)`.

    Grammar, with white space free between the parts:

        spec = term ('+' term)*
        term = [weight '*'] name ['(' [key '=' value (',' key '=' value)*] ')']

    A weight is a number > 0, a value a number, true, false or none. A parameter that is not given has its default, so
    that equal losses give equal results. Raises `ValueError` with the spec, the position (from 0), what came and what
    is allowed there; `TypeError` if the spec is no string.
    """
    if not isinstance(spec, str):
        raise TypeError(f"a loss spec must be a string such as 'nce + rce', got {short(repr(spec), 80)}")
    reader = _Reader(spec)
    terms = [reader.term()]
    while not reader.next_is("end"):
        reader.take("+", "'+' or the end")
        terms.append(reader.term())
    return tuple(terms)


class _Reader:
    """The tokens of a spec, taken one after the other: nothing is looked at twice, nothing is nested."""

    def __init__(self, spec: str):
        self.spec = spec
        self.tokens: list[tuple[str, str, int]] = []  # kind, text, position
        end = 0
        while end < len(spec):
            match = _TOKEN.match(spec, end)
            if match is None:
                at = end + len(spec[end:]) - len(spec[end:].lstrip())
                self.fail(at, f"unexpected character {spec[at]!r}")
            number, name, mark = match.groups()
            if match.lastindex:
                kind = "number" if number else "name" if name else mark
                self.tokens.append((kind, number or name or mark, match.start(match.lastindex)))
            end = match.end()
        self.tokens.append(("end", "the end", len(spec)))
        self.tokens.reverse()  # the next token is the last, so that taking it is a pop

    def fail(self, at: int, message: str) -> NoReturn:
        raise ValueError(f"loss spec {short(repr(self.spec), 120)}, position {at}: {message}")

    def next_is(self, kind: str) -> bool:
        return self.tokens[-1][0] == kind

    def take(self, kind: str, wanted: str) -> tuple[str, int]:
        """Text and position of the next token, which has to be of that kind."""
        found, text, at = self.tokens.pop()
        if found != kind:
            self.fail(at, f"expected {wanted}, got {text if found == 'end' else short(repr(text), 60)}")
        return text, at

    def number(self, wanted: str) -> tuple[float, int]:
        sign, at = -1 if self.next_is("-") else 1, self.tokens[-1][2]
        if sign < 0:
            self.tokens.pop()
        text, _ = self.take("number", wanted)
        value = float(text)
        # Whole numbers stay whole, for parameters that count something; by float(), so that 400 digits are infinite.
        return sign * (int(value) if text.isdigit() and value.is_integer() else value), at

    def value(self) -> float | bool | None:
        if not self.next_is("name"):
            return self.number("a number, true, false or none")[0]
        text, at = self.take("name", "a value")
        if text not in _WORDS:
            self.fail(at, f"expected a number, true, false or none, got {short(repr(text), 60)}")
        return _WORDS[text]

    def term(self) -> LossTerm:
        weight = 1.0
        if self.next_is("number") or self.next_is("-"):
            weight, at = self.number("a number")
            self.take("*", "'*' between a weight and its loss")
            if not POSITIVE.contains(weight):
                self.fail(at, f"a weight must be {POSITIVE.text}, got {weight!r}")
        name, at = self.take("name", "a loss or its weight")
        if name not in LOSSES:
            self.fail(
                at, f"unknown loss {short(repr(name), 60)}; valid are {', '.join(LOSSES)}{did_you_mean(name, LOSSES)}"
            )
        given = self.parameters(name) if self.next_is("(") else {}
        return LossTerm(float(weight), name, {**LOSSES[name].params, **given})

    def parameters(self, name: str) -> dict[str, float | bool | None]:
        """What stands in the parentheses after the loss of that name."""
        given = {}
        self.take("(", "'('")
        while not self.next_is(")"):
            key, at = self.take("name", "a parameter or ')'")
            if key in given:
                self.fail(at, f"{key} of {name} is given twice")
            self.take("=", f"'=' after {short(key, 60)}")
            value = self.value()
            try:
                check_params(name, LOSSES[name].domains, {key: value})
            except ValueError as error:
                self.fail(at, short(error))
            given[key] = value
            if not self.next_is(")"):
                self.take(",", "',' or ')'")
        self.take(")", "')'")
        return given


def loss_needs(spec: str) -> frozenset[str]:
    """What the losses of a spec need beside logits and labels, see `RobustLoss`."""
    return frozenset(need for term in parse_loss_spec(spec) for need in LOSSES[term.name].needs)


def link_words(terms: Iterable[LossTerm]) -> str:
    """What makes probabilities of logits z for a sum of losses, in words; `SOFTMAX` for most."""
    return " and ".join(dict.fromkeys(LOSSES[term.name].link_words for term in terms))


def format_value(value: float | bool | None) -> str:
    """A parameter's value as a spec string writes it: `0.5`, `2`, `true`, `none`."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value).removesuffix(".0")


def format_loss_spec(terms: Iterable[LossTerm]) -> str:
    """The canonical spec string of parsed terms; weights of 1 and parameters at their default are left out.

    `parse_loss_spec(format_loss_spec(terms)) == tuple(terms)`.
    """
    parts = []
    for weight, name, params in terms:
        defaults = LOSSES[name].params
        changed = [f"{key}={format_value(value)}" for key, value in params.items() if value != defaults[key]]
        prefix = "" if weight == 1 else f"{format_value(weight)}*"
        parts.append(f"{prefix}{name}" + (f"({', '.join(changed)})" if changed else ""))
    return " + ".join(parts)


def published_spec(spec: str, dataset: str) -> str:
    """`spec` with the parameters that were published for `dataset`, canonical.

    A loss or sum that is named without weights and parameters (`nce+agce`, in any order) becomes its published form
    (`nce + 4*agce(a=6, q=1.5)`); one that says a weight or parameter of its own stays as it is, as does one of which
    nothing was published.

    Args:
        spec (`str`): as for `parse_loss_spec`, which raises for it.
        dataset (`str`): `"cifar10"` or `"cifar100"`; a `ValueError` for another.
    """
    if dataset not in ("cifar10", "cifar100"):
        raise ValueError(f"dataset must be cifar10 or cifar100, got {dataset!r:.120}")
    terms = parse_loss_spec(spec)
    published = {}
    if "*" not in spec and "(" not in spec:
        names = sorted(term.name for term in terms)
        known = {name: info.published for name, info in LOSSES.items()} | PUBLISHED_SUMS
        published = next((specs for sum_, specs in known.items() if sorted(sum_.split("+")) == names), {})
    return format_loss_spec(parse_loss_spec(published[dataset]) if dataset in published else terms)
