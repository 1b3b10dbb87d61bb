import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from evaluate_metrics.core.mmd import cmmd
from tests import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_metrics.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def run(script, monkeypatch, capsys):
    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        script["main"]()
        return capsys.readouterr().out

    return call


def test_sizes_are_measured_by_the_methods_that_reach_them(run, tmp_path):
    output = tmp_path / "new" / "figures.json"
    text = run(
        "--images", "300", "40", "20", "--dim", "9", "--pairs_up_to", "40", "--repeats", "2", "--output", str(output)
    )
    report = json.loads(output.read_text())
    assert list(report["images"]) == ["20", "40", "300"]
    assert set(report["images"]["40"]) == {"moments", "pairwise", "formula"} and set(report["images"]["300"]) == {
        "moments"
    }
    for rows in report["images"].values():
        for row in rows.values():
            assert row["seconds"] > 0 and (row["megabytes"] is None or row["megabytes"] >= 0)
    assert report["images"]["40"]["formula"]["times_faster_than_formula"] == 1
    assert report["images"]["300"]["moments"]["times_faster_than_formula"] is None
    assert set(report["exponents"]) == {"moments", "pairwise", "formula"} and report["settings"]["dim"] == 9
    assert "| 300 | " in text and "| exponent | n^" in text and str(output) in text


def test_the_formula_is_cmmd_in_float32(script):
    x, y = script["make_embeddings"](200, 32, 0), script["make_embeddings"](150, 32, 1)
    assert torch.allclose(x.norm(dim=1), torch.ones(200)) and 0.4 < float((x[:50] @ x[50:].T).mean()) < 0.6
    assert script["formula"](x, y) == pytest.approx(cmmd(x, y, method="pairwise").value, abs=1e-3)


def test_the_exponent_is_the_slope_of_the_larger_sizes(script):
    sizes = [10, 20, 40, 80]
    assert script["exponent"](sizes, [5.0, 5.0, 5.0, 20.0]) == pytest.approx(2)
    assert script["exponent"](sizes[:3], [n**1.5 for n in sizes[:3]]) == pytest.approx(1.5)
    assert script["exponent"]([10], [1.0]) is None and script["exponent"]([], []) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "1"], "--images must be 2 or more each; got [1]"),
        (["--dim", "0"], "--dim must be 1 or more; got 0"),
        (["--repeats", "0"], "--repeats must be 1 or more; got 0"),
    ],
)
def test_bad_flags_are_refused(run, capsys, flags, words):
    with pytest.raises(SystemExit):
        run(*flags)
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_memory_that_an_earlier_method_has_freed_is_counted_again(script):
    held, x = [], torch.ones(1, 1)

    def method(x, y):
        parts = [torch.ones(500_000) for _ in range(20)]  # 2 MB each
        held.append(torch.ones(500_000))  # lies above them, so that malloc keeps them when they are freed
        return float(sum(part[0] for part in parts))

    megabytes = [script["measure"](method, x, x)["megabytes"] for _ in range(3)]
    assert min(megabytes) > 30, megabytes
