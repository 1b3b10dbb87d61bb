"""The one way in for files that may come from elsewhere: read as data, checked, and named by every error.

    content = read_json(path, dict)
    check_fields(content, {"seed": int, "names": list_of(str)}, path)
    name = file_name(content["picture"], path, allowed=["study.png"])

What is wrong with a file is a `ValueError` of at most `LONGEST` characters that begins with its path; that it can't be
opened is an `OSError`.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

LONGEST = 300  # characters of an error
MOST_BYTES = 1 << 26  # of a JSON file: results of the longest runs have a few MiB

Test = Callable[[Any], bool]
Check = type | tuple | Test | None  # None: null


def short(text: object, longest: int = LONGEST) -> str:
    """`str(text)`, cut in the middle where it is longer."""
    text = str(text)
    half = (longest - 5) // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def refuse(path: str | os.PathLike, what: object) -> ValueError:
    """The error that says what is wrong with a file."""
    return ValueError(short(f"{os.fspath(path)}: {what}"))


def read_json(
    path: str | os.PathLike,
    kind: type | tuple[type, ...] = dict,
    most_bytes: int = MOST_BYTES,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The content of a JSON file (UTF-8) of a kind, without NaN or infinity.

    Args:
        pairs: makes of the names and values of an object what stands for it; None: a dict, of the last of each name.

    Raises:
        ValueError: larger than `most_bytes`, no such text, no JSON, nested too deeply, or of another kind.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > most_bytes:
        raise refuse(path, f"has {size} bytes, more than {most_bytes}")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark
        content = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise refuse(path, f"is no JSON: {error or 'nested too deeply'}") from None
    if not _fits(content, kind):
        raise refuse(path, f"must hold {_words(kind)}, holds {type(content).__name__}")
    return content


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"holds {name}")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(short(digits, 40))


def check_fields(content: Mapping, fields: Mapping[str, Check], path: str | os.PathLike, where: str = "") -> None:
    """Raise a `ValueError` unless `content` has each of `fields`, of its type or so that its check is true.

    A name that ends with `?` may be missing or None. Other entries of `content` are left alone.
    """
    if not isinstance(content, Mapping):
        raise refuse(path, f"{where or 'it'} must be an object, is {type(content).__name__}")
    for name, check in fields.items():
        key, place = name.removesuffix("?"), f"{where}{name.removesuffix('?')}"
        if content.get(key) is None and name.endswith("?"):
            continue
        if key not in content:
            raise refuse(path, f"lacks {place!r}")
        if not _fits(content[key], check):
            raise refuse(path, f"{place!r} must be {_words(check)}, is {short(repr(content[key]), 80)}")


def list_of(check: Check, length: int | None = None) -> Test:
    """Of a list, of so many entries, whose entries fit."""

    def fits(value: object) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(_fits(part, check) for part in value)

    fits.__doc__ = f"a list of {'' if length is None else f'{length} times '}{_words(check)}"
    return fits


def dict_of(check: Check) -> Test:
    """Of an object whose values fit."""

    def fits(value: object) -> bool:
        return isinstance(value, dict) and all(_fits(part, check) for part in value.values())

    fits.__doc__ = f"an object of {_words(check)}"
    return fits


def number(low: float = -math.inf, high: float = math.inf) -> Test:
    """Of a finite number in a range, ends included."""

    def fits(value: Any) -> bool:
        # Compared first: whole numbers have any size, and `isfinite` takes none that is too large for a float.
        return _fits(value, float) and -sys.float_info.max <= value <= sys.float_info.max and low <= value <= high

    fits.__doc__ = f"a number in [{low:g}, {high:g}]"
    return fits


def whole(low: float = 0, high: float = math.inf) -> Test:
    """Of an integer in a range, ends included."""

    def fits(value: Any) -> bool:
        return _fits(value, int) and low <= value <= high

    fits.__doc__ = f"a whole number in [{low:g}, {high:g}]"
    return fits


def _fits(value: object, check: Check) -> bool:
    if isinstance(check, tuple):
        return any(_fits(value, part) for part in check)
    if check in (int, float):  # True is an int to Python, and an int does for a float
        return isinstance(value, (int,) if check is int else (int, float)) and not isinstance(value, bool)
    if check is None:
        return value is None
    return isinstance(value, check) if isinstance(check, type) else check(value)


def _words(check: Check) -> str:
    if isinstance(check, tuple):
        return " or ".join(map(_words, check))
    if check is None:
        return "null"
    return check.__name__ if isinstance(check, type) else (check.__doc__ or check.__name__)


def file_name(name: object, path: str | os.PathLike, allowed: Collection[str] | None = None) -> str:
    """`name`, which stands in the file `path`, as one component of a path: nothing above or elsewhere can be meant.

    Args:
        allowed: the names that are expected there; None: any.

    Raises:
        ValueError: no text, with a separator, a drive, a control character, `.`, `..`, empty, or none of `allowed`.
    """
    if not (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and len(os.fsencode(name)) <= 255
    ):
        raise refuse(path, f"must name a file or folder beside it, names {short(repr(name), 80)}")
    if allowed is not None and name not in allowed:
        raise refuse(path, f"must name one of {sorted(allowed)}, names {short(repr(name), 80)}")
    return name


def read_array(path: str | os.PathLike, shape: tuple[int | None, ...], kinds: str = "fiu") -> np.ndarray:
    """The array of a `.npy` file; nothing is allocated before its header fits.

    Args:
        shape: what it must have; None in it: any length.
        kinds: letters of numpy's kinds that are taken: `f`, `i`, `u`, `b`.

    Raises:
        ValueError: no such file format (an `.npz` included), another shape or kind, or less data than the header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, _, dtype = read(file)
            start = file.tell()
    except OSError:
        raise
    except Exception as error:  # of many kinds: the header is a Python literal
        raise refuse(path, f"is no .npy file: {error}") from None
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise refuse(path, f"must have the shape {shape}, has {found}")
    if dtype.kind not in kinds:
        raise refuse(path, f"must hold numbers of the kinds {kinds!r}, holds {dtype}")
    if math.prod(found) * dtype.itemsize != path.stat().st_size - start:
        raise refuse(path, f"must have {math.prod(found) * dtype.itemsize} bytes of data, has another number")
    return np.load(path, allow_pickle=False)


def read_tensors(path: str | os.PathLike) -> tuple[dict, dict[str, str]]:
    """The tensors (torch, in memory of their own) of a safetensors file, and its metadata.

    Raises:
        ValueError: no such file format, or damaged so that it shows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 no dict
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise refuse(path, f"is no safetensors file: {error}") from None
