"""A pipeline as a folder or Hub repository that carries its own code.

    export_pipeline(pipeline, "my-dit")
    DiffusionPipeline.from_pretrained("my-dit", trust_remote_code=True)  # also where hf_dit is not installed

diffusers takes the class of a pipeline, or of a component, from a Python file where `model_index.json` names it as
`[file without .py, class]` and the file lies beside `model_index.json`, or in the folder of the component.
"""

import ast
import importlib
import json
import os
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module

from .files import replace_text, write_json

PIPELINE_FILE, PIPELINE_MODULE, PIPELINE_CLASS = "dit_image_pipeline", "pipeline", "DiTImagePipeline"
MODEL_FILE, MODEL_MODULE, MODEL_CLASS = "dit_model", "model", "DiTModel"


def export_pipeline(pipeline: DiffusionPipeline, folder: str | os.PathLike) -> None:
    """Save a `DiTImagePipeline` with the code that it needs: torch and diffusers are enough to load it.

    Loading asks for `trust_remote_code=True`, `DiTImagePipeline.from_pretrained` included, and gives classes of the
    folder's own code. The model alone loads with `DiTModel.from_pretrained(folder, subfolder="transformer")`.

    A pipeline or a component of a class that would not be in the folder or in diffusers is a `TypeError`.
    """
    if type(pipeline).__name__ != PIPELINE_CLASS:
        raise TypeError(f"pipeline must be a {PIPELINE_CLASS}, got {type(pipeline).__name__}")
    for name, component in pipeline.components.items():
        cls = type(unwrap_module(component))
        if name == "transformer" and cls.__name__ != MODEL_CLASS:
            raise TypeError(f"transformer must be a {MODEL_CLASS}, got {cls.__name__}")
        if name != "transformer" and component is not None and not cls.__module__.startswith("diffusers."):
            raise TypeError(f"{name} must be of a class of diffusers, got {cls.__name__}")
    folder = Path(folder)
    pipeline.save_pretrained(folder)
    replace_text(folder / "transformer" / f"{MODEL_FILE}.py", bundle(MODEL_MODULE))
    replace_text(folder / f"{PIPELINE_FILE}.py", bundle(PIPELINE_MODULE))
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, _without_local_path(config))
    index = _without_local_path(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    index["_class_name"] = [PIPELINE_FILE, PIPELINE_CLASS]
    index["transformer"] = [MODEL_FILE, MODEL_CLASS]
    write_json(folder / "model_index.json", index)


def _without_local_path(config: dict) -> dict:
    """A config without the folder of this machine that it was loaded from; a Hub id stays."""
    local = os.path.exists(config.get("_name_or_path", ""))
    return {name: value for name, value in config.items() if not (local and name == "_name_or_path")}


def bundle(module: str) -> str:
    """The source of a module of this package and of those that it imports from the package, as one file.

    Imports between the modules are dropped, so they have to be of the form `from .module import name`, without `as`;
    and a name has to mean one thing in all of the modules: else a `RuntimeError`.
    """
    trees: dict[str, ast.Module] = {}
    _collect(module, trees)
    meanings: dict[str, object] = {}
    for name in trees:
        for bound, value in vars(importlib.import_module(f"{__package__}.{name}")).items():
            if not bound.startswith("__") and meanings.setdefault(bound, value) is not value:
                raise RuntimeError(f"{bound} means one thing in {name}.py and another in one of {', '.join(trees)}")
    names = ", ".join(f"{name}.py" for name in trees)
    head = f'"""Modules of hf_dit (Apache-2.0) in one file, as written by its export_pipeline:\n{names}\n"""\n'
    parts = [f"# {name}.py\n\n{_without_own_imports(_source(name), tree)}" for name, tree in trees.items()]
    return "\n\n".join([head, *parts])


def _source(module: str) -> str:
    return (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")


def _collect(module: str, trees: dict[str, ast.Module]) -> None:
    """Add `module` to `trees`, after those that it imports from the package."""
    tree = ast.parse(_source(module))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            raise RuntimeError(f"{module}.py imports from __future__, which has to stand first in a file")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [alias.name for alias in node.names]
            if node.level > 1 or not node.module or "*" in names or any(alias.asname for alias in node.names):
                raise RuntimeError(f"{module}.py, line {node.lineno}: must be of the form `from .module import name`")
            if node.module not in trees:
                _collect(node.module, trees)
    trees[module] = tree


def _without_own_imports(source: str, tree: ast.Module) -> str:
    """The source without its docstring and its imports from the package."""
    lines: list[str | None] = list(source.splitlines())

    def replace(node: ast.stmt, line: str | None) -> None:
        lines[node.lineno - 1 : node.end_lineno] = [line, *[None] * (node.end_lineno - node.lineno)]

    if ast.get_docstring(tree) is not None:
        replace(tree.body[0], None)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            indent = " " * node.col_offset
            if node.level:
                replace(node, f"{indent}pass" if indent else None)
            elif indent:
                # diffusers reads the lines that begin with `from`, inside functions too, and asks its users to install
                # what is missing: here packages that are optional.
                lines[node.lineno - 1] = f"{indent}pass; {lines[node.lineno - 1].lstrip()}"
    return "\n".join(line for line in lines if line is not None).strip("\n") + "\n"
