import json
import runpy
import sys

import pytest

from tests import ROOT

SCRIPT = ROOT / "scripts" / "benchmark_loading.py"


@pytest.fixture
def run(monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPT))

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        script["main"]()
        return capsys.readouterr().out

    return call


def test_both_loaders_are_measured(run, tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--peers", "per-image", "--images", "5", "--height", "20", "--width", "30", "--format", "jpg"]
    text = run(*flags, "--batch_size", "2", "--workers", "1", "--repeats", "2", "--output", str(output))
    (row,) = json.loads(output.read_text())["rows"]
    assert row["ours"] == "clip" and row["least"] <= row["times_faster"] <= row["most"]
    assert "| per-image |" in text and str(output) in text


def test_the_loaders_give_the_same_numbers(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    script["make_images"](tmp_path, 3, "png", 40, 60)
    args, files = script["BenchmarkArguments"](workers=1), sorted(map(str, tmp_path.iterdir()))
    (ours,), (other,) = (
        script[f"{whose}_loader"](name, args)(files) for whose, name in (("our", "clip"), ("peer", "per-image"))
    )
    assert ours.shape == (3, 3) and (ours - other).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--format", "gif"], "--format must be png or jpg"),
        (["--peers", "nobody"], "--peers must be of clean-fid"),
        (["--folder", "/nowhere/at/all"], "--folder must be a folder of images"),
    ],
)
def test_bad_flags_are_refused(run, capsys, flags, words):
    with pytest.raises(SystemExit):
        run("--peers", "per-image", *flags)  # the last --peers counts
    assert words in capsys.readouterr().err
