"""Someone's own Python: a module or a file that is imported by name, and the `--plugins` of every command.

A plugin registers losses, noises, attentions or encoders (`register_loss`, ...) when it is imported, and those then
work wherever a name of this distribution's own does.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from .foreign import short

FLAG = "--plugins"
_loaded: list[str] = []


def import_source(source: str) -> ModuleType:
    """The module of that name, or of `path/file.py` as seen from the working folder; what its code raises passes."""
    return _module_of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)


def load_plugins(words: Sequence[str]) -> list[str]:
    """Import what `--plugins NAME ...` names, and return the words of a command line without it.

    Modules are looked for in the working folder too, after all other places.

    Raises:
        ValueError: nothing follows the flag, or a name cannot be imported: the cause in one line.
    """
    rest: list[str] = []
    names: list[str] = []
    taking = False
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == FLAG:
            taking = True
            names += [value] if equals else []
        elif taking and not word.startswith("-"):
            names.append(word)
        else:
            taking = False
            rest.append(word)
    if not names and len(rest) < len(words):
        raise ValueError(f"{FLAG} needs the name of a module or of a .py file")
    for name in names:
        _load(name)
    return rest


def loaded_plugins() -> list[str]:
    """What [`load_plugins`] imported, in this order."""
    return list(_loaded)


def plugins_field() -> dict[str, list[str]]:
    """What a JSON file of results says of them: `plugins`, or nothing where there are none."""
    return {"plugins": loaded_plugins()} if _loaded else {}


def needs_plugins(plugins: Sequence[str]) -> str:
    """What is missing where a name of theirs is not known, as the end of an error."""
    return f"needs {FLAG} {short(' '.join(plugins), 100)}, which registers it"


def _load(name: str) -> None:
    here, path = str(Path.cwd()), list(sys.path)
    if here not in path and "" not in path:
        sys.path.append(here)  # last: a folder of the user's that is called `datasets` hides no library
    try:
        if not all(name.split(".")):
            raise ImportError("name a module, such as my_kinds, or a .py file")
        module = import_source(name)
        if module.__spec__ is not None and module.__spec__.origin is None:  # it would register nothing
            raise ImportError("it is a folder; name a module or a .py file in it")
    except (Exception, SystemExit) as error:  # of any kind: it is someone's code
        raise ValueError(f"{FLAG} {short(repr(name), 80)} can't be imported: {in_one_line(error)}") from error
    finally:
        sys.path[:] = path
    if name not in _loaded:
        _loaded.append(name)


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} in {str(Path.cwd())!r}")
    loaded = sys.modules.get(path.stem)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve():
            raise ImportError(f"a module {path.stem} is loaded already; give the file another name")
        return loaded
    other = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    origin = Path((other and other.origin) or path).resolve()
    if origin != path.resolve() and Path.cwd() not in origin.parents:  # a library would find the file in its place
        raise ImportError(f"there is a module {path.stem} already; give the file another name")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} is no file of Python")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # listed: dataclasses look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def in_one_line(error: BaseException) -> str:
    """The error with its kind; what `os.environ` lacks is said in words."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, KeyError) and frames[-1].f_globals.get("__name__") == "os":
        return f"the environment variable {error.args[0]} is not set"
    return short(f"{type(error).__name__}: {' '.join(str(error).split())}")
