"""Files as they come back from a bad disk, a cut transfer or a stranger: changed at random, by a seed."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hf_common.foreign import LONGEST

# In place of a value of a JSON file.
VALUES = [
    None, True, False, 0, 1, -1, 2, 10**12, -(10**30), 0.5, 1e308, -1e-308, "", "x", "../x", "1", "\u202e|`<b>\n# a",
    "y" * 100_000, [], {}, [[]], [None], {"a": 1}, {"": []},
]  # fmt: skip


class Outcome(NamedTuple):
    """What came of reading a changed file.

    kind: `refused` (an error that names the file), `same` (the value of the file before), `other` (another value),
        `absent` (None: what is there is made again).
    """

    kind: str
    value: object = None


def changed_bytes(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(how, content) `count` times: flipped bits, cut ends, zeroed, repeated and exchanged blocks."""
    draw = random.Random(seed)
    for _ in range(count):
        changed, how = bytearray(content), draw.choice(["flip", "flip three", "cut", "zero", "repeat", "exchange"])
        place, length = draw.randrange(len(content)), draw.choice([1, 8, 64, 512])
        if how.startswith("flip"):
            for _ in range(3 if how.endswith("three") else 1):
                changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        elif how == "cut":
            del changed[place:]
        elif how == "zero":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        elif how == "repeat":
            changed[place:place] = changed[place : place + length]
        else:
            other = draw.randrange(len(content))
            changed[place : place + length], changed[other : other + length] = (
                changed[other : other + length], changed[place : place + length],
            )  # fmt: skip
        yield how, bytes(changed)


def changed_json(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(how, content) `count` times: half as bytes, half in one value: another, none, twice, one more."""
    draw, tree = random.Random(seed), json.loads(content)
    as_bytes = changed_bytes(content, count, seed)
    for _ in range(count):
        if draw.random() < 0.5:
            yield next(as_bytes)
            continue
        changed = copy.deepcopy(tree)
        *way, last = draw.choice(list(places(changed)))
        holder = changed
        for key in way:
            holder = holder[key]
        how = draw.choice(["value", "value", "value", "leave out", "double", "add"])
        if how == "value":
            holder[last] = draw.choice(VALUES)
        elif how == "leave out":
            del holder[last]
        elif how == "double" and isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]))
        elif isinstance(holder, list):
            holder.append(draw.choice(VALUES))
        else:
            holder[draw.choice(["x", "", "settings", "\u202e"])] = draw.choice(VALUES)
        yield f"{how} at {'.'.join(map(str, [*way, last]))[:60]}", json.dumps(changed).encode()


def places(tree, *way) -> Iterator[tuple]:
    """The way to each value of a JSON tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*way, key)
        if isinstance(value, dict | list):
            yield from places(value, *way, key)


def without_a_field(content: bytes) -> Iterator[tuple[tuple, bytes]]:
    """(way, content) without each field of the objects in a JSON file; of the entries of a list, of the first one."""
    for way in places(json.loads(content)):
        if isinstance(way[-1], str) and not any(isinstance(key, int) and key for key in way):
            changed = holder = json.loads(content)
            for key in way[:-1]:
                holder = holder[key]
            del holder[way[-1]]
            yield way, json.dumps(changed).encode()


def outcome(read: Callable[[], object], path: Path, before: object, longest: int = LONGEST) -> Outcome:
    """What `read`, which reads the file `path`, makes of it; any error but a short one that names the file is raised.

    Args:
        before: what it made of the file as it was.
        longest: characters of an error beside those of the path.
    """
    try:
        found = read()
    except (ValueError, OSError) as error:
        text, places = str(error), [path, *path.parents[:3]]
        named = path.name in text or any(str(place) in text for place in places)
        for place in places:
            text = text.replace(str(place), "")  # folders of tests have long names
        if named and len(text) <= longest:
            return Outcome("refused", error)
        raise AssertionError(f"{type(error).__name__} that is long or names no file: {text[:400]}") from error
    if found is None:
        return Outcome("absent")
    return Outcome("same" if equal(found, before) else "other", found)


def equal(one: object, other: object) -> bool:
    """Whether two values of JSON, arrays and tensors are the same, in their types too."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
