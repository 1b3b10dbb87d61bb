import ast
import subprocess
import sys

import pytest

import hf_robust
from tests import ROOT


def test_every_public_name_is_importable_from_the_root():
    for name in hf_robust.__all__:
        assert getattr(hf_robust, name).__name__ == name
    assert set(hf_robust.__all__) <= set(dir(hf_robust))
    assert set(hf_robust.__all__) == set(hf_robust._MODULES)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        hf_robust.nosuch  # noqa: B018


PACKAGES = ["hf_robust", "hf_dit", "evaluate_metrics"]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_do_not_import_each_other(package):
    imported = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    assert imported & set(PACKAGES) <= {package}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_torch(package):
    code = f"import sys, {package}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
