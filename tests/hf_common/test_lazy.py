import subprocess
import sys

import pytest

from tests import ROOT

HEAVY = ("torch", "transformers", "diffusers", "datasets", "matplotlib", "sklearn", "evaluate", "accelerate", "numpy")


def said(code, *places):
    """Status, output and errors of a fresh interpreter that looks for modules in these places first."""
    path = ":".join(map(str, [*places, ROOT, *sys.path]))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.parametrize("package", ["hf_common", "hf_robust", "hf_dit", "evaluate_metrics"])
def test_the_root_of_a_package_imports_nothing_heavy(package):
    assert said(f"import sys, {package}; print([m for m in {HEAVY} if m in sys.modules])") == (0, "[]", "")


@pytest.mark.parametrize("kind", ["ImportError", "AttributeError"])
@pytest.mark.parametrize(
    ("library", "name"), [("transformers", "hf_robust.RobustTrainer"), ("diffusers", "hf_dit.DiTModel")]
)
def test_a_broken_library_is_told_by_what_it_says(library, name, kind, tmp_path):
    (tmp_path / f"{library}.py").write_text(f"raise {kind}('boom')")
    package, _, attribute = name.partition(".")
    status, _, errors = said(f"from {package} import {attribute}", tmp_path)
    assert status == 1 and errors.splitlines()[-1] == f"ImportError: {name} can't be loaded: {kind}: boom"


def test_a_missing_library_is_named(tmp_path):
    (tmp_path / "transformers.py").write_text("import nosuchlibrary")
    _, _, errors = said("from hf_robust import RobustTrainingArguments", tmp_path)
    assert (
        "hf_robust.RobustTrainingArguments can't be loaded" in errors and "No module named 'nosuchlibrary'" in errors
    )
