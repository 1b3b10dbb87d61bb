"""Files that a reader never sees half written: a temporary name first, then one rename."""

import json
import os
from pathlib import Path


def replace_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` (UTF-8) to `path`; its folder is made, a file of that name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, content) -> None:
    """Write `content` as indented JSON; a NaN or infinity in it is a `ValueError`."""
    replace_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
