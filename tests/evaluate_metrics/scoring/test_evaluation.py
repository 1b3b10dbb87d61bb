import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import (
    cubic_mmd,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_limit,
    kernel_distance,
)
from evaluate_metrics.core.mmd import cmmd, permutation_test
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.scoring import embedding
from evaluate_metrics.scoring.embedding import Embedded, EmbeddingCache, embed
from evaluate_metrics.scoring.evaluation import (
    Evaluation,
    embed_sources,
    evaluate_sources,
    open_encoder,
    score_sources,
)
from evaluate_metrics.scoring.registry import SCORES, keys_of
from evaluate_metrics.scoring.report import plot_score_curves, score_table
from evaluate_metrics.scoring.scores import OF_ROWS, score, score_curve
from evaluate_metrics.scoring.sources import ImageSource, digest, open_source
from hf_common.foreign import LONGEST
from hf_common.locks import LOCK
from hf_common.run_folder import begun
from tests import ROOT

DIM = 8
pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")


def colours(images):
    """An encoder of 6 dimensions: mean and spread of each channel."""
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


def save_pictures(folder, n, seed, shift=0):
    rng = np.random.default_rng(seed)
    (folder / "inner").mkdir(parents=True)
    for number in range(n):
        level = rng.integers(30, 150, 3) + shift
        pixels = (level + rng.integers(0, 60, (9 + number % 3, 8, 3))).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA", "CMYK")[number % 4])
        ending = "jpg" if image.mode == "CMYK" else "png"
        image.save((folder / "inner" if number % 2 else folder) / f"{number:03}.{ending}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two folders of pictures and a tiny CLIP."""
    root = tmp_path_factory.mktemp("data")
    save_pictures(root / "predictions", 41, 0)
    save_pictures(root / "references", 60, 1, shift=25)
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=8,
        projection_dim=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(root / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(
        root / "clip"
    )
    return root


@pytest.fixture
def chunks_of_16(monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 16)


@pytest.fixture(scope="module")
def vectors(data):
    """What the encoder gives for both folders, all images in one batch."""
    encoder = make_encoder(data / "clip", device="cpu")
    folders = (data / "predictions", data / "references")
    return [encoder.encode([p for p in sorted(f.rglob("*")) if p.is_file()], batch_size=99) for f in folders]


def sources(data, predictions="predictions", references="references"):
    return open_source(str(data / predictions)), open_source(str(data / references))


def evaluate_folders(data, **settings):
    return evaluate_sources(*sources(data), [str(data / "clip")], Evaluation(**settings))


def test_scores_are_those_of_the_metrics(data, vectors, chunks_of_16):
    metrics = ("cmmd", "p_value", "fd", "fd_infinity", "kid")
    options = {"kid_subsets": 3, "kid_subset_size": 30, "permutations": 19, "seed": 5, "batch_size": 7}
    (row,) = evaluate_folders(data, metrics=metrics, **options)
    x, y = vectors
    mx, my = (Moments.zeros(DIM).update(v) for v in vectors)
    whole = cmmd(x, y)
    assert row["cmmd"] == pytest.approx(whole.biased, rel=1e-4)
    assert row["cmmd_unbiased"] == pytest.approx(whole.unbiased, rel=1e-4)
    assert row["standard_error"] == pytest.approx(whole.standard_error, rel=1e-4)
    assert row["error_bound"] == pytest.approx(whole.error_bound, rel=1e-4)
    assert row["p_value"] == permutation_test(x, y, permutations=19, seed=5).p_value
    assert row["frechet_distance"] == pytest.approx(frechet_distance(mx, my), rel=1e-3)
    assert row["fd_infinity"] == pytest.approx(frechet_distance_at_infinity(x, my, seed=5).value, rel=1e-3)
    assert (row["kid"], row["kid_std"]) == pytest.approx(kernel_distance(x, y, 3, 30, 5), rel=1e-3)
    assert (row["n_predictions"], row["n_references"], row["dim"], row["normalized"]) == (41, 60, DIM, True)
    assert len(row["weights"]) == 16 and "bicubic" in row["preprocessing"]
    assert row["notes"] == []


def test_nothing_depends_on_batches_and_chunks(data, vectors, monkeypatch):
    encoder = make_encoder(data / "clip", device="cpu")
    for chunk, batch_size in [(1, 3), (16, 5), (100, 41)]:
        monkeypatch.setattr(embedding, "CHUNK", chunk)
        embedded = embed(sources(data)[0], encoder, batch_size=batch_size, keep=True)
        torch.testing.assert_close(embedded.embeddings, vectors[0], rtol=1e-5, atol=1e-5)
        assert embedded.moments.n == 41
        torch.testing.assert_close(embedded.moments.sum, vectors[0].double().sum(0), rtol=1e-5, atol=1e-5)
    assert embed(sources(data)[0], encoder).embeddings is None


# --- Sources ---


def test_folder_in_the_order_of_paths(data):
    source = open_source(str(data / "predictions"))
    assert len(source) == 41 and [path.name for path in source.rows[:3]] == ["000.png", "002.png", "004.png"]
    assert source.rows[-1].parts[-2:] == ("inner", "039.jpg")
    (first,) = source.read(0, 1)
    assert first == {"bytes": source.rows[0].read_bytes(), "path": str(source.rows[0])}


@pytest.fixture(scope="module")
def parquet(data):
    """A data set with two splits and two image columns, of the pictures of the predictions."""
    folder = data / "parquet" / "data"
    folder.mkdir(parents=True)
    paths = [str(path) for path in sorted((data / "predictions").rglob("*")) if path.is_file()]
    rows = datasets.Dataset.from_dict({"image": paths, "other": paths[::-1], "number": range(41)})
    rows = rows.cast_column("image", datasets.Image()).cast_column("other", datasets.Image())
    for split in ("train", "test"):
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(data / "parquet")


def test_data_set_gives_the_same_bytes_as_the_folder(data, parquet):
    folder, rows = open_source(str(data / "predictions")), open_source(parquet, split="test", column="image")
    assert digest(rows.read(0, 41)) == digest(folder.read(0, 41))
    assert rows.read(40, 41)[0]["path"].startswith(f"{parquet}: image 40 (") and "039.jpg" in str(rows.read(40, 41))
    part = open_source(parquet, split="test[:10]", column="other")
    assert len(part) == 10 and part.read(0, 1)[0]["bytes"] == folder.read(40, 41)[0]["bytes"]


def test_data_set_must_be_named_as_far_as_it_is_not_plain(parquet):
    with pytest.raises(ValueError, match="splits train, test; name one"):
        open_source(parquet)
    with pytest.raises(ValueError, match=r"\['image', 'other'\]; name one of them, got None"):
        open_source(parquet, split="test")
    with pytest.raises(ValueError, match=r"\['image', 'other'\]; name one of them, got 'number'"):
        open_source(parquet, split="test", column="number")
    with pytest.raises(ValueError, match="no data"):
        open_source(parquet, split="test[:0]", column="image")


def test_streamed_data_sets_are_read_as_they_come(parquet, tmp_path):
    stored = open_source(parquet, split="test", column="image")
    folder = tmp_path / "told"
    (folder / "data").mkdir(parents=True)
    for file in Path(parquet, "data").iterdir():
        (folder / "data" / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="does not say how many rows its split test has; read it without streaming"):
        open_source(str(folder), split="test", column="image", streaming=True)
    splits = "".join(f"\n  - name: {split}\n    num_examples: 41\n    num_bytes: 1" for split in ("train", "test"))
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: other\n    dtype: image\n"
        f"  - name: number\n    dtype: int64\n  splits:{splits}\n---\n"
    )
    streamed = open_source(str(folder), split="test", column="image", streaming=True)
    assert len(streamed) == 41
    for start, stop in ((0, 16), (16, 41), (3, 5)):
        assert digest(streamed.read(start, stop)) == digest(stored.read(start, stop))
    assert streamed.read(7, 8)[0]["path"].startswith(f"{folder}: image 7 (")


def test_bad_folders(data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no files"):
        open_source(str(tmp_path / "empty"))
    save_pictures(tmp_path / "mixed", 3, 0)
    (tmp_path / "mixed" / ".hidden").write_text("not seen")
    with pytest.warns(UserWarning, match="mixed: 1 of 4 files are left out, .*: .hidden$"):
        assert len(open_source(str(tmp_path / "mixed"))) == 3
    (tmp_path / "mixed" / "notes.txt").write_text("not seen either")
    with pytest.warns(UserWarning, match="mixed: 2 of 5 files are left out, .*: .hidden, notes.txt$"):
        assert len(open_source(str(tmp_path / "mixed"))) == 3
    (tmp_path / "mixed" / "train.parquet").write_bytes(b"rows")
    with pytest.raises(ValueError, match="mixed holds images and 1 data files, as .*train.parquet; of a data set"):
        open_source(str(tmp_path / "mixed"))
    with pytest.raises(OSError, match="nowhere"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        open_source(str(tmp_path / "nowhere.safetensors"))


def test_unreadable_images_are_named(data, tmp_path):
    save_pictures(tmp_path / "broken", 5, 0)
    (tmp_path / "broken" / "002.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="broken, images 0 to 4: .*002.png"):
        evaluate_sources(*sources(data, tmp_path / "broken"), [str(data / "clip")], Evaluation())
    rows = datasets.Dataset.from_dict({"image": [None]}).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(ValueError, match="rows: image 0 is missing"):
        ImageSource("rows", rows, "image").read(0, 1)
    with pytest.raises(ValueError, match="gone.png can't be read"):
        ImageSource("folder", [tmp_path / "gone.png"]).read(0, 1)


# --- Cache ---


class Counting:
    """An encoder that counts the images it is asked for."""

    def __init__(self, encoder):
        self.encoder, self.images, self.dim, self.name = encoder, 0, encoder.dim, encoder.name
        self.weights, self.metadata = encoder.weights, encoder.metadata

    def encode_chunks(self, chunks, batch_size, num_workers=None):
        chunks = (self._counted(chunk) for chunk in chunks)
        return self.encoder.encode_chunks(chunks, batch_size, num_workers)

    def _counted(self, chunk):
        self.images += len(chunk)
        return chunk


def test_cache_goes_by_content(data, tmp_path, chunks_of_16):
    folder = save_pictures(tmp_path / "images", 40, 0)
    encoder = Counting(make_encoder(data / "clip", device="cpu"))
    cache = EmbeddingCache(tmp_path / "cache", encoder, torch.float32)

    def embedded(directory=folder, cache=cache):
        before = encoder.images
        result = embed(open_source(str(directory)), encoder, keep=True, cache=cache)
        return encoder.images - before, result.embeddings

    asked, first = embedded()
    assert asked == 40
    asked, again = embedded()
    assert asked == 0 and torch.equal(first, again)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert embedded(moved)[0] == 0
    Image.new("RGB", (9, 9), "red").save(moved / "038.png")  # the 20th of the files in order: in the second chunk
    asked, changed = embedded(moved)
    assert asked == 16 and torch.equal(changed[:16], first[:16]) and not torch.equal(changed[19], first[19])
    assert embedded(moved, EmbeddingCache(tmp_path / "cache", encoder, torch.float16))[0] == 40
    assert embedded(moved, None)[0] == 40


def test_cache_tells_encoders_apart(data, tmp_path):
    encoders = [make_encoder(data / "clip", device="cpu", normalize=normalize) for normalize in (True, False)]
    torch.manual_seed(1)
    CLIPVisionModelWithProjection.from_pretrained(data / "clip").save_pretrained(tmp_path / "same")
    other = CLIPVisionModelWithProjection.from_pretrained(data / "clip")
    other.visual_projection.weight.data[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    for name in ("same", "other"):
        CLIPImageProcessorPil.from_pretrained(data / "clip").save_pretrained(tmp_path / name)
        encoders.append(make_encoder(tmp_path / name, device="cpu"))
    names = {EmbeddingCache("c", encoder, torch.float32)._path([{"bytes": b"x"}]) for encoder in encoders}
    assert len(names) == 3  # the second folder of the same weights is no other encoder


def test_cache_keeps_nothing_of_callables_and_names_broken_files(data, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache", make_encoder(colours), torch.float32)
    cache.put([{"bytes": b"x"}], torch.ones(1, 6))
    assert not (tmp_path / "cache").exists() and cache.get([{"bytes": b"x"}]) is None
    cache = EmbeddingCache(tmp_path / "cache", make_encoder(data / "clip", device="cpu"), torch.float32)
    cache.put([{"bytes": b"x"}], torch.ones(1, DIM))
    (path,) = (tmp_path / "cache").rglob("*.safetensors")
    path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=f"{path} is no file of embeddings; remove it"):
        cache.get([{"bytes": b"x"}])


def test_no_damage_of_the_cache_changes_a_number(data, damages, tmp_path):
    encoder, encoded = make_encoder(data / "clip", device="cpu"), [{"bytes": b"x"}, {"bytes": b"y"}]
    cache, embeddings = EmbeddingCache(tmp_path, encoder, torch.float32), gaussian(2, DIM, 0)
    cache.put(encoded, embeddings)
    (path,) = tmp_path.rglob("*.safetensors")
    content, refused = path.read_bytes(), 0
    for damaged in damages(content, 300):
        path.write_bytes(damaged)
        try:
            found = cache.get(encoded)
        except ValueError as error:
            assert str(error).startswith(f"{path} is no file of embeddings; remove it: ")
            assert len(str(error)) <= LONGEST
            refused += 1
        else:
            assert torch.equal(found, embeddings)
    assert refused >= 295
    path.write_bytes(content)
    other = cache._path(encoded[:1])  # whole, under the name of other images
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    with pytest.raises(ValueError, match="it holds others than its name says"):
        cache.get(encoded[:1])


# --- Encoders and checks ---


def test_open_encoder(data, monkeypatch):
    cpu, settings = torch.device("cpu"), Evaluation(dtype="bfloat16", normalize=False)
    encoder = open_encoder(str(data / "clip"), settings, cpu)
    assert not encoder.normalized and encoder.dim == DIM
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert open_encoder("test_evaluation:colours", Evaluation(), cpu).normalized
    for spec, reason in (("no_module:colours", "named 'no_module'"), ("test_evaluation:no", "attribute 'no'")):
        with pytest.raises(ValueError, match=f"encoder '{spec}' can't be imported: .*{reason}"):
            open_encoder(spec, Evaluation(), cpu)
    with pytest.raises(ValueError, match="SHA-256 00"):
        weights = str(data / "clip" / "config.json")
        open_encoder("inception-clean", Evaluation(inception_weights=weights, inception_sha256="00"), cpu)


FILE = """
import os
from dataclasses import dataclass
{first}
import numpy as np

@dataclass
class Options:
    power: "int" = 1

def encode(images):
    {second}
    return np.stack([np.asarray(i, np.float32).reshape(-1, 3).mean(0) + 1 for i in images]) ** Options().power

number = 3
"""


@pytest.fixture
def encoder_file(tmp_path, monkeypatch):
    """Writes a file of encoders of a new name into the working folder; its name without the ending."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name, first="", second=""):
        (tmp_path / f"{name}.py").write_text(FILE.format(first=first, second=second))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_encoder_of_a_file_in_the_working_folder(encoder_file, data):
    cpu, name = torch.device("cpu"), encoder_file("encoder_of_mine")
    for spec in (f"{name}.py:encode", f"./{name}.py:encode", str(Path(f"{name}.py").resolve()) + ":encode"):
        (row,) = evaluate_sources(*sources(data), [spec], Evaluation())
        assert row["dim"] == 3 and row["cmmd"] > 0 and row["encoder"] == spec and "probe" not in row
    assert open_encoder(f"{name}.py:encode", Evaluation(), cpu).name == f"{name}.encode"
    Path("inner").mkdir()
    Path(f"{name}.py").rename(f"inner/{name}2.py")
    assert open_encoder(f"inner/{name}2.py:encode", Evaluation(), cpu).name == f"{name}2.encode"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:encode", "can't be imported: FileNotFoundError: there is no file 'nowhere.py' in '.*'"),
        ("whole.py:no", "can't be imported: AttributeError: .*no attribute 'no'"),
        ("whole.py:number", "must be a callable, is int"),
        ("whole:encode", "can't be imported: .*No module named 'whole'; the file in this folder is whole.py:encode"),
        ("at_import.py:encode", "can't be imported: the environment variable NO_SUCH_DIR is not set"),
        ("at_call.py:encode", "failed on its first image: the environment variable NO_SUCH_DIR is not set"),
        ("broken.py:encode", "can't be imported: SyntaxError: "),
        ("raises.py:encode", "can't be imported: KeyError: 'NO_SUCH_DIR'"),
        ("json.py:encode", "can't be imported: ImportError: a module json is loaded already; give the file another"),
    ],
)
def test_encoders_that_cannot_be_had_say_why(encoder_file, spec, message):
    missing = 'os.environ["NO_SUCH_DIR"]'
    for name, first, second in (
        *(("whole", "", ""), ("at_import", missing, ""), ("at_call", "", missing), ("broken", "(", "")),
        *(("raises", '{}["NO_SUCH_DIR"]', ""), ("json", "", "")),
    ):
        encoder_file(name, first, second)
    with pytest.raises(ValueError, match=f"^encoder '{spec}' {message}") as caught:
        open_encoder(spec, Evaluation(), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert spec.partition(".")[0] not in sys.modules or spec.startswith(("whole", "json", "at_call"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"metrics": ["fid"]}, "metrics must be of cmmd, .*; got fid"),
        ({"metrics": []}, "metrics must be of .*; got none"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16; got 'int8'"),
        ({"batch_size": 0}, "batch_size must be 1 or more; got 0"),
        ({"precision_k": "3"}, "precision_k must be a whole number; got '3'"),
        ({"kid_subset_size": 1}, "kid_subset_size must be 2 or more; got 1"),
        ({"permutations": 0}, "permutations must be 1 or more; got 0"),
        ({"curve": True, "metrics": ["p_value"]}, "curve needs one of the metrics cmmd, fd, kid"),
        ({"curve": True, "curve_repeats": 0}, "curve_repeats must be 1 or more; got 0"),
        ({"seed": -1}, "seed must be 0 or more; got -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(**settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"metrics": ["kid"]},
            "kid needs 1000 images or more, its kid_subset_size, in each set; the smaller one has 41",
        ),
        ({"curve": True}, "a curve needs 60 predictions or more; there are 41"),
    ],
)
def test_too_few_images(data, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate_sources(*sources(data), ["no encoder is loaded"], Evaluation(**settings))


def test_one_image(data, tmp_path):
    opened = sources(data, save_pictures(tmp_path / "one", 1, 0))
    with pytest.raises(ValueError, match="fd needs 2 images or more in each set; the smaller one has 1"):
        evaluate_sources(*opened, ["no encoder is loaded"], Evaluation())
    with pytest.raises(ValueError, match="fd_infinity needs 2 references or more; there are 1"):
        evaluate_sources(*opened[::-1], ["no encoder is loaded"], Evaluation(metrics=["fd_infinity"]))
    (row,) = evaluate_sources(*opened, [str(data / "clip")], Evaluation(metrics=["cmmd"]))
    assert row["cmmd"] > 0 and row["cmmd_unbiased"] is None and row["standard_error"] is None
    assert "| – |" in score_table([row])


def test_metrics_of_unit_vectors_are_left_out_of_other_encoders(data):
    clip = str(data / "clip")
    (row,) = evaluate_sources(*sources(data), [clip], Evaluation(normalize=False))
    assert "cmmd" not in row and row["frechet_distance"] > 0
    assert row["notes"] == ["cmmd is defined for unit vectors, which this encoder doesn't give"]
    with pytest.raises(ValueError, match="cmmd is defined for unit vectors, which .*clip doesn't give"):
        evaluate_sources(*sources(data), [clip], Evaluation(metrics=["cmmd"], normalize=False))


def test_moments_in_place_of_images(data, tmp_path):
    clip = str(data / "clip")
    (encoded,) = embed_sources(*sources(data), [clip], Evaluation())
    (whole,) = score_sources([encoded], Evaluation())
    paths = {role: tmp_path / f"{role}.safetensors" for role in ("predictions", "references")}
    for role, path in paths.items():
        encoded.sets[role].moments.save(path, encoded.metadata)
    for predictions in (data / "predictions", paths["predictions"]):
        opened = open_source(str(predictions)), open_source(str(paths["references"]))
        (row,) = evaluate_sources(*opened, [clip], Evaluation())
        for key in ("cmmd", "cmmd_unbiased", "frechet_distance", "n_predictions", "n_references"):
            assert row[key] == pytest.approx(whole[key], rel=1e-12)
    with pytest.raises(ValueError, match=r"encoder.*clip.*unlike|not the encoder|'normalized|normalized"):
        evaluate_sources(*opened, [clip], Evaluation(metrics=["fd"], normalize=False))
    with pytest.raises(ValueError, match="predictions.safetensors is a file of moments; fd_infinity and kid needs"):
        evaluate_sources(*opened, [clip], Evaluation(metrics=["fd", "fd_infinity", "kid"]))
    with pytest.raises(ValueError, match="the curve needs the images"):
        evaluate_sources(*opened, [clip], Evaluation(curve=True))
    with pytest.raises(ValueError, match="file of moments and has no config, split or column"):
        open_source(str(paths["references"]), split="train")


# --- Curve, table, picture ---


def gaussian(n, dim, seed, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator) + mean, dim=1)


def held(vectors):
    return Embedded(Moments.zeros(vectors.shape[1]).update(vectors), vectors)


def test_curve(data):
    x, y = gaussian(500, 20, 0, 1.0), held(gaussian(900, 20, 1))
    curve = score_curve(x, y, ["fd", "cmmd", "kid"], repeats=5, seed=3)
    assert curve["counts"] == [500, 250, 125, 62, 31]
    for key in ("cmmd", "cmmd_unbiased", "frechet_distance", "kid"):
        assert [len(values) for values in curve[key]] == [1, 2, 4, 5, 5]
    whole = score(held(x), y, ["cmmd", "fd"])
    for key in ("cmmd", "cmmd_unbiased", "frechet_distance"):
        assert curve[key][0][0] == pytest.approx(whole[key], rel=1e-9)
    chosen = torch.randperm(900, generator=torch.Generator().manual_seed(4))[:500]
    assert curve["kid"][0][0] == pytest.approx(cubic_mmd(x, y.embeddings[chosen]), rel=1e-6)
    means = {key: [np.mean(values) for values in curve[key]] for key in curve if key not in ("counts", "fd_limit")}
    assert means["frechet_distance"] == sorted(means["frechet_distance"])  # few images: biased upwards
    assert means["cmmd"][-1] > 1.02 * means["cmmd"][0]
    spread = np.std(curve["cmmd_unbiased"][-1]) / 5**0.5
    assert abs(means["cmmd_unbiased"][-1] - means["cmmd_unbiased"][0]) < 4 * spread
    pairs = [(n, v) for n, values in zip([500, 250, 125, 62], curve["frechet_distance"], strict=False) for v in values]
    assert curve["fd_limit"] == pytest.approx(frechet_limit(*map(list, zip(*pairs, strict=True))).value, abs=1e-9)
    alone = score_curve(x, y, ["fd"], repeats=5, seed=3)["frechet_distance"]  # of the same subsets
    assert [*chain(*alone)] == pytest.approx([*chain(*curve["frechet_distance"])], rel=1e-9)
    assert score_curve(gaussian(500, 200, 0), held(gaussian(9, 200, 1)), ["fd"])["fd_limit"] is None
    with pytest.raises(ValueError, match="60 predictions or more; got 59"):
        score_curve(x[:59], y, ["fd"])
    with pytest.raises(ValueError, match="repeats must be 1 or more; got 0"):
        score_curve(x, y, ["fd"], repeats=0)


def test_curve_subsets_of_one_count_are_disjoint():
    x = torch.zeros(120, 120).fill_diagonal_(1.0)  # the mean of a subset tells its images
    seen = []

    class Spy(Moments):
        @property
        def mean(self):
            return torch.ones(120, dtype=torch.float64) / 120**0.5

    reference = Embedded(Spy(1, torch.ones(120, dtype=torch.float64), torch.eye(120, dtype=torch.float64)), None)
    original = Moments.update

    def update(self, vectors):
        seen.append(vectors.nonzero()[:, 1].tolist())
        return original(self, vectors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moments, "update", update)
        patch.setattr("evaluate_metrics.scoring.scores.frechet_distance", lambda a, b: 0.0)
        score_curve(x, reference, ["fd"], repeats=3)
    assert [len(s) for s in seen] == [120, 60, 60, 30, 30, 30]
    assert sorted(seen[1] + seen[2]) == list(range(120)) and len({*seen[3], *seen[4], *seen[5]}) == 90


def test_table():
    rows = [
        {"encoder": "clip", "dim": 768, "cmmd": 0.51234, "cmmd_unbiased": 0.5, "standard_error": 0.0123, "notes": []},
        {"encoder": "inception", "dim": 2048, "frechet_distance": 12.34567, "kid": 0.001, "kid_std": 2e-4},
    ]
    rows[1]["notes"] = ["a note"]
    assert score_table(rows).splitlines() == [
        "| encoder | dimensions | protocol | CMMD | CMMD unbiased | FD | KID |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| clip | 768 | clip | 0.5123 | 0.5 ± 0.012 | – | – |",
        "| inception | 2048 | inceptio | – | – | 12.35 | 0.001 ± 0.0002 |",
        "",
        "- inception: a note",
        "- rows of different encoders or preprocessings (2 of them) do not compare: read each protocol for itself",
    ]


def test_picture():
    rows = []
    for encoder, dim, metrics in (("clip", 20, ["cmmd", "fd", "kid"]), ("inception", 70, ["fd", "kid"])):
        curve = score_curve(gaussian(500, dim, 0), held(gaussian(300, dim, 1)), metrics)
        rows.append({"encoder": encoder, "dim": dim, "curve": curve})
    figure = plot_score_curves(rows)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == [
        *("CMMD, clip", "Frechet distance, clip", "KID, clip"),
        *("Frechet distance, inception", "KID, inception"),
    ]
    line, limit = drawn[1].lines[0], drawn[1].lines[1]
    assert list(line.get_xdata()) == rows[0]["curve"]["counts"]
    expected = [np.mean(values) for values in rows[0]["curve"]["frechet_distance"]]
    assert list(line.get_ydata()) == pytest.approx(expected, rel=1e-6)
    assert limit.get_ydata()[0] == rows[0]["curve"]["fd_limit"]
    labels = [text.get_text() for text in drawn[3].get_legend().get_texts()]
    assert "fewer images than 70 dimensions" in labels
    assert [axes.get_ylabel() for axes in drawn[:3]] == ["CMMD", "Frechet distance", "KID"]
    assert "none of a single subset" in figure.get_supxlabel()
    (grey,) = [patch for patch in drawn[3].patches if patch.get_label() == "fewer images than 70 dimensions"]
    assert grey.get_x() + grey.get_width() == 70


# --- The script ---

SCRIPT = ROOT / "scripts" / "evaluate_images.py"


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("evaluate_metrics.commands.evaluate_images")


def test_flags_are_the_settings(script):
    flags = {field.name: field.default for field in dataclasses.fields(script.EvaluateArguments)}
    settings = {field.name: field.default for field in dataclasses.fields(Evaluation)}
    assert settings.keys() <= flags.keys()
    assert all(flags[name] == value for name, value in settings.items() if name not in ("metrics", "cache_dir"))


def test_script_on_one_and_two_processes(script, data, vectors, tmp_path, monkeypatch, capsys):
    many = save_pictures(tmp_path / "many", 600, 3)  # two chunks, one for each process
    flags = ["--predictions", str(many), "--references", str(data / "references"), "--encoders", str(data / "clip")]
    flags += ["--metrics", "cmmd", "fd", "p_value", "--permutations", "19", "--save_moments", "--use_cpu"]
    alone = [*flags, "--curve", "--cache_dir", str(tmp_path / "c"), "--output_dir", str(tmp_path / "one")]
    monkeypatch.setattr(sys, "argv", ["evaluate_images.py", *alone])
    script.main()
    printed = capsys.readouterr()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    launch += [str(SCRIPT), *flags, "--no_use_cache", "--output_dir", str(tmp_path / "two")]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    two = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert two.returncode == 0, two.stderr

    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [result["processes"] for result in results] == [1, 2]
    rows = [result["scores"][0] for result in results]
    for key in ("cmmd", "cmmd_unbiased", "standard_error", "p_value", "frechet_distance", "n_predictions"):
        assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-5)
    assert rows[0]["n_predictions"] == 600 and rows[0]["curve"]["counts"] == [600, 300, 150, 75, 37]
    assert (tmp_path / "one" / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in (tmp_path / "one").iterdir() if path.suffix not in (".safetensors", "")) == [
        *("curve.png", "results.json", "results.md")
    ]
    table = (tmp_path / "one" / "results.md").read_text()
    assert table in printed.out and f"{rows[0]['cmmd']:.4g}" in table
    assert "600/600" in printed.err and "512/512" in two.stderr  # a process counts its own images
    assert len(list((tmp_path / "c").rglob("*.safetensors"))) == 3
    slug = str(data / "clip").strip("/").replace("/", "-")
    saved = [Moments.load(tmp_path / name / f"references-{slug}.safetensors") for name in ("one", "two")]
    assert saved[0][0].n == saved[1][0].n == 60
    torch.testing.assert_close(saved[0][0].outer, saved[1][0].outer, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(saved[0][0].sum, vectors[1].double().sum(0), rtol=1e-5, atol=1e-5)
    assert saved[0][1]["dtype"] == "float32" and saved[0][1]["source"] == str(data / "references")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--predictions", "nowhere"], "nowhere"),
        (["--metrics", "kid"], "kid needs 1000 images"),
        (["--permutations", "0"], "permutations must be 1 or more; got 0"),
    ],
)
def test_script_says_what_is_wrong_before_it_loads_a_model(
    script, data, tmp_path, monkeypatch, capsys, flags, message
):
    command = ["--predictions", str(data / "predictions"), "--references", str(data / "references"), "--use_cpu"]
    command += ["--output_dir", str(tmp_path), *flags]
    monkeypatch.setattr(sys, "argv", ["evaluate_images.py", *command])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


WAITS = """
import os, pathlib, time
import numpy as np

def encode(images):
    if len(images) > 1:
        pathlib.Path("reached").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.05)
    return np.stack([np.asarray(i, np.float32).reshape(-1, 3).mean(0) + 1 for i in images])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_ended_command_leaves_nothing_half_written_and_goes_on(script, data, tmp_path, monkeypatch, capsys, number):
    """The second of two encoders waits; then the process is ended, and the same command run here to the end."""
    monkeypatch.chdir(tmp_path)
    name = f"waits_{number}"
    Path(f"{name}.py").write_text(WAITS)
    clip, output = str(data / "clip"), tmp_path / "of a run"
    flags = ["--predictions", str(data / "predictions"), "--references", str(data / "references"), "--use_cpu"]
    flags += ["--encoders", clip, f"{name}.py:encode", "--cache_dir", "cache", "--output_dir", str(output)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(SCRIPT), *flags]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        while not Path("reached").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        monkeypatch.setattr(sys, "argv", ["evaluate_images.py", *flags])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == 2
        assert "of a run' is being written by another process" in capsys.readouterr().err.splitlines()[-1]
        process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        last = told.strip().splitlines()[-2:]
        assert last[0].startswith("stopped by SIGTERM: embeddings so far are kept in the cache")
        assert shlex.split(last[1]) == ["python", *command[1:]]
    assert not begun(output)
    kept = {path: path.stat().st_ino for path in Path("cache").rglob("*.safetensors")}
    assert len(kept) == 2
    Path("go").touch()
    (output / ".results.json.7.tmp").write_text("half")
    script.main()
    assert {path: path.stat().st_ino for path in Path("cache").rglob("*.safetensors")} == kept  # not made anew
    found = json.loads((output / "results.json").read_text())["scores"]
    assert {path.name for path in output.iterdir()} - {LOCK} == {"results.json", "results.md"}
    opened = sources(data)
    for row, encoder in zip(found, (clip, f"{name}.py:encode"), strict=True):
        (whole,) = evaluate_sources(*opened, [encoder], Evaluation())
        for one in (row, whole):
            del one["embedding_seconds"]
        assert row == whole
        of_scores = {key for metric in Evaluation().metrics for key in keys_of(SCORES[metric])}
        assert row.keys() - OF_ROWS - of_scores == {"error_bound"}
    del sys.modules[name]
