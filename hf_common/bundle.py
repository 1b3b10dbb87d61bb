"""A module and all that it imports from this distribution as one file, for Hub repositories that bring their code.

    bundle("hf_dit.sampling.pipeline")
    bundle_file("my_metric/my_metric.py")

`diffusers` and `evaluate` load one Python file of a repository, where these packages need not be installed. Modules
are read and not run: a library that they import may be missing here.
"""

import ast
import importlib
import os
import symtable
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics")


class Part(NamedTuple):
    """One module of a bundle.

    package: what its relative imports start from; None: files beside it, which stay files.
    """

    name: str
    source: str
    tree: ast.Module
    package: str | None


def bundle(module: str) -> str:
    """The source of `module`, a full name, and of those that it imports from `PACKAGES`, as one file.

    Imports between the modules are dropped, so they have to be of the form `from module import name`, without `as`,
    of a name that stands in that module; and a name has to mean one thing in all of the modules: else a
    `RuntimeError`.
    """
    parts: dict[str, Part] = {}
    _collect(_module(module), parts)
    head = f'"""Modules of {module.partition(".")[0]} (Apache-2.0) in one file:\n{", ".join(parts)}\n"""\n'
    return _joined(head, parts)


def bundle_file(path: str | os.PathLike) -> str:
    """The same for a file that is no module of `PACKAGES`, whose docstring and relative imports stay."""
    path = Path(path)
    parts: dict[str, Part] = {}
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    _collect(Part(path.name, source, tree, None), parts)
    head = "" if ast.get_docstring(tree) is None else f"{ast.get_source_segment(source, tree.body[0])}\n\n"
    return _joined(f"{head}# In one file with {', '.join(list(parts)[:-1])} (Apache-2.0)\n", parts)


def imports_packages(tree: ast.Module) -> bool:
    """Whether a file imports names from `PACKAGES`, wherever in it."""
    return any(_own_module(node, None) for node in _import_lines(tree))


def _joined(head: str, parts: Mapping[str, Part]) -> str:
    _check_meanings(parts.values())
    return "\n\n".join([head, *(f"# {part.name}\n\n{_without_own_imports(part)}" for part in parts.values())])


def _module(name: str) -> Part:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"there is no module {name}")
    source = Path(spec.origin).read_text(encoding="utf-8")
    return Part(name, source, ast.parse(source), spec.parent)


def _import_lines(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))


def _own_module(node: ast.ImportFrom, package: str | None) -> str | None:
    """The full name of the module of `PACKAGES` that a line imports from; None where it does not."""
    module = node.module or ""
    if node.level:
        return None if package is None else resolve_name("." * node.level + module, package)
    return module if module.partition(".")[0] in PACKAGES else None


def _collect(part: Part, parts: dict[str, Part]) -> None:
    """Add `part` to `parts`, after those of `PACKAGES` that it imports."""
    for node in ast.walk(part.tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            raise RuntimeError(f"{part.name} imports from __future__, which has to stand first in a file")
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in PACKAGES for alias in node.names):
            raise RuntimeError(f"{part.name}, line {node.lineno}: must be of the form `from module import name`")
    for node in _import_lines(part.tree):
        own = _own_module(node, part.package)
        if own is not None:
            names = [alias.name for alias in node.names]
            if not node.module or "*" in names or any(alias.asname for alias in node.names):
                raise RuntimeError(f"{part.name}, line {node.lineno}: must be of the form `from module import name`")
            if own not in parts:
                _collect(_module(own), parts)
    parts[part.name] = part


def _check_meanings(parts: Iterable[Part]) -> None:
    """`RuntimeError` for a name that means two things, or that is imported from a module without it.

    Args:
        parts: each after those that it imports from.
    """
    by_module: dict[str, dict[str, tuple]] = {}
    everywhere: dict[str, tuple] = {}
    for part in parts:
        meanings = by_module[part.name] = _meanings(part, by_module)
        for name, meaning in meanings.items():
            if not name.startswith("__") and not _is_one(everywhere.setdefault(name, meaning), meaning):
                modules = ", ".join(by_module)
                raise RuntimeError(f"{name} means one thing in {part.name} and another in one of {modules}")


def _meanings(part: Part, by_module: Mapping[str, dict[str, tuple]]) -> dict[str, tuple]:
    """Where each name at the top of a module comes from: what it is imported from, or the module itself."""
    symbols = symtable.symtable(part.source, part.name, "exec").get_symbols()
    given_here = {symbol.get_name() for symbol in symbols if symbol.is_assigned()}  # also by `def` and `class`
    meanings: dict[str, tuple] = dict.fromkeys(given_here, (part.name,))
    for line in _import_lines(part.tree):
        own = _own_module(line, part.package)
        for alias in line.names:
            if own is not None and alias.name not in by_module[own]:
                raise RuntimeError(f"{part.name}, line {line.lineno}: {alias.name} does not stand in {own}")
    for node in _outside_of_functions(part.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                meanings[alias.asname or first] = ("import", alias.name if alias.asname else first)
        elif isinstance(node, ast.ImportFrom):
            own = _own_module(node, part.package)
            for alias in node.names:
                if own is None:
                    module = "." * node.level + (node.module or "")
                    meanings[alias.asname or alias.name] = ("from", module, alias.name)
                elif alias.name not in given_here:
                    meanings[alias.name] = by_module[own][alias.name]
    return meanings


def _is_one(meaning: tuple, other: tuple) -> bool:
    """Whether two meanings are the same, as those of one object that a library offers in two places are."""
    if meaning == other or not meaning[0] == other[0] == "from":
        return meaning == other
    try:
        one, another = (getattr(importlib.import_module(module), name) for _, module, name in (meaning, other))
    except (ImportError, AttributeError, TypeError):  # TypeError: of a file beside
        return False
    return one is another


def _outside_of_functions(tree: ast.Module) -> Iterator[ast.AST]:
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))


def _without_own_imports(part: Part) -> str:
    """The source without its docstring and its imports from `PACKAGES`."""
    source = part.source.splitlines()
    lines: list[str | None] = [*source]

    def replace(node: ast.stmt, line: str | None) -> None:
        end = node.end_lineno or node.lineno
        lines[node.lineno - 1 : end] = [line, *[None] * (end - node.lineno)]

    if ast.get_docstring(part.tree) is not None:
        replace(part.tree.body[0], None)
    for node in ast.walk(part.tree):
        if isinstance(node, ast.ImportFrom):
            indent = " " * node.col_offset
            if _own_module(node, part.package) is not None:
                replace(node, f"{indent}pass" if indent else None)
            elif indent:
                # diffusers and evaluate read the lines that begin with `from`, inside functions too, and ask their
                # users to install what is missing: here packages that are optional.
                lines[node.lineno - 1] = f"{indent}pass; {source[node.lineno - 1].lstrip()}"
    return "\n".join(line for line in lines if line is not None).strip() + "\n"
