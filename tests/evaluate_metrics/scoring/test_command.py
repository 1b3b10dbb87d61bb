"""`evaluate-images` as a shell sees it: words, standard output, status, files."""

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.stored import read_stored
from tests import ROOT
from tests.evaluate_metrics.clip_files import save_tiny_clip

ENCODER = """
import sys
import numpy as np

def encode(images):
    print("encoders may speak")
    pixels = [np.asarray(i, np.float32).reshape(-1, 3) / 255 for i in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three sets of pictures and an encoder in a working folder."""
    root = tmp_path_factory.mktemp("place")
    for seed, (name, level) in enumerate((("real", 90), ("near", 95), ("far", 160))):
        draw = np.random.default_rng(seed)
        (root / name).mkdir()
        for number in range(24 + seed):
            pixels = (level + draw.integers(-30, 31, 3) + draw.integers(-20, 21, (6, 7, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:03}.png")
    (root / "speaks.py").write_text(ENCODER)
    return root


@pytest.fixture
def command(place, tmp_path, monkeypatch, capsys):
    """Runs the command in this process; its status, standard output and standard error."""
    module = importlib.import_module("evaluate_metrics.commands.evaluate_images")
    monkeypatch.chdir(place)

    def call(*words, encoder=True):
        words = [*words, *(["--encoders", "speaks.py:encode"] if encoder else []), "--use_cpu"]
        monkeypatch.setattr(sys, "argv", ["evaluate-images", *words, "--output_dir", str(tmp_path / "out")])
        status = 0
        try:
            module.main()
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    yield call
    sys.modules.pop("speaks", None)


def test_one_json_object_and_nothing_else(command, tmp_path):
    status, out, err = command("real", "near", "far", "--json", "-", "--metrics", "cmmd", "fd")
    found = json.loads(out)  # all of it
    assert status == 0 and out.count("\n") == 1 and "encoders may speak" in err and "| predictions |" in err
    assert [row["predictions"] for row in found["scores"]] == ["near", "far"]
    assert [row["n_predictions"] for row in found["scores"]] == [25, 26] and found["failed"] == []
    near, far = found["scores"]
    assert near["cmmd"] < far["cmmd"] and near["frechet_distance"] < far["frechet_distance"]
    assert near["references"] == "real" and near["n_references"] == 24
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    status, out, _ = command("real", "near", "--json", str(tmp_path / "one.json"))
    one = json.loads((tmp_path / "one.json").read_text())
    assert "CMMD" in out and one["scores"][0]["cmmd"] == near["cmmd"]
    status, old, _ = command("--predictions", "near", "--references", "real")  # the words of before
    assert status == 0 and [line for line in old.splitlines() if "|" in line] == [
        line for line in out.splitlines() if "|" in line
    ]


def test_limits_decide_the_status(command, tmp_path):
    words = ("real", "near", "far", "--metrics", "cmmd", "fd", "--json", "-")
    rows = json.loads(command(*words)[1])["scores"]
    between = (rows[0]["cmmd"] + rows[1]["cmmd"]) / 2
    status, out, err = command(*words, "--fail_above", f"cmmd={between}", "fd=1000")
    assert status == 1 and [failure["predictions"] for failure in json.loads(out)["failed"]] == ["far"]
    last = err.splitlines()[-1]
    assert last.startswith("evaluate-images: failed: cmmd of far with speaks.py:encode is") and "above" in last
    assert (tmp_path / "out" / "results.json").exists()
    assert command(*words, "--fail_above", "cmmd=1000", "--fail_below", "cmmd=0")[0] == 0
    assert command(*words, "--fail_below", f"cmmd={between}")[0] == 1


def test_a_score_without_a_value_fails(command, place, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    Image.open(place / "near" / "000.png").save(one / "0.png")
    status, out, err = command("real", str(one), "--metrics", "cmmd", "--json", "-", "--fail_above", "cmmd_unbiased=9")
    assert status == 1 and json.loads(out)["scores"][0]["cmmd_unbiased"] is None and "has no value" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("real", "near", "--fail_above", "cmd=1"), "did you mean 'cmmd'"),
        (("real", "near", "--fail_above", "kid=1"), "names kid, which is not scored"),
        (("real",), "predictions are missing; without them save_stats, save_moments or save_embeddings is needed"),
        (("real", "--save_moments", "--fail_above", "fd=1"), "predictions are missing, which limits and curve are of"),
        (("real", "near", "--save_stats", "x.txt"), "save_stats: x.txt must end in .npz"),
        (("real", "near", "--json", "real"), "json: real is a folder"),
        (("real", "near", "--json", "real/000.png/x.json"), "json: real/000.png/x.json can't be written: "),
        (("real", "--save_stats", "speaks.py/x/y.npz"), "save_stats: speaks.py/x/y.npz can't be written: "),
        (("real", "near", "--reference_count", "9"), "real is of images, which are counted"),
        (("real", "speaks.py"), "speaks.py is a single file, and no archive, array, Parquet file or statistics"),
        (("real", ""), "a source of images must be named; got nothing"),
        (("gone.zip", "near"), "there is no file 'gone.zip'"),
        (("real", "gone-{0..3}.tar"), "there is no file 'gone-0.tar'"),
        (("real", "near", "--num_workers", "0"), "num_workers must be 1 or more; got 0"),
        (("real", "near", "--json", "/dev/stdout"), "json: /dev/stdout is no plain file, and is not replaced"),
        (("real", "near", "--json", "/dev/fd/7"), "json: /dev/fd/7 is no plain file, and is not replaced"),
        (("real", "near", "--cache_dir", "speaks.py"), "cache_dir: speaks.py is a file and no folder"),
        (("real", "near", "--cache_dir", "speaks.py/x"), "cache_dir: speaks.py/x can't be written: "),
    ],
)
def test_what_is_wrong_is_said_before_work(command, tmp_path, words, message):
    status, out, err = command(*words)
    assert status == 2 and out == "" and message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file(command, place, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, out, err = command("real", "near")
    assert status == 2 and out == "" and f"output_dir: {tmp_path / 'out'} is a file and no folder" in err
    assert (tmp_path / "out").read_text() == "a file"


def test_a_pipe_is_not_replaced_by_the_results(command, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    status, _, err = command("real", "near", "--json", str(tmp_path / "pipe"))
    assert status == 2 and "pipe is no plain file" in err and (tmp_path / "pipe").is_fifo()


def test_files_of_two_encoders_have_two_names(command, place, tmp_path):
    words = ("real", "near", "--encoders", "a/b", "a-b")
    status, _, err = command(*words, "--save_moments", encoder=False)
    assert status == 2 and "encoders: the files of a/b and a-b would both be called a-b" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--curve", "--per_class"])
def test_what_no_encoder_allows_is_refused_before_images_are_embedded(command, place, tmp_path, flag):
    """CMMD needs unit vectors, which the protocol does not give, and CLIPScore has no curve and no classes."""
    save_tiny_clip(tmp_path)
    for number in range(60):
        (tmp_path / "many" / "one").mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "real" / "000.png", tmp_path / "many" / "one" / f"{number}.png")
        (tmp_path / "many" / "one" / f"{number}.txt").write_text("a cat")
    words = (str(tmp_path / "many"), str(tmp_path / "many"), "--encoders", f"clip-score:{tmp_path}", flag)
    status, _, err = command(*words, "--metrics", "clip_score", "cmmd", "--no_use_cache", encoder=False)
    last = err.splitlines()[-1]
    assert status == 2 and f"{flag[2:]} has nothing to show: cmmd is not defined for clip-score:{tmp_path}" in last
    assert "images/s" not in err
    allowed = (*words[:4], "tiny", flag, "--metrics", "clip_score", "cmmd", "--no_use_cache", "--json", "-")
    status, out, _ = command(*allowed, encoder=False)
    rows = json.loads(out)["scores"]
    assert status == 0 and flag[2:] in rows[1]
    assert not rows[0].get("per_class") and any("cmmd" in note for note in rows[0]["notes"])  # no table of nothing


def test_statistics_of_a_folder_and_scores_against_them(command, place, tmp_path):
    status, out, _ = command("real", "near", "--metrics", "fd", "cmmd", "--json", "-", "--no_normalize")
    direct = json.loads(out)["scores"][0]["frechet_distance"]
    stats = str(tmp_path / "stats.npz")
    status, out, _ = command("real", "--save_stats", stats, "--no_normalize")
    assert status == 0 and f"statistics: {stats}\n" in out and "|" not in out  # nothing is scored: no table
    with np.load(stats) as file:
        assert file["mu"].shape == (6,) and file["sigma"].dtype == np.float64
    other = str(tmp_path / "other.npz")
    status, _, err = command("real", "--save_stats", other, "--metrics", "fd", "sfid")
    assert status == 0 and f"save_stats: {other}: " in err and "gives no spatial features, so none are in it" in err
    status, _, err = command("real", "near", "--save_stats", stats)
    assert status == 2 and "stats.npz is there already" in err
    status, out, err = command(stats, "near", "--metrics", "fd", "--json", "-", "--no_normalize")
    (row,) = json.loads(out)["scores"]
    assert row["frechet_distance"] == pytest.approx(direct, rel=1e-9) and row["n_references"] is None
    assert f"references: {stats}: mean and covariance; fd, and cmmd without" in err
    assert "names no encoder" in row["notes"][0] and "no number of images" in row["notes"][1]
    status, out, _ = command(
        stats, "near", "--metrics", "fd", "--json", "-", "--no_normalize", "--reference_count", "24"
    )
    (row,) = json.loads(out)["scores"]
    assert row["frechet_distance"] == pytest.approx(direct, rel=1e-9) and row["n_references"] == 24
    status, _, err = command(stats, "near", "--metrics", "kid", "--kid_subset_size", "9")
    assert status == 2 and "is a file of mean and covariance; kid needs the images, or their embeddings" in err
    status, _, err = command(stats, "near", "--save_moments")
    assert status == 2 and "has no number of images; reference_count=N gives it" in err
    status, _, err = command(stats, "near", encoder=True)
    assert status == 2 and "unit vectors are needed" in err  # normalised, which these are not


def test_unit_vectors_without_a_count(command, tmp_path):
    whole = json.loads(command("real", "near", "--json", "-")[1])["scores"][0]
    stats = str(tmp_path / "stats.npz")
    command("real", "--save_stats", stats)
    row = json.loads(command(stats, "near", "--json", "-", "--fail_above", "cmmd=9")[1])["scores"][0]
    assert row["cmmd"] == pytest.approx(whole["cmmd"], rel=1e-6) and row["cmmd_unbiased"] is None
    counted = json.loads(command(stats, "near", "--json", "-", "--reference_count", "24")[1])["scores"][0]
    for key in ("cmmd", "cmmd_unbiased", "standard_error", "frechet_distance"):
        assert counted[key] == pytest.approx(whole[key], rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_of_pairs_from_stored_embeddings(command, tmp_path, dtype):
    metrics = "--metrics cmmd fd kid p_value fd_infinity --kid_subset_size 9 --kid_subsets 5".split()
    status, out, err = command("real", "near", "far", *metrics, "--json", "-")
    assert status == 0, err
    whole = json.loads(out)["scores"]
    status, *_ = command("real", "near", "far", "--save_embeddings", "--embeddings_dtype", dtype, "--save_moments")
    assert status == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(
        f"{role}-speaks.py-encode{kind}.safetensors"
        for role in ("predictions-1", "predictions-2", "references")
        for kind in ("", "-embeddings")
    )
    stored = [
        str(tmp_path / "out" / f"{role}-speaks.py-encode-embeddings.safetensors")
        for role in ("references", "predictions-2")
    ]
    held = read_stored(stored[0])
    assert held.moments.n == 24 and held.metadata["source"] == "real" and "probe" in held.metadata
    assert Moments.load(stored[0].replace("-embeddings", ""))[0].n == 24
    for predictions in ("far", stored[1]):
        status, out, err = command(stored[0], predictions, *metrics, "--json", "-")
        assert status == 0, err
        (row,) = json.loads(out)["scores"]
        assert row["n_references"] == 24
        assert row["p_value"] == pytest.approx(whole[1]["p_value"], abs=0 if dtype == "float32" else 0.01)
        for key in ("cmmd", "cmmd_unbiased", "frechet_distance", "kid", "fd_infinity"):
            assert row[key] == pytest.approx(whole[1][key], rel=1e-6 if dtype == "float32" else 2e-2)
    status, _, err = command(stored[0].replace("-embeddings", ""), "far", *metrics)
    assert status == 2 and "is a file of moments; kid and p_value needs" in err.replace(
        "p_value and kid", "kid and p_value"
    )


def test_archives_and_arrays_score_as_their_folder(command, place, tmp_path):
    rows = json.loads(command("real", "near", "--json", "-")[1])["scores"]
    paths = sorted((place / "near").iterdir())
    with zipfile.ZipFile(tmp_path / "near.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    np.savez(tmp_path / "near.npz", arr_0=np.stack([np.asarray(Image.open(path)) for path in paths]))
    for name in ("near.zip", "near.npz"):
        (row,) = json.loads(command("real", str(tmp_path / name), "--json", "-")[1])["scores"]
        assert row["n_predictions"] == 25
        for key in ("cmmd", "cmmd_unbiased", "frechet_distance"):
            assert row[key] == pytest.approx(rows[0][key], rel=1e-9)


def test_a_column_names_what_is_meant_of_a_file(command, place, tmp_path):
    """ADM's reference batches hold statistics of the whole data set beside some of its images."""
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((place / "real").iterdir())])
    stats = str(tmp_path / "stats.npz")
    command("real", "--save_stats", stats, "--no_normalize")
    with np.load(stats) as file:
        arrays = {"mu": file["mu"], "sigma": file["sigma"], "mu_s": np.zeros(7), "sigma_s": np.eye(7)}
    adm = str(tmp_path / "adm.npz")
    np.savez(adm, arr_0=images[:20], **arrays)
    words = (adm, "near", "--metrics", "fd", "--json", "-", "--no_normalize")
    status, out, err = command(*words)
    assert status == 0 and "mean and covariance, beside 20 images as column arr_0; fd, and" in err
    (row,) = json.loads(out)["scores"]
    (direct,) = json.loads(command("real", *words[1:])[1])["scores"]
    assert row["frechet_distance"] == pytest.approx(direct["frechet_distance"], rel=1e-9)
    (row,) = json.loads(command(*words, "--references_column", "arr_0")[1])["scores"]
    assert row["n_references"] == 20 and row["notes"] == [note for note in row["notes"] if "trust" not in note]
    status, _, err = command(*words, "--references_column", "mu_s")
    assert status == 2 and "adm.npz has 7 dimensions, speaks.encode 6" in err
    status, _, err = command(*words, "--references_column", "sigma")
    assert status == 2 and "'sigma' is a covariance, and no embeddings; name its mean" in err
    status, _, err = command("real", str(tmp_path / "adm.npz"), *words[2:], "--save_moments")
    assert status == 2 and "reference_count" not in err and "has no number of images; moments are of images" in err
    status, _, err = command(*words, "--references_column", "mu_clip")
    assert status == 2 and "and not 'mu_clip'" in err
    status, _, err = command(*words, "--references_split", "train")
    assert status == 2 and "is a file of statistics and has no config, split or column" in err
    (tmp_path / "empty.zip").write_bytes(b"")
    status, _, err = command("real", str(tmp_path / "empty.zip"))
    assert status == 2 and "empty.zip: is no zip file, or damaged" in err
    status, _, err = command("real", str(tmp_path / "empty.zip"), "--predictions_split", "train")
    assert status == 2 and "is a file of images and has no config or split" in err


@pytest.mark.slow
def test_in_a_pipe(place, tmp_path):
    """Another process, whose standard output a parser reads; `True` is printed by the encoder, to standard error."""
    words = [sys.executable, str(ROOT / "scripts" / "evaluate_images.py"), "real", "near", "--json", "-", "--use_cpu"]
    words += ["--encoders", "speaks.py:encode", "--output_dir", str(tmp_path), "--fail_above", "cmmd=1e-9"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 1, done.stderr
    assert json.load(io.StringIO(done.stdout))["scores"][0]["cmmd"] > 1e-9
    assert "failed: cmmd of near" in done.stderr.splitlines()[-1]
