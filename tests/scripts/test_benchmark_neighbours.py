import json
import runpy
import sys

import pytest
import torch

from tests import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_neighbours.py"


@pytest.fixture
def run(monkeypatch, capsys):
    script, threads = runpy.run_path(str(SCRIPT)), torch.get_num_threads()

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        script["main"]()
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def test_every_size_is_measured(run, tmp_path):
    output = tmp_path / "figures.json"
    text = run("--images", "40", "20", "--dim", "30", "--repeats", "2", "--output", str(output))
    report = json.loads(output.read_text())
    assert list(report["images"]) == ["20", "40"] and report["settings"]["threads"] == 1
    for row in report["images"].values():
        assert row["ratio"] > 0 and row["products"] > 0 and 0 <= row["precision"] <= 1
        assert row["megabytes"] is None or row["megabytes"] >= 0
    assert "| 40 | " in text and str(output) in text


@pytest.mark.parametrize(("flags", "words"), [(["--images", "4"], "5 or more each"), (["--dim", "0"], "1 or more")])
def test_bad_flags_are_refused(run, capsys, flags, words):
    with pytest.raises(SystemExit):
        run(*flags)
    assert words in capsys.readouterr().err
