import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard

from hf_common.locks import LOCK
from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.noise.draw import make_noisy_labels
from hf_robust.noise.human import HUMAN_CONFIGS
from hf_robust.noise.labels import realised_matrix
from hf_robust.noisy_dataset.build import CONFIGS, build_noisy_cifar10
from hf_robust.noisy_dataset.figures import MATRICES_FIGURE, RATES_FIGURE
from hf_robust.noisy_dataset.form import TEST_FILE, TRAIN_FILE
from hf_robust.noisy_dataset.manifest import MANIFEST, UNFINISHED
from tests import ROOT

CIFAR10_DIR, CIFAR10N_FILE = os.environ.get("CIFAR10_DIR"), os.environ.get("CIFAR10N_FILE")
NUM_TRAIN, NUM_TEST = 157, 23
SMALL = ["clean", "symmetric_40"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def original(source):
    loaded = load_dataset(str(source))
    pixels = np.stack([np.asarray(image) for image in loaded["train"]["img"]])
    return {split: (image_bytes(loaded[split]), loaded[split]["label"][:]) for split in loaded}, pixels


@pytest.fixture(scope="module")
def human_file(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("human") / "human.parquet"
    pq.write_table(pa.table({name: labels.astype(np.int8) for name, labels in human_columns(source).items()}), path)
    return path


@pytest.fixture(scope="module")
def built(source, human_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "noisy"
    manifest = build_noisy_cifar10(str(source), folder, seed=3, human_labels=human_file)
    return folder, manifest


def encode(pixels, file_format):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format, lossless=True)
    return buffer.getvalue()


def rows(count, seed):
    # PNG and lossless WebP by turns, as a source may mix them.
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = rng.permutation(np.arange(count) % 10).tolist()
    images = [{"bytes": encode(p, "PNG" if i % 2 else "WEBP"), "path": None} for i, p in enumerate(pixels)]
    return {"img": images, "label": labels}


def write_source(folder, train=None, test=None, features=None):
    features = features or Features({"img": Image(), "label": ClassLabel(names=list(CIFAR10_CLASSES))})
    for split, content in {"train": train or rows(NUM_TRAIN, 0), "test": test or rows(NUM_TEST, 1)}.items():
        Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def source_labels(source, split="train"):
    return pq.read_table(source / f"{split}-00000-of-00001.parquet")["label"].to_numpy()


def image_bytes(dataset):
    return [row["bytes"] for row in dataset.with_format("arrow")[:]["img"].to_pylist()]


def human_columns(source):
    clean = source_labels(source)
    rng = np.random.default_rng(4)
    noisy = {
        name: np.where(rng.random(len(clean)) < 0.3, rng.integers(0, 10, len(clean)), clean) for name in HUMAN_CONFIGS
    }
    return {"clean": clean} | noisy


def tree(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --------------------------------------------------------------------------------------------------- what was written


@pytest.mark.parametrize("name", [*CONFIGS, *HUMAN_CONFIGS])
def test_every_config_loads_by_itself(built, source, original, name, tmp_path):
    folder, manifest = built
    loaded = load_dataset(str(folder), name, cache_dir=tmp_path)
    splits, pixels = original
    clean = source_labels(source)
    assert set(loaded) == {"train", "test"}
    for split in ("train", "test"):
        assert loaded[split].column_names == ["img", "label", "clean_label"]
        assert isinstance(loaded[split].features["img"], Image) and loaded[split].features["img"].decode
        assert (
            loaded[split].features["label"].names
            == loaded[split].features["clean_label"].names
            == list(CIFAR10_CLASSES)
        )
        assert (image_bytes(loaded[split]), loaded[split]["clean_label"][:]) == splits[split]
    assert loaded["test"]["label"][:] == splits["test"][1]
    assert loaded["train"][0]["img"].size == (32, 32)

    noisy = np.array(loaded["train"]["label"][:])
    if name in HUMAN_CONFIGS:
        expected = human_columns(source)[name]
    else:
        expected = make_noisy_labels(clean, name, num_classes=10, seed=3, images=pixels)
    np.testing.assert_array_equal(noisy, expected)
    assert manifest["configs"][name]["rate"] == np.mean(noisy != clean)
    np.testing.assert_array_equal(manifest["configs"][name]["matrix"], realised_matrix(clean, noisy, 10))


def test_table_of_configs():
    rates = {
        kind: [int(n.split("_")[1]) for n in CONFIGS if n.startswith(f"{kind}_")]
        for kind in ("symmetric", "asymmetric", "semantic", "instance")
    }
    assert CONFIGS[0] == "clean" and len(CONFIGS) == 19
    assert rates == {
        "symmetric": [20, 30, 40, 50, 60, 70, 80],
        "asymmetric": [10, 20, 30, 40],
        "semantic": [10, 20, 30, 40],
        "instance": [20, 40, 60],
    }


def test_clean_is_the_default(built):
    train = load_dataset(str(built[0]), split="train")
    assert train["label"][:] == train["clean_label"][:]


def test_files_of_the_folder(built):
    folder, manifest = built
    names = [*CONFIGS, *HUMAN_CONFIGS]
    assert list(manifest["configs"]) == names
    assert set(tree(folder)) == {
        "README.md",
        MANIFEST,
        RATES_FIGURE,
        MATRICES_FIGURE,
        f"test/{TEST_FILE}",
        *(f"{name}/{TRAIN_FILE}" for name in names),
    }
    assert json.loads((folder / MANIFEST).read_text()) == manifest


def test_parquet_layout(built):
    # Images first, in one row group, cut by content.
    for path in built[0].rglob("*.parquet"):
        metadata = pq.read_metadata(path)
        assert metadata.num_row_groups == 1
        group = metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        assert [c.path_in_schema for c in columns] == ["img.bytes", "img.path", "label", "clean_label"]
        assert [c.data_page_offset for c in columns] == sorted(c.data_page_offset for c in columns)
        assert json.loads(metadata.metadata[b"content_defined_chunking"])["max_chunk_size"] > 0


def test_card_metadata(built):
    folder, _ = built
    for name in ("clean", "instance_60", "human_worst"):
        info = load_dataset_builder(str(folder), name).info
        assert {split: info.splits[split].num_examples for split in info.splits} == {
            "train": NUM_TRAIN,
            "test": NUM_TEST,
        }
        files = [folder / name / TRAIN_FILE, folder / "test" / TEST_FILE]
        assert info.download_size == sum(path.stat().st_size for path in files)
        arrow_bytes = sum(pq.read_table(path).nbytes for path in files)  # but for the padding of buffers
        assert abs(info.dataset_size / arrow_bytes - 1) < 1e-3
        assert info.features["label"].names == list(CIFAR10_CLASSES)
    data = DatasetCard.load(folder / "README.md").data
    assert data.license == ["unknown", "cc-by-nc-4.0"]
    assert [c["config_name"] for c in data.configs if c.get("default")] == ["clean"]


def test_card_text(built, source):
    text = (built[0] / "README.md").read_text(encoding="utf-8")
    clean = source_labels(source)
    wrong = int((human_columns(source)["human_worst"] != clean).sum())
    assert f"| `human_worst` | {NUM_TRAIN} | {wrong} | {100 * wrong / NUM_TRAIN:.3f} |" in text
    assert text.count("| clean \\ noisy |") == len(CONFIGS) + len(HUMAN_CONFIGS)
    trucks = int((clean == 9).sum())
    stay = 100 - 100 * round(0.4 * trucks) / trucks
    matrix = text.split("\n`semantic_40`\n")[1].split("\n`")[0]
    assert f"| truck | 0.00 | {100 - stay:.2f} | {'0.00 | ' * 7}{stay:.2f} |" in matrix
    for word in ("seed 3", "`quota`", "CC BY-NC 4.0", "Krizhevsky", "ICML 2020", "NeurIPS 2020", "ICLR 2022"):
        assert word in text
    assert str(source.parent) not in text and "{" not in re.sub(r"```.*?```", "", text, flags=re.S)


def test_card_without_human_labels(source, tmp_path):
    build_noisy_cifar10(str(source), tmp_path, configs=["symmetric_12.5"], sampling="bernoulli")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "human" not in text and "BY-NC" not in text and "`bernoulli`" in text
    assert load_dataset(str(tmp_path))["train"].num_rows == NUM_TRAIN  # the only config is the default


def test_the_command_of_the_card_names_the_plugins(source, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_common.plugins._loaded", ["own_kinds"])
    manifest = build_noisy_cifar10(str(source), tmp_path, configs=["clean"])
    assert manifest["plugins"] == ["own_kinds"]
    assert "--plugins own_kinds" in (tmp_path / "README.md").read_text()


def test_same_seed_same_bytes_and_another_seed_not(built, source, tmp_path):
    folder, _ = built
    for name, seed in (("same", 3), ("other", 4)):
        build_noisy_cifar10(str(source), tmp_path / name, configs=SMALL, seed=seed)
    same, other, whole = (tree(path) for path in (tmp_path / "same", tmp_path / "other", folder))
    files = [f"clean/{TRAIN_FILE}", f"symmetric_40/{TRAIN_FILE}", f"test/{TEST_FILE}"]
    assert [same[name] == whole[name] for name in files] == [True] * 3
    assert [other[name] == whole[name] for name in files] == [True, False, True]


def test_rows_that_hold_only_a_path(source, built, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "source").mkdir()
    content = rows(NUM_TRAIN, 0)
    for i, image in enumerate(content["img"]):
        path = tmp_path / "files" / f"{i}.img"
        path.write_bytes(image["bytes"])
        content["img"][i] = {"bytes": None, "path": str(path)}
    write_source(tmp_path / "source", train=content)
    build_noisy_cifar10(str(tmp_path / "source"), tmp_path / "out", configs=["symmetric_40"], seed=3)
    (tmp_path / "files").rename(tmp_path / "gone")
    mine, reference = (load_dataset(str(folder), "symmetric_40")["train"] for folder in (tmp_path / "out", built[0]))
    assert image_bytes(mine) == image_bytes(reference)
    assert mine["label"][:] == reference["label"][:]
    assert str(tmp_path).encode() not in (tmp_path / "out" / "symmetric_40" / TRAIN_FILE).read_bytes()


# ----------------------------------------------------------------------------------------------- a second call, a kill


def test_second_call_adds_what_is_missing(source, built, human_file, tmp_path):
    first = build_noisy_cifar10(str(source), tmp_path, configs=["symmetric_40", "clean"], seed=3)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    names = ["clean", "human_worst", "symmetric_40.0", "semantic_33"]
    second = build_noisy_cifar10(str(source), tmp_path, configs=names, seed=3, human_labels=human_file)
    assert list(first["configs"]) == ["symmetric_40", "clean"]
    assert list(second["configs"]) == ["symmetric_40", "clean", "human_worst", "semantic_33"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert load_dataset(str(tmp_path), "semantic_33")["train"].num_rows == NUM_TRAIN
    again = build_noisy_cifar10(str(source), tmp_path, configs=names, seed=3, human_labels=human_file)
    assert again == second


def test_human_labels_of_two_files_are_not_mixed(source, human_file, tmp_path):
    build_noisy_cifar10(str(source), tmp_path / "noisy", configs=["human_worst"], seed=3, human_labels=human_file)
    before = tree(tmp_path / "noisy")
    columns = human_columns(source)
    columns["human_worst"] = columns["clean"]
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="human_worst from other labels.*other.parquet"):
        build_noisy_cifar10(str(source), tmp_path / "noisy", seed=3, human_labels=tmp_path / "other.parquet")
    assert tree(tmp_path / "noisy") == before


def test_a_foreign_manifest_is_left_alone(source, tmp_path):
    (tmp_path / MANIFEST).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="not a manifest of build_noisy_cifar10"):
        build_noisy_cifar10(str(source), tmp_path, configs=["clean"])
    assert (tmp_path / MANIFEST).read_text() == '{"mine": 1}'


# Runs builds into <folder>/1, <folder>/2, ...: the n-th is killed right before its n-th rename, where a rename is what
# makes a step visible. It forks, so that the imports are paid once. The last child outlives all of its renames.
KILLED_AT_EVERY_STEP = """
import os, signal, sys
from hf_robust.noisy_dataset.build import build_noisy_cifar10

source, folder, *configs = sys.argv[1:]
renames = {name: getattr(os, name) for name in ("rename", "replace")}

def kill_at(step):
    left = [step]
    def counted(real):
        def wrapper(old, new):
            if str(new).startswith(folder):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(old, new)
        return wrapper
    for name, real in renames.items():
        setattr(os, name, counted(real))

step, status = 0, None
while status != 0:
    step += 1
    child = os.fork()
    if child == 0:
        kill_at(step)
        build_noisy_cifar10(source, f"{folder}/{step}", configs=configs, seed=3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
print(step - 1)
"""


def check_valid(folder):
    # Everything that the card names loads; nothing else is asked of a folder without card.
    if not (folder / "README.md").exists():
        return []
    names = [config["config_name"] for config in DatasetCard.load(folder / "README.md").data.configs]
    for name in names:
        assert load_dataset(str(folder), name)["train"].num_rows == NUM_TRAIN
    return names


@pytest.mark.parametrize(
    ("building", "message"),
    [
        ("../victim", "must name a file or folder beside it"),
        ("{victim}", "must name a file or folder beside it"),
        (".", "must name a file or folder beside it"),
        (["symmetric_40"], "must be str"),
        ("clean", "being built, which is finished"),
        ("test", "being built, which is finished"),
        ("figures", "no config of such a data set"),
        ("symmetric_40.0", "no config of such a data set"),
    ],
)
def test_a_manifest_of_others_names_nothing_to_delete(source, tmp_path, building, message):
    victim, folder = tmp_path / "victim", tmp_path / "data"
    victim.mkdir()
    (victim / "photo.png").write_text("mine")
    build_noisy_cifar10(str(source), folder, configs=["clean"])
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    building = building.format(victim=victim) if isinstance(building, str) else building
    path.write_text(json.dumps(manifest | {"building": building}))
    before = tree(folder)
    with pytest.raises(ValueError, match=message) as caught:
        build_noisy_cifar10(str(source), folder, configs=["symmetric_40"])
    assert str(path) in str(caught.value)
    assert (victim / "photo.png").read_text() == "mine" and tree(folder) == before
    path.write_text(json.dumps(manifest | {"configs": {"../victim": manifest["configs"]["clean"]}}))
    with pytest.raises(ValueError, match="must name a file or folder beside it"):
        build_noisy_cifar10(str(source), folder, configs=["symmetric_40"])
    path.write_text(json.dumps(manifest | {"building": "symmetric_40"}))  # as a kill leaves it
    rebuilt = build_noisy_cifar10(str(source), folder, configs=["symmetric_40"])
    assert list(rebuilt["configs"]) == ["clean", "symmetric_40"]


def test_killed_at_every_step(source, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(source), str(folder)]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([*command, *SMALL], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout.split()[-1])
    # Manifest; then test and configs: announce, rename, record, card; two pictures.
    assert steps == 1 + 3 + 4 * len(SMALL) + 2
    complete = tree(folder / str(steps + 1))

    found = []
    for step in range(1, steps + 1):
        killed = folder / str(step)
        found.append(len(check_valid(killed)))
        build_noisy_cifar10(str(source), killed, configs=SMALL, seed=3)
        assert tree(killed) == complete
    assert found == sorted(found) and found[0] == 0 and found[-4:] == [len(SMALL) - 1] * 2 + [len(SMALL)] * 2


def test_script(source, human_file, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "noisy"
    arguments = ["--source", source, "--output_dir", folder, "--human_labels", human_file, "--seed", 3]
    arguments += ["--sampling", "bernoulli", "--configs", "clean", "symmetric_40", "human_worst"]
    script = ROOT / "scripts" / "make_noisy_cifar10.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["seed"], manifest["sampling"]) == (3, "bernoulli")
    _, *table, last = printed.out.splitlines()
    expected = [
        [name, str(NUM_TRAIN), f"{entry['rate']:.3%}", f"{(folder / name / TRAIN_FILE).stat().st_size / 1e6:.1f}"]
        for name, entry in manifest["configs"].items()
    ]
    assert [line.split() for line in table] == expected and len(expected) == 3
    assert last == f"3 configs in {folder}"
    assert "configs: 100%" in printed.err  # the progress bar


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (
            ValueError,
            r"configs: cannot build 'symetric_40'.*clean, symmetric_20",
            {"configs": ["clean", "symetric_40"]},
        ),
        (ValueError, r"configs: cannot build 'symmetric_101'.*0\.\.100", {"configs": ["symmetric_101"]}),
        (ValueError, "'human_worst' needs human_labels", {"configs": ["human_worst"]}),
        (ValueError, "configs: expected at least one", {"configs": []}),
        (TypeError, "configs: expected a sequence of names, got 'clean'", {"configs": "clean"}),
        (ValueError, "seed: expected an int >= 0, got -1", {"seed": -1}),
        (ValueError, "sampling: unknown 'exact'; allowed are quota, bernoulli", {"sampling": "exact"}),
        (ValueError, "human_labels: there is no file", {"human_labels": "nowhere.pt"}),
        (ValueError, r"human_labels: expected a \.parquet or \.pt file", {"human_labels": "labels.csv"}),
    ],
)
def test_bad_arguments_are_told_before_the_source_is_read(error, match, arguments, tmp_path):
    with pytest.raises(error, match=match):
        build_noisy_cifar10("no/such-source", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def one_row(data, label=0):
    return {"img": [data and {"bytes": data, "path": None}], "label": [label]}


def appended(content, row):
    return {key: content[key] + row[key] for key in content}


def truncated():
    # A good header: only decoding the pixels, which instance noise needs, finds out.
    content = rows(12, 0)
    content["img"][7]["bytes"] = content["img"][7]["bytes"][:1000]
    return content


OBLONG = encode(np.zeros((31, 32, 3), np.uint8), "PNG")
RIGHT = encode(np.zeros((32, 32, 3), np.uint8), "WEBP")


@pytest.mark.parametrize(
    ("match", "parts"),
    [
        ("image 31 of split 'train' is 32x31, expected 32x32", {"train": appended(rows(31, 0), one_row(OBLONG))}),
        ("image 0 of split 'test' is not an image", {"test": one_row(b"no image")}),
        ("image 2 of split 'train' is missing", {"train": appended(rows(2, 0), one_row(None))}),
        ("'label' of split 'train': .* got -1 at position 2", {"train": appended(rows(2, 0), one_row(RIGHT, -1))}),
        ("image 7 of split 'train' cannot be read as an image", {"train": truncated()}),
        ("must have exactly the columns img .*'picture'", {"rename": {"img": "picture"}}),
        ("must have exactly the columns .*'extra'", {"extra": True}),
        (r"must have exactly the columns .*Value\('int64'\)", {"label": Value("int64")}),
        (r"of 10 names\), it has .*'a', 'b'", {"label": ClassLabel(names=["a", "b"])}),
        (
            r"noise='semantic_\d+' is defined on the classes \['airplane'",
            {"label": ClassLabel(names=list("abcdefghij"))},
        ),
    ],
)
def test_bad_sources(match, parts, tmp_path):
    (tmp_path / "source").mkdir()
    train, test = parts.get("train", rows(20, 0)), parts.get("test", rows(3, 1))
    features = {"img": Image(), "label": parts.get("label", ClassLabel(names=list(CIFAR10_CLASSES)))}
    if parts.get("label") == ClassLabel(names=["a", "b"]):
        train, test = (content | {"label": [i % 2 for i in content["label"]]} for content in (train, test))
    if "extra" in parts:
        features["extra"] = Value("int64")
        train, test = (content | {"extra": content["label"]} for content in (train, test))
    names = parts.get("rename", {})
    train, test = ({names.get(key, key): value for key, value in content.items()} for content in (train, test))
    features = {names.get(key, key): value for key, value in features.items()}
    write_source(tmp_path / "source", train, test, Features(features))
    with pytest.raises(ValueError, match=match):
        build_noisy_cifar10(str(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_source_without_test_split(source, tmp_path):
    (tmp_path / "train.parquet").write_bytes((source / "train-00000-of-00001.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"splits train and test, it has \['train'\]"):
        build_noisy_cifar10(str(tmp_path), tmp_path / "out")


def test_other_class_names_do_without_semantic_noise(tmp_path):
    (tmp_path / "source").mkdir()
    names = [f"class {i}" for i in range(10)]
    write_source(tmp_path / "source", features=Features({"img": Image(), "label": ClassLabel(names=names)}))
    build_noisy_cifar10(str(tmp_path / "source"), tmp_path / "out", configs=["asymmetric_40"])
    assert load_dataset(str(tmp_path / "out"), "asymmetric_40")["train"].features["label"].names == names


def test_folders_that_hold_something_else_are_left_alone(source, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"output_dir: .*notes\.txt.*no {MANIFEST}"):
        build_noisy_cifar10(str(source), tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        build_noisy_cifar10(str(source), tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="output_dir"):
        build_noisy_cifar10(str(source), source)  # the source itself
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_folder_of_a_config_that_is_not_ours_is_left_alone(source, tmp_path):
    build_noisy_cifar10(str(source), tmp_path, configs=["clean"])
    (tmp_path / "symmetric_35").mkdir()
    (tmp_path / "symmetric_35" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"output_dir: .*\['symmetric_35'\]"):
            build_noisy_cifar10(str(source), tmp_path, configs=["symmetric_40", "symmetric_35"])
        assert tree(tmp_path) == before


def test_folders_built_otherwise_are_left_alone(source, tmp_path):
    out = tmp_path / "out"
    build_noisy_cifar10(str(source), out, configs=["clean"], seed=3)
    (out / f"{UNFINISHED}clean").mkdir()
    (out / f"{UNFINISHED}clean" / "part").write_bytes(b"half")
    before = tree(out)
    (tmp_path / "other").mkdir()
    content = rows(NUM_TRAIN, 0)
    content["label"][:2] = content["label"][1::-1]
    assert content["label"][0] != content["label"][1]
    write_source(tmp_path / "other", train=content)
    for match, where, arguments in (
        ("seed: .* was built with 3, this call has 4", source, {"seed": 4}),
        ("sampling: .* was built with 'quota', .* 'bernoulli'", source, {"seed": 3, "sampling": "bernoulli"}),
        ("source_fingerprint: ", tmp_path / "other", {"seed": 3}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            build_noisy_cifar10(str(where), out, configs=["symmetric_40"], **arguments)
        assert tree(out) == before
    (out / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match=f"{MANIFEST}: is no JSON"):
        build_noisy_cifar10(str(source), out, configs=["symmetric_40"], seed=3)


# ------------------------------------------------------------------------------------------------------- human labels


def published(source):
    # The dict of CIFAR-10_human.pt.
    columns = human_columns(source)
    return {"clean_label": columns["clean"], **{key: columns[name] for name, key in HUMAN_CONFIGS.items()}}


def test_both_human_files_give_the_same_data_set(source, human_file, built, tmp_path):
    torch.save(published(source), tmp_path / "human.pt")
    names = ["human_random2", "human_worst"]
    build_noisy_cifar10(str(source), tmp_path / "out", configs=names, seed=3, human_labels=tmp_path / "human.pt")
    for name in names:
        file = Path(name) / TRAIN_FILE
        assert (tmp_path / "out" / file).read_bytes() == (built[0] / file).read_bytes()


def test_human_labels_in_another_order(source, tmp_path):
    columns = human_columns(source)
    order = np.arange(NUM_TRAIN)
    clean = columns["clean"]
    second = next(i for i in range(100, NUM_TRAIN) if clean[i] != clean[7])
    order[[7, second]] = second, 7
    pq.write_table(pa.table({name: labels[order] for name, labels in columns.items()}), tmp_path / "human.parquet")
    expected = f"first difference is at 7 (file {clean[second]}, source {clean[7]}), 2 of {NUM_TRAIN} differ"
    with pytest.raises(ValueError, match=re.escape(expected)):
        build_noisy_cifar10(str(source), tmp_path / "out", human_labels=tmp_path / "human.parquet")
    pq.write_table(pa.table({name: labels[:-1] for name, labels in columns.items()}), tmp_path / "human.parquet")
    with pytest.raises(ValueError, match=f"has {NUM_TRAIN - 1} rows, the source's train split {NUM_TRAIN}"):
        build_noisy_cifar10(str(source), tmp_path / "out", human_labels=tmp_path / "human.parquet")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.data
@pytest.mark.skipif(not (CIFAR10_DIR and CIFAR10N_FILE), reason="CIFAR10_DIR and CIFAR10N_FILE name no real data")
def test_real_data(tmp_path):
    names = ["clean", "semantic_40", "human_worst"]
    manifest = build_noisy_cifar10(CIFAR10_DIR, tmp_path, configs=names, human_labels=CIFAR10N_FILE)
    original = load_dataset(CIFAR10_DIR)
    semantic, human = (load_dataset(str(tmp_path), name) for name in names[1:])
    for split, count in (("train", 50_000), ("test", 10_000)):
        assert semantic[split].num_rows == count
        assert image_bytes(semantic[split]) == image_bytes(original[split])
        assert semantic[split]["clean_label"][:] == original[split]["label"][:]
    clean, noisy = (np.array(semantic["train"][column][:]) for column in ("clean_label", "label"))
    flips = [int((noisy[clean == c] != c).sum()) for c in range(10)]
    assert flips == [0, 0, 2000, 2000, 2000, 2000, 0, 0, 0, 2000]
    # CIFAR-10N's own figures: 40.208 % wrong, and the diagonal of its matrix.
    assert manifest["configs"]["human_worst"]["rate"] == 0.40208
    diagonal = np.diag(manifest["configs"]["human_worst"]["matrix"])
    np.testing.assert_allclose(
        diagonal, [0.65, 0.592, 0.632, 0.487, 0.488, 0.58, 0.594, 0.722, 0.683, 0.551], rtol=0, atol=6e-4
    )
    assert (np.array(human["train"]["label"][:]) != clean).sum() == 20_104
