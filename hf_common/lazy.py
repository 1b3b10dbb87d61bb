"""Names at the root of a package that are loaded when they are asked for (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable, Callable]:
    """`__getattr__` and `__dir__` for the root of `package`.

    What keeps a library from loading is an `ImportError` that tells it: of an `AttributeError`, which Python takes for
    a name that is not there, `from package import name` would say nothing, and `hasattr` no.

    Args:
        modules: of each name the module, relative to the package, that has it.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f".{modules[name]}", package)
        except (AttributeError, ImportError) as error:
            raise ImportError(f"{package}.{name} can't be loaded: {type(error).__name__}: {error}") from error
        return getattr(module, name)

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *modules})

    return get, names
