"""Results as they may be seen by anyone: without paths of the machine that made them."""

import os
from collections.abc import Collection
from pathlib import Path


def last_part(path: str) -> str:
    """The name of a file or folder, also of one that is given with a slash at its end or as `.`."""
    return Path(os.path.abspath(path)).name


def without_paths(value):
    """A JSON value in which a folder, or what is written like a path, is its last part alone."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value[:1] in ("~", ".") or os.path.isdir(value))
    return last_part(value) if is_path else value


def public_results(results: dict, local: Collection[str] = ()) -> dict:
    """A run's results whose `settings` and `plugins` have no paths; those named by `local` are paths, if not None."""
    settings = {
        name: last_part(value) if name in local and value is not None else without_paths(value)
        for name, value in results["settings"].items()
    }
    plugins = {"plugins": without_paths(results["plugins"])} if results.get("plugins") else {}
    return {**results, "settings": settings, **plugins}
