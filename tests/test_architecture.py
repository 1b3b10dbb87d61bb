"""The house: which package may import which, which room stands on which, and nothing twice."""

import ast
import collections
import importlib
import subprocess
import sys
from importlib.util import resolve_name

import pytest

import hf_dit
import hf_robust
from tests import ROOT

# From the ground up: a room imports from itself and from those before it. `()` is the root of a package.
ROOMS = {
    "hf_common": ["*"],
    "hf_robust": [
        "", "hashing", "networks", "noise", "losses", "models", "data", "reports", "training", "studies",
        "noisy_dataset", "commands", "__main__",
    ],
    "hf_dit": [
        "", "attention", "models", "sampling", "studies", "generation", "training", "publishing", "commands",
        "__main__",
    ],
    "evaluate_metrics": ["", "core", "scoring", "cmmd", "fid", "image_quality", "publishing", "commands"],
}  # fmt: skip
PACKAGES = [name for name in ROOMS if name != "hf_common"]
# Names of functions and classes that stand in several files of the packages, and why each may.
REPEATED = {
    "DataArguments": "the flags of each package's scripts, of other fields",
    "ModelArguments": "the flags of each package's scripts, of other fields",
    "main": "each command's: flags, one call, what is printed",
    "run": "each command's, as scripts and the front door call it",
}
LONGEST_FUNCTION, LONGEST_FILE = 60, 450
LONG_FUNCTIONS = {("hf_dit/sampling/pipeline.py", "__call__")}  # one readable loop


def modules():
    """(name of the module, its file, its syntax tree) of every file of the packages."""
    for package in ROOMS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path, ast.parse(path.read_text(encoding="utf-8"))


TREES = {name: (path, tree) for name, path, tree in modules()}


def imports(name):
    """The modules of these packages that a module imports when it runs: not those for type checkers alone."""
    path, tree = TREES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    unread = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and id(node) not in unread:
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            # `from . import x` names a module, if there is one of that name.
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in TREES else base for alias in node.names]
        else:
            continue
        yield from (module for module in found if module.partition(".")[0] in ROOMS)


def room(module):
    """The place of a module in `ROOMS`."""
    package, *parts = module.split(".")
    rooms = ROOMS[package]
    return 0 if rooms == ["*"] else rooms.index(parts[0] if parts else "")


def test_packages_stand_on_the_ground_floor_and_know_nothing_of_each_other():
    for name in TREES:
        allowed = {name.partition(".")[0], "hf_common"}
        assert {module.partition(".")[0] for module in imports(name)} <= allowed, name


def test_rooms_stand_on_lower_rooms():
    for name in TREES:
        package = name.partition(".")[0]
        for module in imports(name):
            if module.partition(".")[0] == package:
                assert room(module) <= room(name), f"{name} imports {module}, which stands above it"


def test_no_module_imports_itself_by_a_detour():
    graph = {name: set(imports(name)) - {name} for name in TREES}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_nothing_is_written_twice():
    where = collections.defaultdict(list)
    for name, (_, tree) in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                where[node.name].append(name)
    assert {name: files for name, files in where.items() if len(files) > 1 and name not in REPEATED} == {}
    assert {name for name in REPEATED if len(where[name]) < 2} == set()


def test_functions_and_files_have_one_subject():
    long = {
        (str(path.relative_to(ROOT)), node.name)
        for path, tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long == LONG_FUNCTIONS
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, (path, _) in TREES.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_every_room_says_what_it_is_for():
    for name, (path, tree) in TREES.items():
        if path.name == "__init__.py":
            assert ast.get_docstring(tree), name


@pytest.mark.parametrize("package", [hf_robust, hf_dit], ids=lambda package: package.__name__)
def test_every_public_name_is_importable_from_the_root(package):
    for name in package.__all__:
        value = getattr(package, name)
        assert getattr(value, "__name__", name) == name
    assert set(package.__all__) <= set(dir(package))
    assert set(package.__all__) == set(package._MODULES)


@pytest.mark.parametrize("package", [hf_robust, hf_dit], ids=lambda package: package.__name__)
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="nosuch"):
        package.nosuch  # noqa: B018


@pytest.mark.parametrize("package", ROOMS)
def test_importing_a_package_does_not_import_torch(package):
    code = f"import sys, {package}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", sorted(name for name in TREES if not name.endswith("__main__")))
def test_every_module_can_be_imported_first(name):
    if name.endswith(".app"):
        pytest.importorskip("gradio", reason="the app is a Space's")
    importlib.import_module(name)
