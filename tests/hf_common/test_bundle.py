import ast
import importlib
import sys

import pytest
from diffusers.utils.dynamic_modules_utils import check_imports

from hf_common import bundle as bundle_module
from hf_common.bundle import bundle, bundle_file, imports_packages


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules of `ours`, in place of the packages, and a file `mine.py` that is no part of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundle_module, "PACKAGES", ("ours",))
    (tmp_path / "ours").mkdir()

    def call(mine="", **modules):
        for name, source in {"__init__": "", **modules}.items():
            (tmp_path / "ours" / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        path = tmp_path / "mine.py"
        path.write_text(mine)
        return path

    yield call
    sys.modules.pop("ours", None)


def run(source):
    namespace = {}
    exec(source, namespace)
    return namespace


def test_a_file_keeps_its_docstring_and_what_it_imports_from_files_beside_it(write):
    path = write(
        '"""Mine,\nin two lines."""\n\nimport math\n\nfrom ours.a import double\n\nfrom .beside import x\n\n'
        "def f():\n    from ours.b import two\n    return double(two)\n",
        a='"""A."""\nfrom .b import two\n\n\ndef double(x):\n    return two * x\n',
        b='"""B."""\n\ntwo = 2\n',
    )
    assert imports_packages(ast.parse(path.read_text()))
    source = bundle_file(path)
    assert source.startswith('"""Mine,\nin two lines."""\n\n# In one file with ours.b, ours.a (Apache-2.0)\n')
    assert "from .beside import x" in source and "from ours" not in source and '"""A."""' not in source
    assert run(source.replace("from .beside import x", ""))["f"]() == 4
    assert not imports_packages(ast.parse(source))


def test_a_library_that_is_missing_here_may_be_imported(write):
    path = write(
        "from ours.a import f\n", a="import nowhere\nfrom nowhere.inner import g\n\n\ndef f():\n    g(nowhere)\n"
    )
    assert "import nowhere\nfrom nowhere.inner import g\n" in bundle_file(path)
    assert "ours.a" not in sys.modules


def test_one_object_that_a_library_offers_in_two_places_means_one_thing(write):
    write(a="from .b import x\nfrom os.path import join\n", b="from posixpath import join\n\nx = 1\n")
    assert run(bundle("ours.a"))["join"]("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("mine", "modules", "message"),
    [
        ("from ours.a import x\nimport ours.a\n", {"a": "x = 1"}, "mine.py, line 2: must be of the form `from module"),
        ("from ours.a import *\n", {"a": "x = 1"}, "mine.py, line 1: must be of the form"),
        ("from ours.a import x as y\n", {"a": "x = 1"}, "mine.py, line 1: must be of the form"),
        (
            "from __future__ import annotations\nfrom ours.a import x\n",
            {"a": "x = 1"},
            "mine.py imports from __future",
        ),
        ("from ours.a import y\n", {"a": "x = 1"}, "mine.py, line 1: y does not stand in ours.a"),
        ("from ours.b import y\n", {"a": "x = 1"}, "there is no module ours.b"),
        ("def f():\n    from ours import a\n", {"a": "x = 1"}, "mine.py, line 2: a does not stand in ours"),
        (
            "from ours.a import x\ny = [2]\n",
            {"a": "x = 1\ny = [1]\n"},
            "y means one thing in mine.py and another in one",
        ),
        ("from ours.a import x\n\ndef y(): pass\n", {"a": "x = 1\nfrom math import pi as y\n"}, "y means one thing"),
        (
            "from ours.a import x\nx = [2]\n",
            {"a": "x = 1"},
            "x means one thing in mine.py and ano",
        ),
        ("from ours.a import x\nfrom .beside import y\n", {"a": "x = 1\nfrom math import y\n"}, "y means one thing"),
        ("from ours.a import x\nfrom math import y\n", {"a": "x = 1\nfrom nowhere import y\n"}, "y means one thing"),
    ],
)
def test_what_cannot_share_a_file(write, mine, modules, message):
    with pytest.raises(RuntimeError, match=message):
        bundle_file(write(mine, **modules))


def test_one_name_of_one_meaning_may_stand_everywhere(write):
    path = write(
        "import os.path\nimport numpy as np\nfrom ours.a import f, g\n\nnp, os, f, g\n",
        a="import os\nimport numpy as np\nfrom .b import g\n\n\ndef f():\n    local = np, os\n    return local\n",
        b="from math import sqrt as g\n\nlocal = [1 for f in ()]\n",
    )
    assert run(bundle_file(path))["g"](4) == 2


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"a": "from . import b\n", "b": "x = 1\n"}, "ours.a, line 1: must be of the form `from module"),
        ({"a": "from .b import x as y\n", "b": "x = 1\n"}, "ours.a, line 1: must be of the form `from module"),
        (
            {"a": "from .b import x\n", "b": "from __future__ import annotations\nx = 1\n"},
            "ours.b imports from __future__",
        ),
        ({"a": "from .b import x\nhelper = [2]\n", "b": "x = 1\nhelper = [1]\n"}, "helper means one thing in ours.a"),
    ],
)
def test_modules_that_cannot_share_a_file(write, modules, message):
    write(**modules)
    with pytest.raises(RuntimeError, match=message):
        bundle("ours.a")


def test_a_bundle_of_modules_asks_for_no_library_that_a_function_may_do_without(write, tmp_path):
    write(
        a=(
            '"""A."""\n\nimport math\n\nfrom .b import (\n    x,\n)\n\n\n'
            "def f():\n    from .c import y\n\n    return x + y\n"
        ),
        b="import math\n\nx = math.floor(1.5)\n",
        c="def g():\n    from nowhere import z\n\n    return z\n\n\ny = 2\n",
    )
    source = bundle("ours.a")
    namespace = run(source)
    assert namespace["f"]() == 3
    (tmp_path / "bundled.py").write_text(source)
    assert check_imports(tmp_path / "bundled.py") == []
    assert not any(line.strip().startswith("from nowhere") for line in source.splitlines())
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        namespace["g"]()
