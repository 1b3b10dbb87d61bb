import subprocess
import sys

import pytest

import hf_robust


def test_every_public_name_is_importable_from_the_root():
    for name in hf_robust.__all__:
        assert getattr(hf_robust, name).__name__ == name
    assert set(hf_robust.__all__) <= set(dir(hf_robust))
    assert set(hf_robust.__all__) == set(hf_robust._MODULES)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nosuch"):
        hf_robust.nosuch  # noqa: B018


@pytest.mark.parametrize("package", ["hf_robust", "hf_dit", "evaluate_metrics"])
def test_packages_do_not_import_each_other_nor_torch_at_once(package):
    watched = ["hf_robust", "hf_dit", "evaluate_metrics", "torch"]
    code = f"import sys, {package}; print(*(m for m in {watched} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [package], done.stderr
