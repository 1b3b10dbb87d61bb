"""The table of losses and their spec strings: `nce + rce`, `10*nce + 0.1*rce`, `gce(q=0.7)`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from . import functional
from .functional import POSITIVE, check_params


@dataclass(frozen=True)
class LossInfo:
    """One row of the table of losses."""

    function: Callable  # of `functional`
    formula: str  # p = softmax(logits), y = given label, K = number of classes
    paper: str
    symmetric: bool  # the sum of the loss over all labels is the same for every p

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def params(self) -> dict[str, float | bool]:
        """Parameters and their defaults, from the function's signature."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


_MA = "Ma et al. 2020, arXiv:2006.13554"
_WANG = "Wang et al. 2019, arXiv:1908.06112"

LOSSES: dict[str, LossInfo] = {
    "ce": LossInfo(functional.ce, "-log p_y", "maximum likelihood", symmetric=False),
    "fl": LossInfo(
        functional.fl, "-(1-p_y)^gamma log p_y", "Lin et al. 2017, arXiv:1708.02002, eq. 4", symmetric=False
    ),
    "nce": LossInfo(functional.nce, "log p_y / sum_k log p_k", _MA, symmetric=True),
    "nfl": LossInfo(functional.nfl, "FL_y / sum_k FL_k", _MA, symmetric=True),
    "mae": LossInfo(functional.mae, "1 - p_y", "Ghosh et al. 2017, arXiv:1712.09482", symmetric=True),
    "rce": LossInfo(functional.rce, "-ln(1e-4) (1 - p_y)", _WANG, symmetric=True),
    "sce": LossInfo(functional.sce, "alpha CE + beta RCE", _WANG, symmetric=False),
    "gce": LossInfo(functional.gce, "(1 - p_y^q) / q", "Zhang & Sabuncu 2018, arXiv:1805.07836", symmetric=False),
}


def list_losses() -> list[LossInfo]:
    """All losses that a spec string may name, each with name, formula, paper, params (defaults) and symmetric."""
    return list(LOSSES.values())


class LossTerm(NamedTuple):
    """One term of a weighted sum; `params` holds all parameters of the loss, defaults included."""

    weight: float
    name: str
    params: dict[str, float | bool]


_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([-+*(),=])|$)")


def parse_loss_spec(spec: str) -> tuple[LossTerm, ...]:
    """Parse a weighted sum of losses, such as `10*nce + 0.1*rce` or `nce + 2*gce(q=0.5)`.

    Grammar, with white space free between the parts:

        spec = term ('+' term)*
        term = [weight '*'] name ['(' [key '=' value (',' key '=' value)*] ')']

    A weight is a number > 0, a value a number or true/false. A parameter that is not given has its default, so that
    equal losses give equal results. Raises `ValueError` with the spec, the position (from 0), what came and what is
    allowed there; `TypeError` if the spec is no string.
    """
    if not isinstance(spec, str):
        raise TypeError(f"a loss spec must be a string such as 'nce + rce', got {spec!r}")

    def fail(at: int, message: str) -> NoReturn:
        raise ValueError(f"loss spec {spec!r}, position {at}: {message}")

    tokens: list[tuple[str, str, int]] = []  # kind, text, position
    end = 0
    while end < len(spec):
        match = _TOKEN.match(spec, end)
        if match is None:
            at = end + len(spec[end:]) - len(spec[end:].lstrip())
            fail(at, f"unexpected character {spec[at]!r}")
        number, name, mark = match.groups()
        if match.lastindex:
            kind = "number" if number else "name" if name else mark
            tokens.append((kind, number or name or mark, match.start(match.lastindex)))
        end = match.end()
    tokens.append(("end", "the end", len(spec)))
    tokens.reverse()  # the next token is the last, so that taking it is a pop

    def next_is(kind: str) -> bool:
        return tokens[-1][0] == kind

    def take(kind: str, wanted: str) -> tuple[str, int]:
        found, text, at = tokens.pop()
        if found != kind:
            fail(at, f"expected {wanted}, got {text if found == 'end' else repr(text)}")
        return text, at

    def take_number(wanted: str) -> tuple[float, int]:
        sign, at = -1 if next_is("-") else 1, tokens[-1][2]
        if sign < 0:
            tokens.pop()
        text, _ = take("number", wanted)
        value = float(text)
        # Whole numbers stay whole, for parameters that count something; by float(), so that 400 digits are infinite.
        return sign * (int(value) if text.isdigit() and value.is_integer() else value), at

    def take_value() -> float | bool:
        if next_is("name"):
            text, at = take("name", "a value")
            if text not in ("true", "false"):
                fail(at, f"expected a number, true or false, got {text!r}")
            return text == "true"
        return take_number("a number, true or false")[0]

    def take_term() -> LossTerm:
        weight = 1.0
        if next_is("number") or next_is("-"):
            weight, at = take_number("a number")
            take("*", "'*' between a weight and its loss")
            if not POSITIVE.contains(weight):
                fail(at, f"a weight must be {POSITIVE.text}, got {weight!r}")
        name, name_at = take("name", "a loss or its weight")
        if name not in LOSSES:
            fail(name_at, f"unknown loss {name!r}; valid are {', '.join(LOSSES)}")
        info, given = LOSSES[name], {}
        if next_is("("):
            tokens.pop()
            while not next_is(")"):
                key, at = take("name", "a parameter or ')'")
                if key in given:
                    fail(at, f"{key} of {name} is given twice")
                take("=", f"'=' after {key}")
                value = take_value()
                try:
                    check_params(name, info.function.domains, {key: value})
                except ValueError as error:
                    raise ValueError(f"loss spec {spec!r}, position {at}: {error}") from None
                given[key] = value
                if not next_is(")"):
                    take(",", "',' or ')'")
            tokens.pop()
        return LossTerm(float(weight), name, {**info.params, **given})

    terms = [take_term()]
    while not next_is("end"):
        take("+", "'+' or the end")
        terms.append(take_term())
    return tuple(terms)


def format_value(value: float | bool) -> str:
    """A parameter's value as a spec string writes it: `0.5`, `2`, `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")


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
