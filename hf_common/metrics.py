"""Metrics of `evaluate` and their encoders, as flags name them: none is imported here, and what fails is one line."""

import inspect
from collections.abc import Mapping
from typing import Any

from .foreign import first_line, short
from .names import did_you_mean
from .plugins import import_source, in_one_line


def load_metric(
    name: str,
    config: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    words: tuple[str, str] = ("metric", "arguments"),
) -> Any:
    """The metric that `evaluate.load` finds; its encoder is loaded when it is needed.

    Args:
        name: id, folder or file.
        config: its configuration; None: its own.
        arguments: what else it is loaded with; an `encoder` as in [`load_encoder`].
        words: what errors call the metric and these arguments.

    Raises:
        ValueError: there is no such metric, its code fails, or it does not take the arguments.
    """
    import evaluate

    given = dict(arguments or {})
    if "encoder" in given:
        given["encoder"] = load_encoder(given["encoder"])
    try:
        metric = evaluate.load(name, config, **given)
    except Exception as error:  # of any kind: a metric is someone's code, and the Hub fails in many ways
        # Some are told in words; others, as a KeyError, are nothing without their kind.
        in_words = isinstance(error, ValueError | OSError | ImportError)
        cause = short(first_line(error) if in_words else in_one_line(error), 160)
        raise ValueError(f"{words[0]} {short(repr(name), 80)} can't be loaded: {cause}") from error
    # Those that a metric does not know are not refused by `evaluate`, but dropped: a typo would score something else.
    inits = [vars(base)["__init__"] for base in type(metric).__mro__[:-1] if "__init__" in vars(base)]
    known = {name for init in inits for name in inspect.signature(init).parameters}
    for one in given:
        if one not in known:
            raise ValueError(f"{words[1]}: the metric takes no {short(repr(one), 60)}{did_you_mean(one, known)}")
    return metric


def load_encoder(spec: Any) -> Any:
    """The callable that `module:function` or `file.py:function` names; any other encoder is left to the metric.

    Raises:
        ValueError: it cannot be imported.
    """
    source, colon, name = str(spec).rpartition(":")
    if not isinstance(spec, str) or not colon or not name.isidentifier():
        return spec
    try:
        return getattr(import_source(source), name)
    except Exception as error:  # of any kind: it is someone's code
        raise ValueError(f"encoder {spec!r:.120} can't be imported: {in_one_line(error)}") from error
