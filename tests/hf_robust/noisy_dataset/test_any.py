import csv
import dataclasses
import io
import json
import re
import runpy
import shutil
import sys

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
from hf_robust import load_image_splits
from hf_robust.data.text import load_text_splits
from hf_robust.noise import ClassNoise, matrix_to
from hf_robust.noise.cifar100 import CIFAR100_CLASSES, SUPERCLASSES
from hf_robust.noise.draw import make_noisy_labels, transition_matrix
from hf_robust.noise.kinds import KINDS
from hf_robust.noise.semantic import MNIST_TARGETS
from hf_robust.noise.superclass import ring_targets
from hf_robust.noisy_dataset.any_source import Reading
from hf_robust.noisy_dataset.build import build_noisy_dataset
from hf_robust.noisy_dataset.card import dataset_card
from hf_robust.noisy_dataset.hub import publish_noisy_dataset
from tests import ROOT

REPO = "user/noisy-photos"
PER_CLASS = 8  # of the hundred classes
ANIMALS = ["cat", "dog", "test_tube", "train_station"]  # of which two begin with the name of a split


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def encode(pixels, file_format="PNG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders without splits, of several sizes and formats, unequal numbers."""
    folder, draw = tmp_path_factory.mktemp("photos") / "photos", np.random.default_rng(0)
    for place, name in enumerate(ANIMALS):
        (folder / name).mkdir(parents=True)
        for number in range(20 + 7 * place):
            height, width = draw.integers(8, 40, 2)
            kind = ("png", "jpeg")[number % 2]
            data = encode(draw.integers(0, 256, (height, width, 3), dtype=np.uint8), kind)
            (folder / name / f"{number}.{kind}").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """What CIFAR-100 looks like, smaller: img, fine_label, coarse_label, splits train and test."""
    folder, draw = tmp_path_factory.mktemp("hundred") / "cifar100", np.random.default_rng(1)
    folder.mkdir()
    features = Features(
        {
            "img": Image(),
            "fine_label": ClassLabel(names=list(CIFAR100_CLASSES)),
            "coarse_label": ClassLabel(names=[f"group {i}" for i in range(20)]),
        }
    )
    for split, count in (("train", 100 * PER_CLASS), ("test", 200)):
        fine = draw.permutation(np.arange(count) % 100)
        images = [encode(pixels) for pixels in draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)]
        content = {
            "img": [{"bytes": data, "path": None} for data in images],
            "fine_label": fine,
            "coarse_label": np.array(SUPERCLASSES)[fine],
        }
        Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path, draw = tmp_path_factory.mktemp("reviews") / "reviews.csv", np.random.default_rng(2)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "text", "mood"])
        for number in range(90):
            writer.writerow(
                [f"review {number}", " ".join(draw.choice(["good", "bad", "so, so"], 5)), "bgm"[number % 3]]
            )
    return path


def stored(rows, column="image"):
    return [row["bytes"] for row in rows.with_format("arrow")[:][column].to_pylist()]


def tree(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(monkeypatch, **flags):
    words = []
    for name, value in flags.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    script = ROOT / "scripts" / "make_noisy_dataset.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words, "--debug"])
    runpy.run_path(str(script), run_name="__main__")


# --------------------------------------------------------------------------------------------------------- photographs


def test_class_folders_keep_every_file_and_class(photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command(
        monkeypatch,
        source=photos,
        output_dir=out,
        configs=["clean", "symmetric_40"],
        validation_split=0.25,
        max_shard_size="5KB",
    )
    assert re.search(r"symmetric_40 +91 +39\.560%", capsys.readouterr().out)  # 36 of 91
    clean, noisy = (load_dataset(str(out), name) for name in ("clean", "symmetric_40"))
    assert noisy["train"].column_names == ["image", "label", "clean_label"]
    assert noisy["train"].features["label"].names == ANIMALS
    assert {split: len(noisy[split]) for split in noisy} == {"train": 91, "test": 31}
    assert stored(noisy["train"]) == stored(clean["train"]) and stored(noisy["test"]) == stored(clean["test"])
    files = {path.read_bytes(): path.parent.name for path in photos.rglob("*.*")}
    found = [(data, noisy[split][i]["clean_label"]) for split in noisy for i, data in enumerate(stored(noisy[split]))]
    assert {data: ANIMALS[label] for data, label in found} == files and len(found) == len(files)
    expected = make_noisy_labels(clean["train"]["label"][:], "symmetric_40", num_classes=4)
    assert noisy["train"]["label"][:] == expected.tolist()
    assert noisy["test"]["label"][:] == noisy["test"]["clean_label"][:]
    # Of each class a quarter was held out.
    assert np.bincount(noisy["test"]["label"][:]).tolist() == [5, 7, 9, 10]
    assert str(photos.parent).encode() not in b"".join(tree(out).values())


def test_shards_are_those_that_the_card_names_and_equal_one_file(photos, tmp_path):
    how = Reading(validation_split=0.25)
    build_noisy_dataset(str(photos), tmp_path / "one", configs=["symmetric_40"], reading=how)
    manifest = build_noisy_dataset(
        str(photos), tmp_path / "many", configs=["symmetric_40"], reading=how, max_shard_size=20_000
    )
    count = manifest["configs"]["symmetric_40"]["num_files"]
    names = [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    assert count > 3 and sorted(path.name for path in (tmp_path / "many" / "symmetric_40").iterdir()) == names
    one, many = (load_dataset(str(tmp_path / name), "symmetric_40") for name in ("one", "many"))
    for split in ("train", "test"):
        assert stored(one[split]) == stored(many[split])
        assert one[split].remove_columns("image")[:] == many[split].remove_columns("image")[:]
    sizes = [pq.read_metadata(tmp_path / "many" / "symmetric_40" / name) for name in names]
    assert {size.num_row_groups for size in sizes} == {1} and max(s.num_rows for s in sizes) <= 91 / count + 1
    builder = load_dataset_builder(str(tmp_path / "many"), "symmetric_40")
    assert builder.info.splits["train"].num_examples == 91
    streamed = load_dataset(str(tmp_path / "many"), "symmetric_40", split="train", streaming=True)
    assert [row["label"] for row in streamed] == one["train"]["label"][:]


def test_a_second_call_adds_and_refuses_what_is_other(photos, tmp_path):
    how = Reading(validation_split=0.25)
    first = build_noisy_dataset(str(photos), tmp_path, configs=["symmetric_40"], reading=how)
    second = build_noisy_dataset(str(photos), tmp_path, configs=["clean", "symmetric_40.0"], reading=how)
    assert list(second["configs"]) == ["symmetric_40", "clean"]
    assert second["configs"]["symmetric_40"] == first["configs"]["symmetric_40"]
    before = tree(tmp_path)
    for match, changed in (
        ("seed: ", {"seed": 1}),
        ("sampling: ", {"sampling": "bernoulli"}),
        ("source_fingerprint: ", {"reading": Reading(validation_split=0.5)}),
        ("configs: expected at least one", {"configs": []}),
        ("max_shard_size: expected", {"max_shard_size": 0}),
        ("max_shard_size: .* was built with 100000000, this call has 5000", {"max_shard_size": "5KB"}),
        ("noise='semantic_40' is defined on the classes .*; give --semantic_map MAP", {"configs": ["semantic_40"]}),
        ("noise='superclass_40' is defined on .*; give --superclass_column NAME", {"configs": ["superclass_40"]}),
        ("block5_40 needs a multiple of 5 classes, got 4", {"configs": ["block5_40"]}),
        ("instance noise needs images of one size", {"configs": ["instance_40"]}),
        ("cannot build 'human_worst'", {"configs": ["human_worst"]}),
        ("semantic_map: it is of semantic_RR, which is none", {"semantic_map": "mnist"}),
    ):
        with pytest.raises(ValueError, match=match):
            build_noisy_dataset(str(photos), tmp_path, **{"configs": ["symmetric_20"], "reading": how} | changed)
    assert tree(tmp_path) == before


def test_an_own_map_and_an_own_matrix(photos, tmp_path, monkeypatch):
    (tmp_path / "map.json").write_text('{"cat": "dog", "dog": 0, "3": "test_tube"}')
    matrix = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    np.save(tmp_path / "T.npy", matrix)
    out = tmp_path / "out"
    flags = {"source": photos, "output_dir": out, "test_split": "none", "semantic_map": tmp_path / "map.json"}
    command(monkeypatch, configs=["semantic_50", f"matrix:{tmp_path}/T.npy"], **flags)
    semantic = load_dataset(str(out), "semantic_50")
    assert list(semantic) == ["train"]
    clean = semantic["train"]["clean_label"][:]
    targets = {0: 1, 1: 0, 3: 2}
    expected = make_noisy_labels(clean, "semantic_50", num_classes=4, targets=targets)
    assert semantic["train"]["label"][:] == expected.tolist()
    flips = [(c, n) for c, n in zip(clean, expected, strict=True) if c != n]
    assert set(flips) == {(0, 1), (1, 0), (3, 2)} and len(flips) == round((20 + 27 + 41) / 2)
    manifest = json.loads((out / "noisy_dataset.json").read_text())
    name = next(name for name in manifest["configs"] if name.startswith("matrix_"))
    assert load_dataset(str(out), name)["train"].num_rows == len(clean)
    np.testing.assert_allclose(manifest["configs"][name]["matrix"], matrix, atol=0.05)
    card = (out / "README.md").read_text()
    assert "RR percent go of cat to dog, of dog to cat and of train_station to test_tube. The other 1 class" in card
    assert "`matrix_*`: each label is drawn" in card
    before = tree(out)
    (tmp_path / "map.json").write_text('{"cat": "test_tube"}')
    with pytest.raises(ValueError, match="has semantic noise by another map"):
        command(monkeypatch, configs=["semantic_20"], **flags)
    for content, message in (
        ('{"cow": "dog"}', 'there is no class "cow"'),
        ('{"cat": "cat"}', "class 0 is its own target"),
        ('{"cat": 4}', 'there is no class "4"'),
        ("{}", "must hold an object of class to class"),
        ('{"cat": ["dog"]}', "must hold an object of class to class"),
    ):
        (tmp_path / "map.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            command(monkeypatch, configs=["semantic_20"], **flags)
    assert tree(out) == before


def test_what_is_no_such_data_set_is_said_at_once(photos, tmp_path, monkeypatch):
    features = Features({"image": Image(), "label": Value("float32")})
    rows = {"image": [{"bytes": encode(np.zeros((4, 4, 3), np.uint8)), "path": None}] * 4, "label": [0.5, 1, 0, 1]}

    def parquet(name, content, kinds):
        Dataset.from_dict(content, features=kinds).to_parquet(tmp_path / name)
        return str(tmp_path / name)

    named = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    whole = {**rows, "label": [0, 1, 0, 1]}
    both = Features({**named, "labels": Value("int64")})
    broken = {**whole, "image": [*rows["image"][:3], {"bytes": b"no image", "path": None}]}
    for match, source in (
        ("must hold classes, whole numbers or text", parquet("float.parquet", rows, features)),
        ("both 'label' and 'labels'", parquet("both.parquet", {**whole, "labels": [0, 1, 0, 1]}, both)),
        ("image 3 of split 'train' is not an image", parquet("broken.parquet", broken, named)),
        ("has 1 rows without a label", parquet("none.parquet", {**whole, "label": [0, None, 0, 1]}, named)),
        ("there is no folder", str(tmp_path / "missing" / "photos" / "here")),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            build_noisy_dataset(source, tmp_path / "out", configs=["symmetric_50"], reading=Reading(test_split=None))
    noisy = Features({**named, "clean_label": ClassLabel(names=["a", "b"])})
    twice = parquet("noisy.parquet", {**whole, "clean_label": [0, 1, 0, 1]}, noisy)
    with pytest.raises(ValueError, match="labels beside a clean_label are noisy already"):
        build_noisy_dataset(twice, tmp_path / "out", configs=["clean"], reading=Reading(test_split=None))
    with pytest.raises(ValueError, match="no split 'test'.*validation_split=0.1"):
        build_noisy_dataset(str(photos), tmp_path / "out", configs=["clean"])
    assert not (tmp_path / "out").exists()
    kept = Reading(test_split=None, columns=["image"], label_column="clean_label")
    build_noisy_dataset(twice, tmp_path / "out", configs=["clean"], reading=kept)
    assert load_dataset(str(tmp_path / "out"))["train"].column_names == ["image", "label", "clean_label"]


def test_a_file_that_cannot_be_read_is_named_and_may_be_left_out(photos, tmp_path):
    source, how = tmp_path / "photos", Reading(test_split=None)
    shutil.copytree(photos, source)
    (source / "dog" / "3.jpeg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image \d+ of split 'train' \(.*photos/dog/3\.jpeg\) is not an image"):
        build_noisy_dataset(str(source), tmp_path / "out", configs=["clean"], reading=how)
    build_noisy_dataset(
        str(source), tmp_path / "out", configs=["clean"], reading=dataclasses.replace(how, skip_corrupt=True)
    )
    assert len(load_dataset(str(tmp_path / "out"), "clean")["train"]) == 121
    assert "--skip_corrupt --seed" in " ".join((tmp_path / "out" / "README.md").read_text().split(" \\\n    "))
    with pytest.raises(ValueError, match="skip_corrupt=True is of images"):
        Reading(text_columns=["text"], skip_corrupt=True)


@pytest.mark.parametrize(
    ("config", "hint"), [("superclass_20", "--superclass_column NAME"), ("semantic_20", "--semantic_map MAP")]
)
def test_noise_that_is_not_of_these_classes_is_said_before_rows_are_read(photos, tmp_path, monkeypatch, config, hint):
    monkeypatch.setattr("hf_robust.noisy_dataset.any_source.make_source", lambda *_: pytest.fail("rows are read"))
    with pytest.raises(ValueError, match=f"is defined on the .*; give {hint}$"):
        build_noisy_dataset(str(photos), tmp_path / "out", configs=[config], reading=Reading(test_split=None))


# -------------------------------------------------------------------------------------------------------- 100 classes


def test_a_hundred_classes_built_loaded_and_pushed(hub, hundred, tmp_path, monkeypatch):
    matrix = np.eye(100) * 0.7 + 0.3 / 100
    np.save(tmp_path / "T.npy", matrix)
    clean = pq.read_table(hundred / "train-00000-of-00001.parquet")["fine_label"].to_numpy()
    human = np.where(np.arange(len(clean)) % 5 < 2, (clean + 1) % 100, clean)
    coarse = np.array(SUPERCLASSES)
    torch.save(
        {
            "clean_label": clean,
            "noisy_label": human,
            "noisy_coarse_label": coarse[human],
            "clean_coarse_label": coarse[clean],
        },
        tmp_path / "CIFAR-100_human.pt",
    )
    out = tmp_path / "out"
    configs = ["clean", "superclass_20", "block5_20", f"matrix:{tmp_path}/T.npy", "human_fine", "instance_40"]
    command(
        monkeypatch,
        source=hundred,
        label_column_name="fine_label",
        human_labels=tmp_path / "CIFAR-100_human.pt",
        output_dir=out,
        configs=configs,
        push_to_hub=REPO,
    )
    manifest = json.loads((out / "noisy_dataset.json").read_text())
    names = list(manifest["configs"])
    assert names[:3] == ["clean", "superclass_20", "block5_20"] and names[4:] == ["human_fine", "instance_40"]
    for name in names:
        here, there = load_dataset(str(out), name), load_dataset(REPO, name)
        for split in ("train", "test"):
            assert here[split].column_names == ["img", "coarse_label", "label", "clean_label"]
            assert there[split].features == here[split].features
            assert there[split].with_format("arrow")[:] == here[split].with_format("arrow")[:]
        assert here["train"]["clean_label"][:] == clean.tolist()
        assert here["test"]["label"][:] == here["test"]["clean_label"][:]
    ring = np.array(load_dataset(REPO, "superclass_20")["train"]["label"][:])
    assert np.array_equal(coarse[ring], coarse[clean])  # no superclass is wrong
    assert (ring != clean).sum() == 160 and manifest["configs"]["superclass_20"]["rate"] == 0.2
    assert load_dataset(REPO, "human_fine")["train"]["label"][:] == human.tolist()
    by_matrix = np.array(load_dataset(REPO, names[3])["train"]["label"][:])
    kept = np.bincount(clean[by_matrix == clean], minlength=100)
    assert set(kept) == {5, 6} and kept.sum() == 562  # 0.703 of 8 each, and of all
    card = DatasetCard.load(REPO)
    card.validate()
    assert f'load_dataset("{REPO}", "superclass_20")' in card.text and "USER" not in card.text
    assert "| leopard | lion | 25.00 |" not in card.text.split("`block5_20`\n")[0].split("### Transition")[1]
    published = set(hub.server.repo("dataset", REPO).find("main").files) - {".gitattributes"}
    assert published == set(tree(out))


def test_a_column_of_superclasses_of_ones_own(hundred, tmp_path):
    """The ring goes by what the column says, not by the classes of CIFAR-100."""
    loaded = load_dataset(str(hundred))
    names = [f"class {i}" for i in range(100)]

    def regrouped(rows):
        rows = rows.cast_column("fine_label", ClassLabel(names=names)).remove_columns("coarse_label")
        groups = [0 if label == 99 else 1 + label % 7 for label in rows["fine_label"][:]]
        return rows.add_column("family", [f"family {group}" for group in groups])

    source = tmp_path / "source"
    source.mkdir()
    for split in loaded:
        regrouped(loaded[split]).to_parquet(source / f"{split}-00000-of-00001.parquet")
    how = Reading(label_column="fine_label", superclass_column="family")
    manifest = build_noisy_dataset(str(source), tmp_path / "out", configs=["superclass_25"], reading=how)
    train = load_dataset(str(tmp_path / "out"), "superclass_25")["train"]
    clean, noisy = (np.array(train[column][:]) for column in ("clean_label", "label"))
    assert (noisy[clean == 99] == 99).all() and (clean != noisy).sum() == round(0.25 * 99 * PER_CLASS)
    assert (noisy[clean != noisy] % 7 == clean[clean != noisy] % 7).all()
    assert manifest["maps"]["superclass"]["3"] == 10 and "99" not in manifest["maps"]["superclass"]
    assert "1 of the 100 classes are alone" in (tmp_path / "out" / "README.md").read_text()
    family = loaded["train"].features["coarse_label"]
    assert family.num_classes == 20
    with pytest.raises(ValueError, match="must say one superclass for each class; class "):
        build_noisy_dataset(
            str(source),
            tmp_path / "other",
            configs=["superclass_25"],
            reading=Reading(label_column="family", superclass_column="fine_label"),
        )


def test_the_ring_of_cifar100_is_that_of_its_column(hundred):
    assert ring_targets() == {
        fine: min((f for f in range(100) if SUPERCLASSES[f] == SUPERCLASSES[fine] and f > fine), default=None)
        or min(f for f in range(100) if SUPERCLASSES[f] == SUPERCLASSES[fine])
        for fine in range(100)
    }


# --------------------------------------------------------------------------------------------------------------- maps


def test_mnist_goes_by_its_published_map(tmp_path):
    matrix = transition_matrix("semantic_40", 10, targets=MNIST_TARGETS)
    flipped = {(i, j): matrix[i, j] for i in range(10) for j in range(10) if i != j and matrix[i, j]}
    assert flipped == {(7, 1): 0.4, (2, 7): 0.4, (5, 6): 0.4, (6, 5): 0.4, (3, 8): 0.4}
    for names in ([str(i) for i in range(10)], "0 - zero,1 - one,2 - two,3 - three,4,5,6,7,8,9 - nine".split(",")):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = {"text": [f"digit {i % 10}" for i in range(100)], "label": [i % 10 for i in range(100)]}
        (tmp_path / names[0]).mkdir()
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / names[0] / "train.parquet")
        manifest = build_noisy_dataset(
            str(tmp_path / names[0] / "train.parquet"),
            tmp_path / f"out {names[0]}",
            configs=["semantic_40"],
            reading=Reading(text_columns=["text"], test_split=None),
            semantic_map="mnist",
        )
        np.testing.assert_array_equal(manifest["configs"]["semantic_40"]["matrix"], matrix)
    with pytest.raises(ValueError, match="cifar10 is the map of the classes"):
        build_noisy_dataset(
            str(tmp_path / "0" / "train.parquet"),
            tmp_path / "other",
            configs=["semantic_40"],
            reading=Reading(text_columns=["text"], test_split=None),
            semantic_map="cifar10",
        )


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ({}, ValueError, "no source"),
        ({1: 1}, ValueError, "class 1 is its own target"),
        ({0: 3}, ValueError, r"classes in 0\.\.2, got 3"),
        ({-1: 1}, ValueError, r"classes in 0\.\.2, got -1"),
        ({True: 0}, TypeError, "classes as integers"),
        ({"0": 1}, TypeError, "classes as integers"),
        ([(0, 1)], TypeError, "a mapping of class to class"),
    ],
)
def test_maps_that_are_none(targets, error, message):
    for call in (
        lambda: make_noisy_labels([0, 1, 2], "semantic_40", num_classes=3, targets=targets),
        lambda: transition_matrix("superclass_40", 3, targets=targets),
    ):
        with pytest.raises(error, match=f"targets: .*{message}"):
            call()


def test_kinds_without_a_map_take_none():
    for spec, more in (("symmetric_40", {}), ("clean", {}), ("semantic_40", {"contaminated": True})):
        with pytest.raises(ValueError, match="targets: .* has no map of one's own"):
            make_noisy_labels([0, 1, 2], spec, num_classes=3, targets={0: 1}, **more)


# --------------------------------------------------------------------------------------------------------------- text


def test_a_table_of_texts(hub, reviews, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    command(
        monkeypatch,
        source=reviews,
        text_column_name="text",
        label_column_name="mood",
        validation_split=0.2,
        output_dir=out,
        configs=["clean", "asymmetric_50"],
        push_to_hub=REPO,
    )
    with reviews.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for place in (str(out), REPO):
        loaded = load_dataset(place, "asymmetric_50")
        assert loaded["train"].column_names == ["title", "text", "label", "clean_label"]
        assert loaded["train"].features["label"].names == ["b", "g", "m"]
        found = {row["title"]: (row["text"], "bgm"[row["clean_label"]]) for s in loaded for row in loaded[s]}
        assert found == {row["title"]: (row["text"], row["mood"]) for row in rows}
        train = loaded["train"]
        flips = [(c, n) for c, n in zip(train["clean_label"], train["label"], strict=True) if c != n]
        assert len(flips) == 36 and {(c, n) for c, n in flips} == {(0, 1), (1, 2), (2, 0)}
    assert re.search(r"asymmetric_50 +72 +50\.000% +0\.00\d\d?\n", capsys.readouterr().out)
    card = (out / "README.md").read_text()
    assert "not published yet" not in card and "of this folder" not in card
    assert "text-classification" in card and "--text_column_name text" in card
    splits = load_text_splits(REPO, "asymmetric_50", text_columns=["text"])
    assert splits.train.labels.tolist() == train["label"][:]
    assert splits.train.clean_labels.tolist() == train["clean_label"][:]
    with pytest.raises(ValueError, match="instance noise looks at the pixels.*'text'"):
        command(
            monkeypatch, source=reviews, text_column_name="text", label_column_name="mood", validation_split=0.2,
            output_dir=out, configs=["instance_20"],
        )  # fmt: skip
    with pytest.raises(ValueError, match="of texts give the text_column_name"):
        build_noisy_dataset(str(reviews), tmp_path / "no", configs=["clean"], reading=Reading(label_column="mood"))


# ------------------------------------------------------------------------------------------------ as the cards have it


def test_the_command_of_the_card_builds_the_same_folder(photos, tmp_path, monkeypatch):
    made = tmp_path / "made"
    build_noisy_dataset(
        str(photos),
        made,
        configs=["symmetric_40", "clean"],
        reading=Reading(validation_split=0.25),
        seed=5,
        max_shard_size=20_000,
    )
    text = (made / "README.md").read_text()
    assert '"symmetric_40")  # not published yet: give the path of this folder' in text
    words = re.search(r"```bash\nhf-robust make-noisy-dataset (.*?)\n```", text, re.S).group(1)
    words = words.replace("\\\n", " ").split()
    monkeypatch.chdir(photos.parent)
    words[words.index("--output_dir") + 1] = str(tmp_path / "again")
    script = ROOT / "scripts" / "make_noisy_dataset.py"
    monkeypatch.setattr(sys, "argv", [str(script), *words, "--debug"])
    runpy.run_path(str(script), run_name="__main__")
    assert tree(made) == tree(tmp_path / "again")


class Swap(ClassNoise):
    name, colour = "swap", "#117733"
    words = entry = "of each class {rate} % go to its partner"

    def matrix(self, rate, num_classes):
        return matrix_to({i: i ^ 1 for i in range(num_classes)}, rate, num_classes)


def test_the_noise_of_a_plugin_is_made_again_by_the_command_of_the_card(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "swap", Swap())
    monkeypatch.setattr("hf_common.plugins._loaded", ["/home/me/own_kinds.py"])
    how = Reading(test_split=None)
    build_noisy_dataset(str(photos), tmp_path, configs=["swap_25"], reading=how)
    manifest = json.loads((tmp_path / "noisy_dataset.json").read_text())
    assert manifest["plugins"] == ["own_kinds.py"]
    card = (tmp_path / "README.md").read_text()
    assert "--plugins own_kinds.py" in card and "of each class RR % go to its partner" in card
    monkeypatch.setattr("hf_common.plugins._loaded", ["more"])
    assert build_noisy_dataset(str(photos), tmp_path, configs=["swap_25"], reading=how) == manifest
    manifest = build_noisy_dataset(str(photos), tmp_path, configs=["clean"], reading=how)
    assert manifest["plugins"] == ["own_kinds.py", "more"]
    monkeypatch.delitem(KINDS, "swap")
    with pytest.raises(ValueError, match="config 'swap_25' needs --plugins own_kinds.py more, which registers it"):
        dataset_card(manifest)


def test_the_folder_trains_as_any_other(photos, tmp_path):
    build_noisy_dataset(str(photos), tmp_path, configs=["symmetric_40"], reading=Reading(validation_split=0.25))
    splits = load_image_splits(str(tmp_path), "symmetric_40")
    train = load_dataset(str(tmp_path), "symmetric_40")["train"]
    assert splits.train.labels.tolist() == train["label"][:] and splits.label_names == ANIMALS
    assert splits.train.clean_labels.tolist() == train["clean_label"][:]


def test_a_manifest_of_others_is_looked_at(photos, tmp_path):
    out = tmp_path / "out"
    build_noisy_dataset(str(photos), out, configs=["clean"], reading=Reading(test_split=None))
    path = out / "noisy_dataset.json"
    whole = json.loads(path.read_text())
    for change, match in (
        ({"features": {"image": {"_type": "Nothing"}}}, "'features' are none of datasets"),
        ({"maps": {"semantic": {"0": 9}}}, "'maps.semantic' must be of the 4 classes"),
        ({"maps": {"semantic": {"x": 0}}}, "'maps.semantic' must be of the 4 classes"),
        ({"class_names": ["a"]}, "must be of 2 or more classes, is of 1"),
        ({"building": "../../victim"}, "must name a file or folder beside it"),
        ({"building": "human_../x"}, "must name a file or folder beside it"),
        ({"building": "figures"}, "no config of such a data set"),
        ({"configs": {"../x": whole["configs"]["clean"]}}, "must name a file or folder beside it"),
        ({"extra": 1}, "is not a manifest of build_noisy_dataset"),
        ({"configs": {"clean": {**whole["configs"]["clean"], "num_files": 0}}}, "configs.clean.num_files"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=match):
            build_noisy_dataset(str(photos), out, configs=["symmetric_20"], reading=Reading(test_split=None))


def test_labels_of_people_for_any_classes(photos, tmp_path):
    labels = np.repeat(np.arange(4), [20, 27, 34, 41])
    columns = {"clean": labels, "human_crowd": (labels + 1) % 4, "human_../evil": labels, "other": labels}
    pq.write_table(pa.table(columns), tmp_path / "people.parquet")
    how = Reading(test_split=None)
    out = tmp_path / "out"
    build = {"reading": how, "human_labels": tmp_path / "people.parquet"}
    build_noisy_dataset(str(photos), out, configs=["human_crowd"], **build)
    assert load_dataset(str(out), "human_crowd")["train"]["label"][:] == ((labels + 1) % 4).tolist()
    with pytest.raises(ValueError, match=r"'human_worst' needs human_labels with such labels.*\['human_crowd'\]"):
        build_noisy_dataset(str(photos), out, configs=["human_worst"], **build)
    with pytest.raises(ValueError, match="cannot build 'human_../evil'"):
        build_noisy_dataset(str(photos), out, configs=["human_../evil"], **build)


def test_a_published_one_is_replaced_by_itself_alone(hub, photos, tmp_path):
    how = Reading(validation_split=0.25)
    build_noisy_dataset(str(photos), tmp_path / "a", configs=["clean", "symmetric_40"], reading=how)
    publish_noisy_dataset(tmp_path / "a", REPO)
    # The same rows in more files: the old file is not left beside them.
    build_noisy_dataset(
        str(photos), tmp_path / "b", configs=["clean", "symmetric_40"], reading=how, max_shard_size=20_000
    )
    publish_noisy_dataset(tmp_path / "b", REPO)
    published = set(hub.server.repo("dataset", REPO).find("main").files) - {".gitattributes"}
    assert published == set(tree(tmp_path / "b")) and "clean/train-00000-of-00001.parquet" not in published
    assert load_dataset(REPO, "clean")["train"].num_rows == 91
    build_noisy_dataset(str(photos), tmp_path / "c", configs=["clean"], reading=how)
    with pytest.raises(ValueError, match="symmetric_40 too, which this one lacks"):
        publish_noisy_dataset(tmp_path / "c", REPO)
    build_noisy_dataset(str(photos), tmp_path / "d", configs=["clean", "symmetric_40"], reading=how, seed=1)
    with pytest.raises(ValueError, match="seed: "):
        publish_noisy_dataset(tmp_path / "d", REPO)


def table(path, rows, features=None):
    Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def test_a_thousand_classes_can_be_gone_on_with(hub, tmp_path):
    rows = {"text": [f"word {i}" for i in range(3000)], "label": [i % 1000 for i in range(3000)]}
    source = table(tmp_path / "many.parquet", rows)
    how = Reading(text_columns=["text"], test_split=None)
    out = tmp_path / "out"
    for configs in (["clean", "symmetric_40"], ["symmetric_60"]):
        manifest = build_noisy_dataset(source, out, configs=configs, reading=how)
    assert [entry["matrix"] for entry in manifest["configs"].values()] == [None] * 3
    assert (out / "noisy_dataset.json").stat().st_size < 100_000
    card = (out / "README.md").read_text()
    assert "matrices of 1000 classes are too large to be shown" in card and "noisy_dataset_matrices" not in card
    publish_noisy_dataset(out, REPO)
    assert load_dataset(REPO, "symmetric_40")["train"]["label"][:] == (
        make_noisy_labels(rows["label"], "symmetric_40", num_classes=1000).tolist()
    )


def test_columns_of_arrays_are_the_same_in_a_second_call(tmp_path):
    features = Features({"x": datasets.Array2D((2, 2), "float32"), "label": ClassLabel(names=["a", "b"])})
    source = tmp_path / "source"
    source.mkdir()
    table(source / "train.parquet", {"x": [[[1.0, 2.0], [3.0, 4.0]]] * 10, "label": [0, 1] * 5}, features)
    for configs in (["clean"], ["symmetric_20"]):
        build_noisy_dataset(str(source), tmp_path / "out", configs=configs, reading=Reading(test_split=None))
    assert load_dataset(str(tmp_path / "out"), "symmetric_20")["train"]["x"][3] == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("size", ["abc", "0", "-5MB", "nan", "", "1.5XB", 0])
def test_sizes_that_are_none(photos, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size: expected bytes, or a size such as 100MB"):
        build_noisy_dataset(str(photos), tmp_path / "out", configs=["clean"], max_shard_size=size)


def test_what_would_be_lost_or_wrong_is_refused(photos, tmp_path):
    text = {"text": ["a", "b", "c", "d"] * 5, "label": [0, 1, 2, 3] * 5, "group": [0, 0, 1, None] * 5}
    source = table(tmp_path / "text.parquet", text)
    years = table(tmp_path / "years.parquet", {"text": ["a", "b"], "label": [20230101, 20230102]})
    noisy = table(tmp_path / "noisy.parquet", {**text, "clean_label": text["label"]})
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,a\nthe,b\n".encode("latin-1"))
    (tmp_path / "null.csv").write_text("image,label\n,a\nx.png,b\n")
    (tmp_path / "code.py").write_text("1")
    of_text = {"text_columns": ["text"], "test_split": None}
    for match, name, configs, how in (
        ("label_column_name: whole numbers are classes", years, ["clean"], of_text),
        ("noisy already; take that column", noisy, ["clean"], {**of_text, "columns": ["text"]}),
        ("'text', which holds the texts, must be among", source, ["clean"], {**of_text, "columns": ["group"]}),
        ("each must be named once", source, ["clean"], {**of_text, "columns": ["text", "text"]}),
        ("superclass_column: 'group' must hold", source, ["superclass_20"], {**of_text, "superclass_column": "group"}),
        ("latin.csv' cannot be read as csv", str(tmp_path / "latin.csv"), ["clean"], of_text),
        ("where the path of its image must be", str(tmp_path / "null.csv"), ["clean"], {"test_split": None}),
        ("is a file, and none of the kinds", str(tmp_path / "code.py"), ["clean"], of_text),
        ("source: expected a data set, got an empty name", "", ["clean"], of_text),
        ("source_config: expected a data set, got 'x' of a table", source, ["clean"], {**of_text, "config": "x"}),
    ):
        with pytest.raises(ValueError, match=match):
            build_noisy_dataset(name, tmp_path / "out", configs=configs, reading=Reading(**how))
    with pytest.raises(ValueError, match="test_split: 'train' is what the noise is put on"):
        Reading(test_split="train")
    with pytest.raises(ValueError, match="lies in the source"):
        build_noisy_dataset(str(photos), photos / "noisy", configs=["clean"], reading=Reading(test_split=None))
    assert not (tmp_path / "out").exists() and not (photos / "noisy").exists()
