import json
import runpy
import sys

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.noisy_dataset.build import build_noisy_cifar10
from hf_robust.noisy_dataset.chunk_reuse import chunk_reuse
from hf_robust.noisy_dataset.form import TRAIN_FILE
from hf_robust.noisy_dataset.manifest import MANIFEST, MANIFEST_KEYS
from tests import ROOT


@pytest.fixture
def crafted(tmp_path):
    # Files whose reuse is known: a copy, a changed tail, an inserted byte, something new, one block again and again.
    rng = np.random.default_rng(0)
    base, new = rng.bytes(300_001), rng.bytes(123_457)
    files = {
        "base": base,
        "copy": base,
        "tail": base[:-1000] + rng.bytes(1000),
        "inserted": base[:150_000] + b"x" + base[150_000:],
        "new": new,
        "zeros": bytes(1_000_000),
        "both": base + new,
    }
    for name, data in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / TRAIN_FILE).write_bytes(data)
    sizes = {"num_examples": 1, "num_bytes": 1, "file_bytes": 1}
    entry = sizes | {"rate": 0.0, "matrix": np.eye(len(CIFAR10_CLASSES)).tolist()}
    said = {"source": "somewhere", "source_fingerprint": "", "seed": 0, "sampling": "quota", "test": sizes}
    said |= {
        "repo_id": None,
        "class_names": list(CIFAR10_CLASSES),
        "versions": {"hf_robust": "0.2.0"},
        "configs": dict.fromkeys(files, entry),
    }
    assert said.keys() == MANIFEST_KEYS
    (tmp_path / MANIFEST).write_text(json.dumps(said))
    return tmp_path, files


def test_reuse_of_known_files(crafted):
    folder, files = crafted
    average, longest = 1024, 2048
    rows = {row["config"]: row for row in chunk_reuse(folder, average)}
    assert list(rows) == list(files)
    for name, row in rows.items():
        assert row["bytes"] == len(files[name])
        assert row["percent"] == 100 * row["new_bytes"] / row["bytes"]
    assert rows["base"]["new_bytes"] == 300_001
    assert rows["copy"]["new_bytes"] == 0
    assert 1000 <= rows["tail"]["new_bytes"] <= 1000 + longest
    # The cuts fall in step again some chunks after the insertion: content decides them, not the position.
    assert 0 < rows["inserted"]["new_bytes"] <= 10 * longest
    assert rows["new"]["new_bytes"] == 123_457
    assert rows["zeros"]["new_bytes"] <= 2 * longest
    # The seam: base's last chunk goes on into new's, until the cuts agree.
    assert 0 < rows["both"]["new_bytes"] <= 10 * longest


def test_configs_of_one_build_share_their_images(tmp_path):
    rng = np.random.default_rng(0)
    count = 1201
    images = [PIL.Image.fromarray(p) for p in rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)]
    features = Features({"img": Image(), "label": ClassLabel(names=list(CIFAR10_CLASSES))})
    content = {"img": images, "label": rng.integers(0, 10, count).tolist()}
    for split in ("train", "test"):
        (tmp_path / "source").mkdir(exist_ok=True)
        Dataset.from_dict(content, features=features).to_parquet(tmp_path / "source" / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        names = ["clean", "symmetric_80", "asymmetric_40", "instance_20"]
        build_noisy_cifar10(str(tmp_path / "source"), tmp_path / "out", configs=names)
    first, *others = chunk_reuse(tmp_path / "out", average=4096)
    assert first["percent"] == 100 and first["bytes"] > 3072 * count
    # Whatever the labels, they and the footer fill a few chunks at the end of a file.
    assert len(others) == 3 and max(row["percent"] for row in others) < 1


def test_script_prints_and_writes(crafted, monkeypatch, capsys):
    folder, files = crafted
    script = ROOT / "scripts" / "report_chunk_reuse.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(folder), "--avg", "2048", "--json", str(folder / "reuse.json")])
    runpy.run_path(str(script), run_name="__main__")
    written = json.loads((folder / "reuse.json").read_text())
    assert written["average"] == 2048 and written["configs"] == chunk_reuse(folder, 2048)
    assert written["bytes"] == sum(map(len, files.values()))
    assert written["new_bytes"] == sum(row["new_bytes"] for row in written["configs"])
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in table] == ["config", *files, "all"]
    assert table[2] == ["copy", "300001", "0", "0.000%"]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [MANIFEST, "reuse.json"]


def test_bad_input(crafted, tmp_path_factory, monkeypatch):
    folder, _ = crafted
    for average in (511, 2**28 + 1):
        with pytest.raises(ValueError, match=rf"average: expected bytes in 512\.\.268435456, got {average}"):
            chunk_reuse(folder, average)
    with pytest.raises(ValueError, match=f"has no {MANIFEST}"):
        chunk_reuse(tmp_path_factory.mktemp("empty"))
    monkeypatch.setitem(sys.modules, "fastcdc", None)
    with pytest.raises(ImportError, match="pip install fastcdc"):
        chunk_reuse(folder)


def test_both_ends_of_the_average(crafted):
    folder, files = crafted
    finest, coarsest = chunk_reuse(folder, 512), chunk_reuse(folder, 2**28)
    assert [row["bytes"] for row in finest] == [row["bytes"] for row in coarsest] == [len(f) for f in files.values()]
    # One chunk per file: only the copy is the same.
    assert [row["config"] for row in coarsest if row["new_bytes"] == 0] == ["copy"]
    assert sum(row["new_bytes"] for row in finest) < sum(row["new_bytes"] for row in coarsest)
