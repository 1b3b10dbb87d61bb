import io
import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hf_common.foreign import (
    LONGEST,
    check_fields,
    dict_of,
    file_name,
    list_of,
    number,
    read_array,
    read_json,
    read_tensors,
    short,
    whole,
)


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json(tmp_path):
    path = written(tmp_path / "a.json", '{"name": "grün", "n": [1, 2.5, null, true]}')
    assert read_json(path) == read_json(str(path)) == {"name": "grün", "n": [1, 2.5, None, True]}
    assert read_json(written(path, "[1]"), list) == [1]
    assert read_json(written(path, "[1]"), (dict, list)) == [1]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "\0\0\0\0", "nul", "[" * 100_000, '{"a": ' * 100_000, b"\xff\xfe{}", '{"a": NaN}', '{"a": -Infinity}',
        '{"a": -1e999}',
        "[1, 2]", '"text"', "3", "null", "{} {}", '{"a": 1' + "0" * 5000 + "}", b'{"a": "\xed\xa0\x80"}',
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_no_object_is_named(content, tmp_path):
    path = written(tmp_path / "bad.json", content)
    with pytest.raises(ValueError) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) <= LONGEST
    assert caught.value.__cause__ is None


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    with pytest.raises(ValueError, match="has 1099511627776 bytes, more than"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_fields():
    fields = {"seed": whole(0), "rate": number(0, 1), "names": list_of(str), "size?": (int, None), "by": dict_of(int)}
    good = {"seed": 0, "rate": 1, "names": [], "by": {"a": 1}, "other": object()}
    check_fields(good, fields, "f")
    check_fields(good | {"size": None, "rate": 0.5}, fields, "f")
    bad = {
        "seed": [-1, True, 1.0, "1", None], "rate": [1.1, -0.1, math.nan, math.inf, "0", True, 10**400],
        "names": ["ab", [1], {"a": 1}, None], "size": ["x", 1.5], "by": [[], {"a": "b"}],
    }  # fmt: skip
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^f: 'inner\.{name}' must be .*, is "):
                check_fields(good | {name: value}, fields, "f", "inner.")
    for name in ("seed", "rate", "names", "by"):
        with pytest.raises(ValueError, match=f"^f: lacks '{name}'"):
            check_fields({key: value for key, value in good.items() if key != name}, fields, "f")
    with pytest.raises(ValueError, match="must be an object, is list"):
        check_fields([], fields, "f")
    check_fields({"m": [[1, 0], [0, 1]]}, {"m": list_of(list_of(number(), 2), 2)}, "f")
    with pytest.raises(ValueError, match="'m' must be a list of 2 times a list of 2 times a number"):
        check_fields({"m": [[1, 0], [0]]}, {"m": list_of(list_of(number(), 2), 2)}, "f")


@pytest.mark.parametrize("name", ["symmetric_40", "study.png", ".hidden", "grün und blau", "a..b", "-rf"])
def test_names_of_files(name):
    assert file_name(name, "f") == name
    with pytest.raises(ValueError, match="^f: must name one of"):
        file_name(name, "f", ["other"])


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../victim", "a/b", "/etc/passwd", "a\\b", "C:", "a\0b", "a\nb", "\u202eab", "x" * 300, 3, None,
        ["a"],
    ],
    ids=range(15),
)  # fmt: skip
def test_names_that_lead_elsewhere(name):
    for allowed in (None, [name] if isinstance(name, str) else []):
        with pytest.raises(ValueError, match="^f: must name a file or folder beside it") as caught:
            file_name(name, "f", allowed)
        assert len(str(caught.value)) <= LONGEST


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_arrays(tmp_path):
    path = tmp_path / "a.npy"
    for array in (np.eye(3), np.arange(6, dtype=np.int8).reshape(2, 3), np.asfortranarray(np.ones((2, 3), ">f4"))):
        written(path, npy(array))
        assert np.array_equal(read_array(path, (None, 3)), array)
    with pytest.raises(ValueError, match=r"must have the shape \(3, 3\), has \(2, 3\)"):
        read_array(path, (3, 3))
    good = npy(np.eye(3))
    header = good[: good.index(b"\n") + 1]
    archive = io.BytesIO()
    np.savez(archive, a=np.eye(3))
    bad = {
        "empty": b"", "text": b"[[1, 0], [0, 1]]", "cut": good[:-1], "longer": good + b"\0", "zip": archive.getvalue(),
        "objects": npy(np.array([[None] * 3] * 3, object)), "strings": npy(np.full((3, 3), "a")),
        "enormous": header.replace(b"(3, 3)", b"(3, 3)"[:0] + b"(3, 9)"), "code": header.replace(b"(3, 3)", b"exit()"),
    }  # fmt: skip
    for name, content in bad.items():
        written(path, content)
        with pytest.raises(ValueError) as caught:
            read_array(path, (3, None))
        assert str(caught.value).startswith(str(path)) and len(str(caught.value)) <= LONGEST, name


def test_an_array_is_not_allocated_before_its_size_is_known(tmp_path):
    header = npy(np.zeros((1, 3)))
    large = header.replace(b"(1, 3), }" + b" " * 15, b"(9999999999999, 3), }   ")
    assert len(large) == len(header) and large != header
    with pytest.raises(ValueError, match="must have 239999999999976 bytes of data"):
        read_array(written(tmp_path / "a.npy", large), (None, 3))


def test_tensors(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True, False])}
    path = written(tmp_path / "t.safetensors", save(tensors, {"note": "x"}))
    found, metadata = read_tensors(path)
    assert metadata == {"note": "x"} and all(torch.equal(found[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize("kind", ["json", "array", "tensors"])
def test_damage_is_an_error_or_does_no_harm(kind, tmp_path):
    content = {
        "json": json.dumps({"matrix": [[0.5, 0.5], [0.25, 0.75]], "name": "x"}).encode(),
        "array": npy(np.eye(4)),
        "tensors": save({"a": torch.eye(4), "b": torch.arange(3)}, {"n": "1"}),
    }[kind]
    read = {"json": read_json, "array": lambda path: read_array(path, (4, 4)), "tensors": read_tensors}[kind]
    random.seed(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        place = random.randrange(len(content))
        how = random.choice(["flip", "cut", "zero", "swap"])
        if how == "flip":
            damaged[place] ^= 1 << random.randrange(8)
        elif how == "cut":
            del damaged[place:]
        elif how == "zero":
            damaged[place : place + 8] = bytes(len(damaged[place : place + 8]))
        else:
            damaged[place:], damaged[:place] = damaged[:-place], damaged[-place:]
        path = written(tmp_path / "file", bytes(damaged))
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error)) <= LONGEST
            refused += 1
    assert refused > 100


def test_short():
    assert short("a" * 300) == "a" * 300
    cut = short("b" + "a" * 200_000 + "c")
    assert len(cut) <= LONGEST and cut.startswith("ba") and cut.endswith("ac") and " ... " in cut
