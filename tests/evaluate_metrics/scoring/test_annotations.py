"""Captions and classes of folders and data sets, and the scores that are made with them."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.clip_score import clip_score
from evaluate_metrics.core.embeddings import save_embeddings
from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.vision_models import embed_captions
from evaluate_metrics.scoring.annotations import captions_of, classes_of
from evaluate_metrics.scoring.class_scores import class_means, class_notes, score_classes
from evaluate_metrics.scoring.evaluation import evaluate_sources
from evaluate_metrics.scoring.report import score_table
from evaluate_metrics.scoring.settings import Evaluation
from evaluate_metrics.scoring.sources import open_source
from tests.evaluate_metrics.clip_files import save_tiny_clip

pytestmark = pytest.mark.filterwarnings("ignore:.*files are left out:UserWarning")


def save_images(folder, names, seed=0):
    draw = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(folder / name)
    return folder


NAMES = ["a.png", "b/c.png", "b/d.png", "e.png"]
TEXTS = ["an a", "a c", "a d", "an e"]


@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv", "inner", "text files"])
def test_captions_of_a_folder(form, tmp_path):
    save_images(tmp_path, NAMES)
    rows = [{"file_name": name, "text": text, "other": 3} for name, text in zip(NAMES, TEXTS, strict=True)]
    if form == "metadata.jsonl":
        (tmp_path / form).write_text("\n".join(map(json.dumps, rows[::-1])) + "\n\n")
    elif form == "metadata.csv":
        lines = [f'{row["file_name"]},"{row["text"]}"' for row in rows]
        (tmp_path / form).write_text("\n".join(["file_name,text", *lines]))
    elif form == "inner":  # of each folder its own
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, (rows[0], rows[3]))))
        inner = [{**row, "file_name": row["file_name"][2:]} for row in rows[1:3]]
        (tmp_path / "b" / "metadata.jsonl").write_text("\n".join(map(json.dumps, inner)))
    else:
        for name, text in zip(NAMES, TEXTS, strict=True):
            (tmp_path / name).with_suffix(".txt").write_text(f" {text}\n")
    assert captions_of(open_source(str(tmp_path))) == TEXTS


def test_captions_that_are_not_there_are_named(tmp_path):
    source = open_source(str(save_images(tmp_path, NAMES)))
    with pytest.raises(ValueError, match="4 of 4 images have no caption; give a metadata.jsonl or .*a.txt"):
        captions_of(source)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "an a"}))
    with pytest.raises(ValueError, match="c.png has no caption: None"):
        captions_of(source)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "caption": "an a"}))
    with pytest.raises(ValueError, match="metadata.jsonl must have file_name and text in every row: KeyError: 'text'"):
        captions_of(source)
    for content in (b'{"file_name"', b"[1]", b"\xff\xfe"):
        (tmp_path / "metadata.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"metadata.jsonl (must have|can't be read)"):
            captions_of(source)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["metadata.jsonl", "metadata.csv"])
def test_captions_with_other_separators_are_whole(form, mark, tmp_path):
    save_images(tmp_path, NAMES)
    texts = ["one\u2028two", "next\x85line", "a\x0cform", "plain"]
    pairs = list(zip(NAMES, texts, strict=True))
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in pairs]
    if form == "metadata.csv":
        lines = ["file_name,text", *map(",".join, pairs)]
    (tmp_path / form).write_bytes((mark + "\r\n".join(lines)).encode())
    assert captions_of(open_source(str(tmp_path))) == texts


def test_captions_that_may_be_others_are_refused(tmp_path):
    save_images(tmp_path, ["a.png"])
    for lines, reason in (
        ("a.png,red, and blue", "a.png has more fields"),
        ("a.png,red\na.png,blue", "a.png has two"),
    ):
        (tmp_path / "metadata.csv").write_text(f"file_name,text\n{lines}\n")
        with pytest.raises(ValueError, match=f"metadata.csv must have .* in every row: .*{reason}"):
            captions_of(open_source(str(tmp_path)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A data set with captions and labels."""
    place = tmp_path_factory.mktemp("rows")
    save_images(place, [f"{i}.png" for i in range(6)])
    table = {
        "image": [str(place / f"{i}.png") for i in range(6)],
        "words": list("abcdef"),
        "label": [0, 1, 1, 0, 0, 1],
    }
    found = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    found = found.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    (place / "set").mkdir()
    found.to_parquet(place / "set" / "train-00000-of-00001.parquet")
    return str(place / "set")


def test_captions_and_classes_of_a_data_set(rows):
    source = open_source(rows)
    assert captions_of(source, "words") == list("abcdef")
    assert classes_of(source) == ["cat", "dog", "dog", "cat", "cat", "dog"]
    with pytest.raises(ValueError, match="has no column 'text' of captions; it has \\['words', 'label'\\]"):
        captions_of(source)


def test_classes_of_folders(tmp_path):
    save_images(tmp_path, ["cat/1.png", "cat/in/2.png", "dog/1.png"])
    assert classes_of(open_source(str(tmp_path))) == ["cat", "cat", "dog"]
    save_images(tmp_path, ["loose.png"])
    with pytest.raises(ValueError, match="per_class needs class folders; 1 images lie outside, loose.png"):
        classes_of(open_source(str(tmp_path)))


def test_files_have_neither_captions_nor_classes(tmp_path):
    embeddings = torch.rand(4, 3)
    save_embeddings(tmp_path / "e.safetensors", embeddings, {"encoder": "e", "preprocessing": "p"})
    np.save(tmp_path / "pixels.npy", np.zeros((4, 5, 6, 3), np.uint8))
    for name, kind in (("e.safetensors", "a file of embeddings"), ("pixels.npy", "streamed or a file of images")):
        source = open_source(str(tmp_path / name))
        with pytest.raises(ValueError, match=f"per_class needs a folder of images or a data set .*{name} is {kind}"):
            classes_of(source)
        with pytest.raises(ValueError, match=f"clip_score needs a folder .*{name} is {kind}"):
            captions_of(source)
    with pytest.raises(ValueError, match="per_class needs a folder"):
        evaluate_sources(source, source, ["tiny"], Evaluation(metrics=["fd"], per_class=True))


# --- Scores ---


def test_the_clip_score_of_a_folder(tmp_path):
    clip = tmp_path / "clip"
    clip.mkdir()
    save_tiny_clip(clip)
    save_images(tmp_path / "fake", NAMES)
    save_images(tmp_path / "real", NAMES, 1)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in zip(NAMES, TEXTS, strict=True)]
    (tmp_path / "fake" / "metadata.jsonl").write_text("\n".join(lines))
    sources = open_source(str(tmp_path / "fake")), open_source(str(tmp_path / "real"))
    (row,) = evaluate_sources(*sources, [str(clip)], Evaluation(metrics=["clip_score", "fd"]))
    encoder = make_encoder(clip, device="cpu")
    words = embed_captions(str(clip), "cpu", torch.float32, [f"A photo depicts {text}" for text in TEXTS])
    expected = clip_score(encoder.encode([tmp_path / "fake" / name for name in NAMES]), words)
    assert (row["clip_score"], row["clip_score_standard_error"]) == pytest.approx(expected[:2], rel=1e-4)
    assert row["clip_score_scale"] == "2.5 max(cos, 0)" and row["frechet_distance"] > 0
    with pytest.raises(ValueError, match="4 of 4 images have no caption"):
        evaluate_sources(*sources[::-1], ["no encoder"], Evaluation(metrics=["clip_score"]))


def unit(n, seed, shift=0.0):
    draw = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(draw + 2 + shift, dim=1)


def moments(vectors):
    return Moments.zeros(vectors.shape[1]).update(vectors)


def test_scores_of_classes_are_those_of_their_images_alone():
    x, y = unit(50, 0), unit(70, 1, torch.tensor([1.0, 0, 0, 0]))
    in_x, in_y = ["b" if i % 3 else "a" for i in range(50)], ["abc"[i % 3] for i in range(70)]
    found = score_classes(x, y, in_x, in_y, ["cmmd", "fd"])
    assert list(found) == ["a", "b", "c"]
    for name in "ab":
        a, b = (moments(v[[i for i, of in enumerate(names) if of == name]]) for v, names in ((x, in_x), (y, in_y)))
        assert (found[name]["n_predictions"], found[name]["n_references"]) == (a.n, b.n)
        assert found[name]["frechet_distance"] == pytest.approx(frechet_distance(a, b))
        assert found[name]["cmmd_unbiased"] == pytest.approx(cmmd(a, b).unbiased)
    assert found["c"]["n_predictions"] == 0 and found["c"]["cmmd"] is None and found["c"]["frechet_distance"] is None
    means = class_means(found)
    assert means["cmmd_of_classes"] == pytest.approx((found["a"]["cmmd"] + found["b"]["cmmd"]) / 2)
    assert class_notes(found, 4)[0] == "no predictions of 1 of 3 classes, which have no scores: c"
    # One image of a class has a CMMD and no covariance.
    one = score_classes(x[:1], y, ["a"], in_y, ["cmmd", "fd"])["a"]
    assert one["cmmd"] > 0 and one["cmmd_unbiased"] is None and one["frechet_distance"] is None


def spread_colours(images):
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


def test_classes_stand_beside_the_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("evaluate_metrics.core.encoders", fromlist=["x"]).ENCODERS, "own", spread_colours)
    for place, (name, n) in enumerate((("fake", 9), ("real", 12))):
        save_images(tmp_path / name, [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(n)], place)
    sources = [open_source(str(tmp_path / name)) for name in ("fake", "real")]
    whole, (row,) = (
        evaluate_sources(*sources, ["own"], Evaluation(per_class=per_class)) for per_class in (False, True)
    )
    assert row["cmmd"] == whole[0]["cmmd"] and list(row["per_class"]) == ["cat", "dog"]
    assert row["per_class"]["dog"]["n_predictions"] == 5 and "frechet_distance_of_classes" in row
    table = score_table([row])
    assert "Classes, own:" in table and "| mean of the classes |" in table and "| cat | 4 | 6 |" in table
    assert any("2 of 2 classes have 6 images or fewer" in note for note in row["notes"])
    with pytest.raises(ValueError, match="per_class needs one of the metrics cmmd, fd; got"):
        Evaluation(metrics=["kid"], per_class=True)
