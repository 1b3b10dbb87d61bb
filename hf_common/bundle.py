"""A module and all that it imports from this distribution as one file, for Hub repositories that bring their code.

    bundle("hf_dit.sampling.pipeline")

`diffusers` and `evaluate` load one Python file of a repository, where these packages need not be installed.
"""

import ast
import importlib
from importlib.util import find_spec, resolve_name
from pathlib import Path

PACKAGES = ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics")


def bundle(module: str) -> str:
    """The source of `module`, a full name, and of those that it imports from `PACKAGES`, as one file.

    Imports between the modules are dropped, so they have to be of the form `from module import name`, without `as`;
    and a name has to mean one thing in all of the modules: else a `RuntimeError`.
    """
    trees: dict[str, ast.Module] = {}
    _collect(module, trees)
    meanings: dict[str, object] = {}
    for name in trees:
        for bound, value in vars(importlib.import_module(name)).items():
            if not bound.startswith("__") and meanings.setdefault(bound, value) is not value:
                raise RuntimeError(f"{bound} means one thing in {name} and another in one of {', '.join(trees)}")
    head = f'"""Modules of {module.partition(".")[0]} (Apache-2.0) in one file:\n{", ".join(trees)}\n"""\n'
    parts = [f"# {name}\n\n{_without_own_imports(_source(name), tree)}" for name, tree in trees.items()]
    return "\n\n".join([head, *parts])


def _source(module: str) -> str:
    return Path(find_spec(module).origin).read_text(encoding="utf-8")


def _is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.level > 0 or node.module.partition(".")[0] in PACKAGES)


def _collect(module: str, trees: dict[str, ast.Module]) -> None:
    """Add `module` to `trees`, after those of `PACKAGES` that it imports."""
    tree = ast.parse(_source(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            raise RuntimeError(f"{module} imports from __future__, which has to stand first in a file")
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] in PACKAGES for alias in node.names):
            raise RuntimeError(f"{module}, line {node.lineno}: must be of the form `from module import name`")
        if _is_own(node):
            names = [alias.name for alias in node.names]
            if not node.module or "*" in names or any(alias.asname for alias in node.names):
                raise RuntimeError(f"{module}, line {node.lineno}: must be of the form `from module import name`")
            name = resolve_name("." * node.level + node.module, find_spec(module).parent)
            if name not in trees:
                _collect(name, trees)
    trees[module] = tree


def _without_own_imports(source: str, tree: ast.Module) -> str:
    """The source without its docstring and its imports from `PACKAGES`."""
    lines: list[str | None] = list(source.splitlines())

    def replace(node: ast.stmt, line: str | None) -> None:
        lines[node.lineno - 1 : node.end_lineno] = [line, *[None] * (node.end_lineno - node.lineno)]

    if ast.get_docstring(tree) is not None:
        replace(tree.body[0], None)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            indent = " " * node.col_offset
            if _is_own(node):
                replace(node, f"{indent}pass" if indent else None)
            elif indent:
                # diffusers and evaluate read the lines that begin with `from`, inside functions too, and ask their
                # users to install what is missing: here packages that are optional.
                lines[node.lineno - 1] = f"{indent}pass; {lines[node.lineno - 1].lstrip()}"
    return "\n".join(line for line in lines if line is not None).strip() + "\n"
