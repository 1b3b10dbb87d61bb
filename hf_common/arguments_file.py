"""Arguments of a command from a JSON or YAML file: the flags beside it win."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .foreign import read_json, refuse, short

SUFFIXES = (".json", ".yaml", ".yml")


def with_file(words: Sequence[str]) -> list[str]:
    """The words of a command line with a first one such as `config.yaml` replaced by the flags that the file holds.

    A list becomes several words, an object JSON, null is left out; what is said again later on the line wins.

    Raises:
        OSError: there is no such file.
        ValueError: it is no object of flags.
    """
    words = list(words)
    if not words or not words[0].endswith(SUFFIXES):
        return words
    path, rest = words[0], words[1:]
    content = read_json(path, object, pairs=_each_once) if path.endswith(".json") else _read_yaml(path)
    if not isinstance(content, dict):
        raise refuse(path, f"must hold an object of flags, holds {type(content).__name__}")
    flags: list[str] = []
    for name, value in content.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise refuse(path, f"its names must be those of flags, without hyphens; got {short(repr(name), 60)}")
        if name == "debug" and value is True:  # of `run_command`, which has no value
            flags.append("--debug")
        elif value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(_flag_value(part, name, path) for part in values)]
    return [*flags, *rest]


class _Loader(yaml.SafeLoader):
    """Reads YAML whose objects have each name once."""

    def construct_mapping(self, node, deep=False):
        _each_once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> Any:
    with Path(path).open(encoding="utf-8") as file:
        try:
            return yaml.load(file, _Loader)  # a SafeLoader
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # also bytes that are no UTF-8
            raise refuse(path, f"is no YAML: {' '.join(str(error).split())}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{short(repr(twice[0]), 60)} stands there twice")
    return dict(pairs)


def _flag_value(value: object, name: str, path: str) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError:  # dates, sets and bytes of YAML
        raise refuse(
            path,
            f"{name} must be a text, a number, true, false, a list or an object; got {short(repr(value), 60)}; "
            "a text may stand in quotes",
        ) from None
