"""`--plugins`: what a user's own module registers is known to every command."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_common.plugins import load_plugins
from tests import ROOT
from tests.processes import run_process

PLUGIN = ROOT / "tests/fixtures/own_kinds.py"


CARD = """
import own_kinds
from hf_robust.studies.publish import read_run, run_card
print(run_card([read_run("run/results.json")], "someone/mine"))
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test loads in this process is no plugin of those after it."""
    monkeypatch.setattr("hf_common.plugins._loaded", [])


@pytest.fixture
def work(tmp_path):
    """A folder that holds the plugin."""
    shutil.copy(PLUGIN, tmp_path / "own_kinds.py")
    return tmp_path


def run(work, *words, status=0):
    result = run_process(ROOT / "scripts" / words[0], *words[1:], cwd=work)
    assert result.returncode == status, result.stderr
    return result


def test_words_without_the_flag():
    assert load_plugins(["--a", "1"]) == ["--a", "1"]
    assert load_plugins(["--a", "1", "--plugins", "json", "csv", "--b", "--plugins=math"]) == ["--a", "1", "--b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plugins"], "needs the name of a module"),
        (["--plugins", "--x"], "needs the name of a module"),
        (["--plugins", "no_such_module"], "'no_such_module' can't be imported: ModuleNotFoundError"),
        (["--plugins", "none/such.py"], "there is no file 'none/such.py'"),
        (["--plugins", "here.py"], "'here.py' can't be imported: ZeroDivisionError: division by zero"),
        (
            ["--plugins", "sub/colorsys.py"],
            "ImportError: there is a module colorsys already; give the file another name",
        ),
        (["--plugins", "sub"], "'sub' can't be imported: ImportError: it is a folder; name a module"),
        (["--plugins", "."], "'.' can't be imported: ImportError: name a module, such as my_kinds, or a .py file"),
        (["--plugins", ".pkg"], "'.pkg' can't be imported: ImportError: name a module"),
        (["--plugins="], "'' can't be imported: ImportError: name a module"),
        (["--plugins", "leaves.py"], "'leaves.py' can't be imported: SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported_is_told_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("here.py").write_text("1 / 0")
    Path("leaves.py").write_text("raise SystemExit(3)")
    Path("sub").mkdir()
    Path("sub/colorsys.py").write_text("")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    before = list(sys.path)
    with pytest.raises(ValueError, match=message):
        load_plugins(words)
    assert sys.path == before and "here" not in sys.modules


def test_the_working_folder_hides_no_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    Path("colorsys.py").write_text("raise RuntimeError('not the library')")
    Path("asks_for_it.py").write_text("import colorsys")
    assert load_plugins(["--plugins", "asks_for_it"]) == []
    assert "not the library" not in Path(sys.modules["colorsys"].__file__).read_text()


def test_own_loss_and_noise_train_and_stand_in_the_figures_and_the_card(work):
    flags = ["--plugins", "own_kinds", "--loss", "nce+2*power(q=0.3)", "--noise", "swap_30"]
    flags += ["--num_train_epochs", "1", "--max_train_samples", "200", "--output_dir", "run", "--report_to", "none"]
    run(work, "train_robust.py", *flags)
    results = json.loads((work / "run/results.json").read_text())
    assert results["settings"]["loss"] == "nce + 2*power(q=0.3)" and results["settings"]["noise"] == "swap_30"
    assert results["plugins"] == ["own_kinds"] and 0.25 < results["noise"]["rate"] < 0.35
    assert (work / "run/curves.png").stat().st_size > 0
    card = run_process(CARD, cwd=work).stdout
    assert "1 - p_y^q" in card and "of each class 30 % go to its partner" in card and "Powers" in card
    assert "--plugins own_kinds" in card
    again = run(work, "train_robust.py", *[word for word in flags if word not in flags[:2]], status=2)
    assert "unknown noise 'swap_30'" in again.stderr


def test_own_network_trains(work):
    make = (
        "import own_kinds; from hf_robust.models import make_image_processor as made;"
        "own_kinds.OwnForImageClassification(own_kinds.OwnConfig(num_labels=10)).save_pretrained('net');"
        "made([0.5] * 3, [0.5] * 3, 32).save_pretrained('net')"
    )
    assert run_process(make, cwd=work).returncode == 0
    flags = ["--model", "net", "--num_train_epochs", "1", "--max_train_samples", "100", "--output_dir", "run"]
    run(work, "train_robust.py", "--plugins", "own_kinds", *flags, "--report_to", "none")
    assert json.loads((work / "run/results.json").read_text())["parameters"] == 40


def test_own_attention_trains_and_samples(work):
    colours = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for place, pixels in enumerate(colours):
        folder = work / f"photos/train/{'ab'[place % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    flags = ["--train_data_dir", "photos", "--model", "dit-micro-2", "--attention", "own", "--max_train_steps", "2"]
    run(work, "train_dit.py", "--plugins", "own_kinds.py", *flags, "--train_batch_size", "4", "--output_dir", "dit")
    assert json.loads((work / "dit/results.json").read_text())["plugins"] == ["own_kinds.py"]
    sampling = ["--model_name_or_path", "dit", "--guidance_scales", "1", "--num_inference_steps", "2"]
    sampling += [
        "--attentions",
        "own",
        "full",
        "--schedulers",
        "ddim",
        "DEISMultistepScheduler",
        "--output_dir",
        "study",
    ]
    run(work, "sample_dit.py", "--plugins", "own_kinds.py", *sampling)
    study = json.loads((work / "study/study.json").read_text())
    assert {(cell["attention"], cell["scheduler"]) for cell in study["cells"]} == {
        (attention, scheduler) for attention in ("own", "full") for scheduler in ("ddim", "DEISMultistepScheduler")
    }
    without = run(work, "sample_dit.py", *sampling, status=2)
    assert "'own' is not known" in without.stderr and "--plugins" in without.stderr
    unknown = run(work, "sample_dit.py", *sampling[:-5], "--schedulers", "ddimm", status=2)
    assert "did you mean 'ddim'" in unknown.stderr


def test_own_encoder_scores(work):
    for side in ("real", "fake"):
        (work / side).mkdir()
        for place in range(6):
            pixels = np.full((8, 8, 3), 20 * place + 9 * (side == "fake"), np.uint8)
            Image.fromarray(pixels).save(work / side / f"{place}.png")
    flags = ["--predictions", "fake", "--references", "real", "--encoders", "mean-colour", "--normalize", "false"]
    flags += ["--metrics", "fd", "mean_distance", "--output_dir", "scores"]
    run(work, "evaluate_images.py", "--plugins", "own_kinds", *flags)
    results = json.loads((work / "scores/results.json").read_text())
    (scores,) = results["scores"]
    assert results["plugins"] == ["own_kinds"]
    assert scores["frechet_distance"] == pytest.approx(3 * (9 / 255) ** 2, rel=1e-3)  # grey pixels, moved by 9
    assert scores["mean_distance"] == pytest.approx(3**0.5 * 9 / 255, rel=1e-3)
    assert "| means |" in (work / "scores/results.md").read_text()
