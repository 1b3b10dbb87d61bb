"""The papers: their Python runs as it stands, their tables are the code's, their links lead somewhere."""

import re

import pytest

from hf_robust.losses import list_losses
from tests import ROOT
from tests.processes import run_process

PAPERS = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "hf_robust/README.md", "hf_dit/README.md",
    "evaluate_metrics/README.md", "model_cards/README.md", "model_cards/RESULTS.md",
]  # fmt: skip
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAPERS}
PYTHON = [
    pytest.param(block, id=f"{name}-{place}")
    for name, text in TEXTS.items()
    for place, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    if "noisy-cifar10" not in block  # of the Hub
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_run_as_they_are(block, tmp_path):
    done = run_process(block, cwd=tmp_path, PATH="", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout


def test_the_table_of_losses_is_the_codes():
    losses = TEXTS["hf_robust/README.md"].split("## Losses")[1].split("##")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", losses, re.MULTILINE))
    rows = {name: formula.replace("\\|", "|") for name, formula in rows.items()}
    assert rows == {info.name: info.formula for info in list_losses()}
    assert f"| {len(rows)} of them" in TEXTS["README.md"]


@pytest.mark.parametrize("name", PAPERS)
def test_what_is_named_exists(name):
    text, folder = TEXTS[name], (ROOT / name).parent
    named = set(re.findall(r"(?:scripts|tests|model_cards)/[\w./]+\.(?:py|json|png|md)", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|#", link):
            continue
        path, _, heading = link.partition("#")
        assert (folder / path).exists(), link
        if heading:
            heads = re.findall(r"^#+ (.*)$", (folder / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_first_paper_is_short():
    assert TEXTS["README.md"].count("\n") <= 200
