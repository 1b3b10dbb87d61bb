#!/usr/bin/env python
"""API pages of the packages, one a module, by pdoc: `make docs`, or

python scripts/make_docs.py site
"""

import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc

PACKAGES = ("hf_robust", "hf_dit", "evaluate_metrics", "hf_common")
LEFT_OUT = r"!.*\.(app|__main__)$"  # pages of Spaces, which need gradio; commands


def module_names() -> list[str]:
    """All modules of the packages: of those that list their names, pdoc would leave out the others."""
    names = list(PACKAGES)
    for package in PACKAGES:
        folders = importlib.import_module(package).__path__
        names += [module.name for module in pkgutil.walk_packages(folders, f"{package}.")]
    return [name for name in names if not re.search(LEFT_OUT[1:], name)]


def load_lazy_names() -> None:
    """Give the packages the names that they load when they are asked for: pdoc does not ask."""
    for package in map(importlib.import_module, PACKAGES):
        vars(package).update({name: getattr(package, name) for name in getattr(package, "__all__", ())})


def main() -> None:
    warnings.filterwarnings("ignore", r"Couldn't import .*\.app:")
    load_lazy_names()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    pdoc.pdoc(*module_names(), LEFT_OUT, output_directory=folder)
    print(f"{folder / 'index.html'}")


if __name__ == "__main__":
    main()
