"""`--semantic_map`: which class is mistaken for which, by the name of a published map or as a JSON file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_common.foreign import dict_of, read_json, refuse
from hf_common.names import did_you_mean

from .cifar10 import CIFAR10_CLASSES
from .mapped import check_targets
from .semantic import MNIST_TARGETS, SEMANTIC_TARGETS

PUBLISHED = {"cifar10": SEMANTIC_TARGETS, "mnist": MNIST_TARGETS}
DIGITS = "zero one two three four five six seven eight nine".split()


def read_map(name: str) -> dict[str, str] | str:
    """What a map holds: of a file `{source: target}`, class names or numbers as text; the name of a published one.

    Raises:
        ValueError: neither a published map nor a JSON file of such an object.
    """
    if name in PUBLISHED:
        return name
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"semantic_map: there is neither a file {name!r:.120} nor such a published map ({', '.join(PUBLISHED)})"
            f"{did_you_mean(name, PUBLISHED)}"
        )
    content = read_json(path)
    if not content or not dict_of((str, int))(content):
        raise refuse(path, 'semantic_map: it must hold an object of class to class, such as {"cat": "dog", "7": 1}')
    return {source: str(target) for source, target in content.items()}


def targets_of(content: Mapping[str, str] | str, names: Sequence[str]) -> dict[int, int]:
    """The map as numbers of classes, source -> target.

    Args:
        content: what [`read_map`] returns.
        names: of the K classes.

    Raises:
        ValueError: a class that the data set does not have, one that is its own target, or a published map for other
            classes than these.
    """
    if not isinstance(content, str):
        numbers = {_class_number(source, names): _class_number(target, names) for source, target in content.items()}
        if len(numbers) < len(content):
            raise ValueError("semantic_map: a class is named twice as a source, by its name and its number")
        return check_targets(numbers, len(names))
    digits = [name.split()[0].lower() if name.split() else "" for name in names]
    expected = [list(CIFAR10_CLASSES)] if content == "cifar10" else [[str(i) for i in range(10)], DIGITS]
    if (list(names) if content == "cifar10" else digits) not in expected:
        raise ValueError(
            f"semantic_map: {content} is the map of the classes {expected[0]}, in this order; the data set has "
            f"{list(names[:10])}{', ...' if len(names) > 10 else ''}"
        )
    return dict(PUBLISHED[content])


def _class_number(name: str, names: Sequence[str]) -> int:
    """The number of a class by its name, or by its number where none is called so."""
    if name in names:
        return list(names).index(name)
    if name.isascii() and name.isdigit() and int(name) < len(names):
        return int(name)
    raise ValueError(f"semantic_map: there is no class {json.dumps(name):.80}{did_you_mean(name, names)}")
