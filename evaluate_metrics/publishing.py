"""A metric's folder as a Gradio Space on the Hub: what is checked before it is published, and what is published.

A Space has to work where these packages are not installed. What NAME.py or the app imports from them is written into
that file.
"""

import ast
import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import evaluate
import yaml
from evaluate.loading import evaluation_module_factory, get_imports, import_main_class
from huggingface_hub import CommitInfo, HfApi, metadata_load
from huggingface_hub.errors import RevisionNotFoundError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hf_common.bundle import bundle_file, imports_packages
from hf_common.hub import check_push, push_folder

SPACE_FILES = ("*.py", "README.md", "requirements.txt")
HUB_FILES = ("README.md", ".gitattributes")  # what a new Space holds
TAGS = ["evaluate", "metric"]


def publish_space(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    only_check: bool = False,
) -> CommitInfo | None:
    """Make `repo_id` the Space of a metric's folder, by one commit; everything that can be is checked before.

    Args:
        folder, repo_id: see [`check_space`].
        token, private, revision, create_pr: see [`push_folder`].
        only_check: raise what would be raised, and send nothing.

    Raises:
        ValueError, TypeError, OSError: what `check_space`, `check_replaced`, `write_space` and `push_folder` raise.
    """
    space: dict[str, Any] = {
        "names": SPACE_FILES,
        "repo_type": "space",
        "token": token,
        "revision": revision,
        "private": private,
    }
    check_space(folder, repo_id, revision)
    check_push(repo_id, **space)
    check_replaced(repo_id, token, revision)
    with tempfile.TemporaryDirectory() as written:
        write_space(folder, repo_id, written)
        if only_check:
            return None
        message = f"Metric {repo_id.split('/')[1]} for evaluate"
        return push_folder(written, repo_id, **space, create_pr=create_pr, commit_message=message, space_sdk="gradio")


def check_space(folder: str | os.PathLike, repo_id: str, revision: str | None = None) -> None:
    """Raise what would keep `evaluate.load(repo_id, revision=revision)` or the Space itself from working elsewhere.

    The folder must be a metric: `name.py`, called as the folder and the repository are, whose first class that is an
    `EvaluationModule` is a metric of its own; a `README.md` with the metadata of a Space; the app that it names; and a
    `requirements.txt` that lists all that is imported, but for what [`write_space`] writes into the files. `evaluate`
    copies, beside `name.py`, the files that it imports by lines of the form `from .other import ...` alone: no other
    file may be needed. The metric is imported.

    Args:
        folder: holds the files of `SPACE_FILES` and no others but hidden ones and `__pycache__`.
        repo_id: `user/name`.
        revision: the branch to publish to.

    Raises:
        ValueError: one of these things is not so; names the file.
    """
    folder = Path(folder).resolve()
    _check_folder_and_id(folder, repo_id, revision)
    app = _checked_app(folder)
    with tempfile.TemporaryDirectory() as place:
        space = Path(place, folder.name)
        space.mkdir()
        write_space(folder, repo_id, space)
        try:
            _check_imports(space, app)
            _check_class(space / f"{folder.name}.py")
        except ValueError as error:
            raise ValueError(str(error).replace(str(space), str(folder))) from error
    _check_class(folder / f"{folder.name}.py")  # in one file, a class of these packages would pass for its own


def _check_folder_and_id(folder: Path, repo_id: str, revision: str | None) -> None:
    user, _, name = repo_id.partition("/")
    if not re.fullmatch(r"[\w-]+", user) or not name.isidentifier():
        raise ValueError(
            f"repo_id must be user/name, user without a dot and name as in name.py, without hyphens, since evaluate "
            f"imports it; got {repo_id!r}"
        )
    if name != folder.name or not (folder / f"{name}.py").is_file():
        raise ValueError(
            f"repo_id={repo_id!r} needs a folder {name} with {name}.py in it, which evaluate.load({repo_id!r}) asks "
            f"for; got the folder {str(folder)!r}"
        )
    pull_request = revision is not None and revision.startswith("refs/")
    if revision is not None and not pull_request and ("/" in revision or re.match(r"\d*\.\d*\.\d*", revision)):
        raise ValueError(
            f"revision={revision!r} can't be loaded: evaluate takes no branch with a slash, and asks for v1.2.3 when "
            "told 1.2.3"
        )
    others = [path.name for path in sorted(folder.iterdir()) if not _is_published(path) and not _is_hidden(path)]
    if others:
        raise ValueError(f"folder {str(folder)!r} holds what is not published, which is {SPACE_FILES}: {others}")


def check_replaced(repo_id: str, token: str | None = None, revision: str | None = None) -> None:
    """`ValueError` for a Space that holds something else than an earlier version of the metric."""
    api = HfApi(token=token)
    if not api.repo_exists(repo_id, repo_type="space"):
        return
    try:
        files = api.list_repo_files(repo_id, repo_type="space", revision=revision)
    except RevisionNotFoundError:
        files = api.list_repo_files(repo_id, repo_type="space")  # a new branch starts with the files of the main one
    script = repo_id.split("/")[1] + ".py"
    if script not in files and set(files) - set(HUB_FILES):
        raise ValueError(f"repo_id={repo_id!r} is another Space, which holds {files} and no {script}; name another")


def write_space(folder: str | os.PathLike, repo_id: str, destination: str | os.PathLike) -> None:
    """Write the files of `SPACE_FILES` as they are published.

    What `name.py` or the app imports from these packages is in that file, unless `requirements.txt` lists their
    distribution. In the card and in `name.py`, `evaluate.load("x/name"`, and so for other metrics of `x`, becomes
    `evaluate.load("user/name"`.

    Args:
        folder, repo_id: see [`check_space`].
        destination: existing and empty.

    Raises:
        ValueError: `name.py` or the app is no Python, or can't be made one file with what it imports.
    """
    user, name = repo_id.split("/")
    folder, destination = Path(folder), Path(destination)
    for path in folder.iterdir():
        if _is_published(path):
            shutil.copyfile(path, destination / path.name)
    for path in (folder / f"{name}.py", folder / _checked_app(folder)):
        if _needs_packages(path):
            try:
                text = bundle_file(path)
            except RuntimeError as error:
                raise ValueError(f"{path} can't be made one file with what it imports: {error}") from error
            (destination / path.name).write_text(text, encoding="utf-8", newline="\n")
    for path in (destination / "README.md", destination / f"{name}.py"):
        content = path.read_bytes()
        for old in set(re.findall(rb'evaluate\.load\("([\w-]+/)%s"' % name.encode(), content)):
            content = content.replace(b'evaluate.load("' + old, f'evaluate.load("{user}/'.encode())
        path.write_bytes(content)


def _needs_packages(path: Path) -> bool:
    """Whether a file imports from these packages, and nothing that brings them is listed beside it."""
    if not imports_packages(_parsed(path)):
        return False
    given_by = packages_distributions().get(__package__, [__package__])
    return not {canonicalize_name(package) for package in given_by} & _requirements(path.with_name("requirements.txt"))


def _is_published(path: Path) -> bool:
    return path.is_file() and any(path.match(pattern) for pattern in SPACE_FILES)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__pycache__"


def _checked_app(folder: Path) -> str:
    """Name of the app's file."""
    path = folder / "README.md"
    try:
        card = metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} must be the card of a Space: {error}") from error
    app, tags = card.get("app_file"), card.get("tags")
    tagged = isinstance(tags, list) and all(tag in tags for tag in TAGS)
    if not card.get("title") or card.get("sdk") != "gradio" or not tagged:
        found = {key: card.get(key) for key in ("title", "sdk", "tags")}
        raise ValueError(f"{path} must have a title, sdk: gradio and the tags {TAGS} in its metadata; got {found}")
    if app not in {file.name for file in folder.glob("*.py")}:
        raise ValueError(f"{path} must name a Python file of its folder as app_file; got {app!r}")
    return app


def _check_imports(folder: Path, app: str) -> None:
    script = folder / f"{folder.name}.py"
    copied = {name for kind, name, *_ in get_imports(str(script)) if kind == "internal"}  # by evaluate
    required, distributions = _requirements(folder / "requirements.txt"), packages_distributions()
    siblings = {path.stem for path in folder.glob("*.py")}
    if Path(app).stem in copied:
        raise ValueError(f"{script} imports the app, {app}")
    for path in sorted(folder.glob("*.py")):
        of_metric = path == script or path.stem in copied
        for line, level, modules in _imports(path):
            where, first = f"{path}, line {line}", modules[0]
            if len(modules) > 1 and path == script:
                raise ValueError(f"{where}: evaluate reads one module in each import; got {', '.join(modules)}")
            if level and not of_metric:
                raise ValueError(f"{where}: a relative import in a file that {script.name} does not import")
            if level and (level > 1 or first not in siblings):
                raise ValueError(f"{where}: a relative import must be of the form `from .other import ...` of a file")
            if level and first not in copied:
                raise ValueError(
                    f"{where}: evaluate copies what {script.name} imports at the start of a line that ends without a "
                    f"comment, and {first}.py is not among it"
                )
            names = set() if level else {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
            for name in sorted(names if of_metric else names - siblings):
                given_by = {canonicalize_name(package) for package in distributions.get(name, [name])}
                if not given_by & required:
                    sibling = f"; or write `from .{name} import ...`" if name in siblings else ""
                    raise ValueError(
                        f"{where}: {name} is imported, and requirements.txt lists none of {sorted(given_by)}{sibling}"
                    )


def _imports(path: Path) -> list[tuple[int, int, list[str]]]:
    """Line, level (dots) and modules of each import, wherever it stands."""
    found = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            found.append((node.lineno, 0, [alias.name for alias in node.names]))
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, [node.module or ""]))
    return sorted(found)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is no Python: {error}") from error


def _requirements(path: Path) -> set[str]:
    if not path.is_file():
        raise ValueError(f"folder {str(path.parent)!r} lacks requirements.txt, the packages that are imported")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        return {canonicalize_name(Requirement(line).name) for line in lines if line}
    except InvalidRequirement as error:
        raise ValueError(f"{path} must have lines such as `numpy>=1.26` or `name @ URL`: {error}") from error


def _check_class(script: Path) -> None:
    try:
        module = evaluation_module_factory(str(script)).module_path
        found = import_main_class(module)
    except Exception as error:  # of any code of the metric's
        raise ValueError(f"{script} can't be imported by evaluate: {type(error).__name__}: {error}") from error
    if found is None or not issubclass(found, evaluate.Metric) or found.__module__ != module:
        name = None if found is None else f"{found.__module__}.{found.__qualname__}"
        raise ValueError(
            f"{script}: the first class of evaluate that it holds or imports must be its own evaluate.Metric; "
            f"got {name} (write `import evaluate`, and `evaluate.Metric` where it is used)"
        )
