import re
import subprocess
import sys

import pytest

from hf_robust.losses import list_losses
from tests import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "noisy-cifar10" not in block]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run_as_they_are(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_the_table_of_losses_is_the_codes():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README.split("## Losses")[1].split("##")[0], re.MULTILINE))
    rows = {name: formula.replace("\\|", "|") for name, formula in rows.items()}
    assert rows == {info.name: info.formula for info in list_losses()}


def test_every_script_that_is_named_exists():
    root = ROOT
    named = set(re.findall(r"(?:scripts|tests|model_cards)/[\w./]+\.(?:py|json|png)", README))
    assert named and [name for name in sorted(named) if not (root / name).exists()] == []
