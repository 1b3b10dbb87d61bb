"""Arguments of a command from a JSON or YAML file: the flags beside it win."""

import json
from collections.abc import Sequence
from pathlib import Path

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
    content = read_json(path) if path.endswith(".json") else _read_yaml(path)
    flags: list[str] = []
    for name, value in content.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise refuse(path, f"its names must be those of flags, without hyphens; got {short(repr(name), 60)}")
        if value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *(_flag_value(part) for part in values)]
    return [*flags, *rest]


def _read_yaml(path: str) -> dict:
    with Path(path).open(encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise refuse(path, f"is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise refuse(path, f"must hold an object of flags, holds {type(content).__name__}")
    return content


def _flag_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
