import ast
import hashlib
import io
import pickle
import sys
import warnings
import zipfile

import datasets
import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.frechet import frechet_distance, kernel_distance
from evaluate_metrics.core.inception import RESIZINGS, Inception, resize
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.publishing import write_space
from hf_common.images import to_rgb
from tests import ROOT

METRICS = ROOT / "evaluate_metrics"
FID = METRICS / "fid"
pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")


def colours(images):
    """An encoder with few dimensions: mean and spread of each channel."""
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


def pictures(n, seed, shift=0):
    rng = np.random.default_rng(seed)
    levels = rng.integers(30, 150, (n, 1, 1, 3)) + shift
    return [Image.fromarray(p.astype(np.uint8)) for p in (levels + rng.integers(0, 60, (n, 9, 8, 3))).clip(0, 255)]


def expected(predictions, references):
    x, y = (Moments.zeros(6).update(colours(images)) for images in (predictions, references))
    return frechet_distance(x, y)


@pytest.fixture(scope="module")
def fid():
    return evaluate.load(str(FID), encoder=colours)


@pytest.fixture(scope="module")
def sets():
    return pictures(23, 0), pictures(31, 1, shift=20)


def fresh(**options):
    return evaluate.load(str(FID), **{"encoder": colours, **options})


def test_compute_takes_unequal_numbers(fid, sets):
    result = fid.compute(predictions=sets[0], references=sets[1])
    assert result.pop("frechet_distance") == pytest.approx(expected(*sets), rel=1e-9)
    assert result.pop("encoder").endswith("colours") and result.pop("preprocessing")
    assert len(result.pop("digest")) == 16
    assert result == {"n_predictions": 23, "n_references": 31}


def test_add_and_add_batch_give_what_compute_gives(fid, sets):
    predictions, references = sets
    for image in predictions[:3]:
        fid.add(prediction=image)
    fid.add(prediction=predictions[3], reference=references[0])
    fid.add_batch(references=references[1:30])
    fid.add_batch(predictions=predictions[4:20], references=references[30:])
    result = fid.compute(predictions=predictions[20:])
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)
    assert (result["n_predictions"], result["n_references"]) == (23, 31)
    with pytest.raises(ValueError, match="predictions are missing"):  # nothing is left of the last result
        fid.compute(references=references)


def test_add_fills_batches_and_keeps_no_more_images_than_one(sets):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return colours(images)

    metric = fresh(encoder=encoder, batch_size=4)
    for image in sets[0]:
        metric.add(prediction=image)
    assert seen == [1] + [4] * 5  # the first one tells the number of dimensions
    assert len(metric._waiting["predictions"]) == 3
    result = metric.compute(references=sets[1])
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)
    assert sum(seen) == 1 + 23 + 31


def test_references_once_and_predictions_many_times(fid, sets, tmp_path):
    moments, metadata = fid.moments(sets[1])
    moments.save(tmp_path / "references.safetensors", metadata)
    for predictions in (sets[0], pictures(8, 5), sets[1]):
        for reference_moments in ((moments, metadata), tmp_path / "references.safetensors"):
            result = fid.compute(predictions=predictions, reference_moments=reference_moments)
            assert result["frechet_distance"] == pytest.approx(expected(predictions, sets[1]), rel=1e-9, abs=1e-9)
            assert result["n_references"] == 31
    assert abs(result["frechet_distance"]) < 1e-9


def test_kinds_of_images(fid, sets, tmp_path):
    """Paths, arrays, tensors, one array for all, and a column of a data set are the same images."""
    predictions, references = sets
    arrays = [np.asarray(image) for image in predictions]
    paths = [tmp_path / f"{number}.png" for number in range(len(predictions))]
    for image, path in zip(predictions, paths, strict=True):
        image.save(path)
    column = datasets.Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column(
        "image", datasets.Image()
    )
    tensors = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    for kind in (paths, arrays, np.stack(arrays), np.stack(arrays) / np.float32(255), tensors, column["image"]):
        result = fid.compute(predictions=kind, references=references)
        assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)


def test_combine(sets):
    predictions, references = sets
    references = references[:23]
    both = evaluate.combine({"a": fresh(), "b": fresh(keep_embeddings=True)})
    with pytest.raises(ValueError, match="smaller set, 23; got 1000"):
        both.compute(predictions=predictions, references=references)
    both = evaluate.combine({"a": fresh(), "b": fresh()})
    results = [both.compute(predictions=predictions, references=references)]
    both.add_batch(predictions=predictions, references=references)
    results.append(both.compute())
    for prediction, reference in zip(predictions, references, strict=True):
        both.add(prediction, reference)
    results.append(both.compute())
    for result in results:
        for name in "ab":
            assert result[f"{name}_frechet_distance"] == pytest.approx(expected(predictions, references), rel=1e-9)


def test_kid(sets):
    metric = fresh(keep_embeddings=True)
    metric.add_batch(predictions=sets[0][:10])
    metric.add(prediction=sets[0][10])
    result = metric.compute(predictions=sets[0][11:], references=sets[1], kid_subsets=5, kid_subset_size=20)
    x, y = (torch.from_numpy(colours(images)) for images in sets)
    assert (result["kid"], result["kid_std"]) == pytest.approx(kernel_distance(x, y, 5, 20), rel=1e-6)
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)
    with pytest.raises(ValueError, match="keep_embeddings=True.*not reference_moments"):
        metric.compute(predictions=sets[0], reference_moments=metric.moments(sets[1]))


def test_the_subsets_of_the_kid_are_checked_before_an_image_is_embedded(sets, tmp_path):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return colours(images)

    metric = fresh(keep_embeddings=True, encoder=encoder)
    for number, image in enumerate(sets[0]):
        image.save(tmp_path / f"{number}.png")
    for options, message in (
        ({}, "smaller set, 23; got 1000"),
        ({"kid_subset_size": 24}, "kid_subset_size must be .* smaller set, 23; got 24"),
        ({"kid_subset_size": 1}, "smaller set, 23; got 1"),
        ({"kid_subsets": 0, "kid_subset_size": 2}, "kid_subsets must be 1 or more; got 0"),
    ):
        for predictions, references in (sets, (tmp_path, sets[1]), (sets[0], iter(sets[1])), (sets[1], tmp_path)):
            with pytest.raises(ValueError, match=message):
                metric.compute(predictions=predictions, references=references, **options)
    with pytest.raises(ValueError, match="predictions must hold 2 images or more for a covariance, got 1"):
        metric.compute(predictions=sets[0][:1], references=sets[1], kid_subset_size=2)
    for options in ({"kid_subset_size": 9.0}, {"kid_subset_size": "9"}, {"kid_subset_size": 9, "kid_subsets": 2.5}):
        with pytest.raises(TypeError, match=r"subset(_size|s) must be an integer"):
            metric.compute(predictions=sets[0], references=sets[1], **options)
    assert seen == []
    metric.add_batch(predictions=sets[0][:20])
    metric.add(prediction=sets[0][20])
    before = sum(seen)
    with pytest.raises(ValueError, match="smaller set, 23; got 24"):  # 20 added, 1 waiting, 2 given
        metric.compute(predictions=sets[0][21:], references=sets[1], kid_subset_size=24)
    assert sum(seen) == before
    assert metric.compute(predictions=sets[0][21:], references=sets[1], kid_subset_size=23)["n_predictions"] == 23


def test_folders_are_sets(fid, sets, tmp_path):
    for name, images in zip(("a", "b"), sets, strict=True):
        (tmp_path / name / "inner").mkdir(parents=True)
        for number, image in enumerate(images):
            image.save(tmp_path / name / ("inner" if number % 2 else "") / f"{number:02}.png")
    result = fid.compute(predictions=tmp_path / "a", references=str(tmp_path / "b"))
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)
    fid.add_batch(predictions=str(tmp_path / "a"))
    moments = fid.moments(tmp_path / "b")
    assert fid.compute(reference_moments=moments)["n_references"] == 31


def test_moments_of_another_function_of_the_same_name_are_refused(sets, tmp_path):
    first, second = (fresh(encoder=lambda images, k=k: colours(images) ** k) for k in (1, 2))
    moments, metadata = first.moments(sets[1])
    moments.save(tmp_path / "m.safetensors", metadata)
    assert first.compute(predictions=sets[0], reference_moments=tmp_path / "m.safetensors")["n_references"] == 31
    for given in ((moments, metadata), tmp_path / "m.safetensors"):
        with pytest.raises(ValueError, match="reference_moments are of .*probe: .* of their norm apart"):
            second.compute(predictions=sets[0], reference_moments=given)


def test_a_device_that_is_not_there_is_one_clear_error(sets):
    metric = evaluate.load(str(FID), device="xpu")
    with pytest.raises(ValueError, match="device must be of those that torch .*; got 'xpu'"):
        metric.compute(predictions=sets[0], references=sets[1])


def test_a_used_metric_can_be_pickled(sets):
    """Also with images added: the encoder is made anew, and must be the one that they were embedded by."""
    metric = fresh(keep_embeddings=True, batch_size=4)
    options = {"kid_subsets": 3, "kid_subset_size": 9}
    value = metric.compute(predictions=sets[0], references=sets[1], **options)
    assert pickle.loads(pickle.dumps(metric)).compute(predictions=sets[0], references=sets[1], **options) == value
    metric.add_batch(references=sets[1], predictions=sets[0][:9])
    metric.add(prediction=sets[0][9])
    copies = [pickle.loads(pickle.dumps(metric)) for _ in range(2)]
    for one in (metric, copies[0]):
        assert one.compute(predictions=sets[0][10:], **options) == value
    with pytest.raises(ValueError, match="the images added before are of .*colours"):
        copies[1].compute(predictions=sets[0], encoder=lambda images: colours(images)[:, :3], **options)
    assert copies[1].compute(predictions=sets[0][10:], **options) == value


def test_few_images_are_warned_of(fid, sets):
    with pytest.warns(UserWarning, match="6 dimensions from 6 images"):
        fid.compute(predictions=sets[0][:6], references=sets[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "predictions are missing"),
        ({"predictions": "pngs"}, "references are missing"),
        ({"references": "pngs"}, "predictions are missing"),
        ({"predictions": [], "references": "pngs"}, "predictions must hold 2 images or more.*got 0"),
        ({"predictions": "pngs", "references": "one"}, "references must hold 2 images or more.*got 1"),
        ({"predictions": "pngs", "references": "pngs", "reference_moments": "x"}, "references are given twice"),
        ({"predictions": "broken", "references": "pngs"}, "broken.png"),
        ({"predictions": "nan", "references": "pngs"}, r"predictions\[0\].*nan"),
        ({"predictions": "pngs", "reference_moments": "other"}, "other_encoder.*colours"),
        ({"predictions": "pngs", "references": "pngs", "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_input(fid, tmp_path, arguments, message):
    (tmp_path / "broken.png").write_bytes(b"no image")
    other = (Moments.zeros(6), {"encoder": "other_encoder", "preprocessing": "none", "normalized": "false"})
    values = {
        "pngs": pictures(5, 0),
        "one": pictures(1, 0),
        "broken": [pictures(1, 0)[0], tmp_path / "broken.png"],
        "nan": [np.full((4, 4, 3), np.nan, np.float32)] * 2,
        "other": other,
    }
    arguments = {
        key: values.get(value, value) if isinstance(value, str) else value for key, value in arguments.items()
    }
    with pytest.raises(ValueError, match=message):
        fid.compute(**arguments)


def test_an_error_adds_nothing_and_forgets_nothing(sets, tmp_path):
    metric = fresh()
    metric.add_batch(predictions=sets[0], references=sets[1])
    with pytest.raises(ValueError, match="none.png"):
        metric.add_batch(references=[sets[0][0], tmp_path / "none.png"], predictions=sets[0])
    with pytest.raises(ValueError, match="none.png"):
        metric.compute(predictions=[sets[0][0], tmp_path / "none.png"])
    assert metric.compute()["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)


def test_embeddings_of_two_encoders_never_meet(sets):
    metric = fresh()
    metric.add_batch(references=sets[1])
    with pytest.raises(ValueError, match="the images added before.*colours"):
        metric.compute(predictions=sets[0], encoder=lambda images: colours(images)[:, :3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        fresh().compute(predictions=sets[0], references=sets[1], encoder=lambda images: colours(images) * np.nan)


def test_a_callable_has_its_own_device(sets):
    result = evaluate.load(str(FID), device="cpu").compute(predictions=sets[0], references=sets[1], encoder=colours)
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)
    with pytest.raises(ValueError, match="a callable has its own, got 'cpu'"):
        fresh(device="cpu")


def test_configurations_and_processes():
    with pytest.raises(ValueError, match="tensorflow.*pytorch.*clean.*'legacy'"):
        fresh(config_name="legacy")
    with pytest.raises(ValueError, match="num_process must be 1, got 2"):
        fresh(num_process=2, process_id=0)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Weights of a random network, their file and its digest."""
    torch.manual_seed(0)
    model, path = Inception(), tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(model.state_dict(), path)
    return model, {"weights": path, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_the_inception_network_is_the_default(inception):
    model, options = inception
    metric = evaluate.load(str(FID), device="cpu", **options)
    sets = pictures(2, 0), pictures(2, 1)
    with pytest.warns(UserWarning, match="2048 dimensions from 2 images"):
        result = metric.compute(predictions=sets[0], references=sets[1])
    x, y = (model(torch.stack([resize(image, "tensorflow") for image in images])).double().numpy() for images in sets)
    # Two points each: the covariances have rank 1, and the root's trace is |a.b| / 2 of the differences a, b.
    a, b = x[0] - x[1], y[0] - y[1]
    value = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a @ a + b @ b) / 2 - abs(a @ b)
    assert result["frechet_distance"] == pytest.approx(value, rel=1e-4)
    assert result["encoder"] == "inception" and result["preprocessing"] == RESIZINGS["tensorflow"]


@pytest.mark.parametrize("config", ["pytorch", "clean"])
def test_configurations_are_resizings(inception, config):
    model, options = inception
    moments, metadata = evaluate.load(str(FID), config, device="cpu", **options).moments(pictures(1, 0))
    torch.testing.assert_close(moments.mean.float(), model(resize(pictures(1, 0)[0], config)[None])[0])
    assert metadata["preprocessing"] == RESIZINGS[config]


def test_resizings_are_not_mixed(inception):
    metrics = [evaluate.load(str(FID), config, device="cpu", **inception[1]) for config in ("pytorch", "clean")]
    images = pictures(2, 0)
    with pytest.raises(ValueError, match="no antialias.*bicubic|bicubic.*no antialias"):
        metrics[0].compute(predictions=images, reference_moments=metrics[1].moments(images))


def test_a_vision_model_of_transformers(fid, tmp_path):
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
        )
    ).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    images = pictures(3, 0), pictures(4, 1)
    result = fid.compute(predictions=images[0], references=images[1], encoder=str(tmp_path), device="cpu")
    processor = ViTImageProcessorPil.from_pretrained(tmp_path)
    with torch.no_grad():
        x, y = (Moments.zeros(16).update(model(**processor(i, return_tensors="pt")).pooler_output) for i in images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert result["frechet_distance"] == pytest.approx(frechet_distance(x, y), rel=1e-4)
    assert result["encoder"] == str(tmp_path)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The Space as it is published."""
    folder = tmp_path_factory.mktemp("space") / "fid"
    folder.mkdir()
    write_space(FID, "user/fid", folder)
    return folder


def test_the_space_gives_what_the_folder_gives(space, sets, tmp_path, monkeypatch):
    assert {path.name for path in space.iterdir()} == {"README.md", "app.py", "fid.py", "requirements.txt"}
    monkeypatch.chdir(space.parent)
    result = evaluate.load("./fid", encoder=colours).compute(predictions=sets[0], references=sets[1])
    assert result["frechet_distance"] == pytest.approx(expected(*sets), rel=1e-9)


def test_the_space_is_one_file_beside_its_app(space):
    """Of a metric, `evaluate` copies its script and the siblings that it imports itself."""
    for path in space.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert all(node.level == 0 for node in nodes)
        assert not {node.module.split(".")[0] for node in nodes} & {"evaluate_metrics", "hf_common"}


def test_files_that_other_programs_read_otherwise_are_those_that_the_card_names(tmp_path):
    """pytorch-fid, torch-fidelity and clean-fid take `Image.open(file).convert("RGB")`."""
    draw, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    rgb = Image.fromarray(draw.integers(0, 256, (7, 5, 3), dtype=np.uint8))
    kinds = {
        "rgb": (rgb, {}), "jpeg": (rgb, {"format": "JPEG"}), "grey": (rgb.convert("L"), {}),
        "alpha": (Image.fromarray(draw.integers(0, 256, (7, 5, 4), dtype=np.uint8), "RGBA"), {}),
        "turned": (rgb, {"exif": exif}),
        "16 bits": (Image.fromarray(draw.integers(256, 65536, (7, 5), dtype=np.uint16)), {}),
    }  # fmt: skip
    same = set()
    for name, (image, options) in kinds.items():
        image.save(tmp_path / name, **{"format": "PNG", **options})
        theirs = Image.open(tmp_path / name).convert("RGB")
        ours = to_rgb(tmp_path / name)
        if ours.size == theirs.size and np.array_equal(np.asarray(ours), np.asarray(theirs)):
            same.add(name)
    assert same == {"rgb", "jpeg", "grey"}
    card = (FID / "README.md").read_text()
    assert "for 8-bit RGB and grey files" in card
    for words in ("drop an alpha channel", "leave an EXIF\nrotation undone", "cut 16-bit grey levels at 255"):
        assert words in card


def test_docstrings_tell_what_compute_takes(fid):
    for method in (fid.compute, fid.add, fid.add_batch):
        assert "reference_moments: instead of" in method.__doc__
    assert fid.name == "fid" and "Frechet" in fid.description and "heusel2017gans" in fid.citation


def test_card_has_the_headings_of_evaluate_and_the_metadata_of_a_space():
    card = RepoCard.load(FID / "README.md", ignore_metadata_errors=False)
    assert (
        card.data.sdk == "gradio" and card.data.app_file == "app.py" and {"evaluate", "metric"} <= set(card.data.tags)
    )
    headings = [line.lstrip("# ") for line in card.text.splitlines() if line.startswith("#")]
    assert [heading for heading in headings if not heading.startswith("Metric Card")] == [
        *("Metric Description", "How to Use", "Inputs", "Output Values", "Values from Popular Papers", "Examples"),
        *("Limitations and Bias", "Citation", "Further References"),
    ]


def test_requirements_name_every_library_that_is_imported(space):
    imported = set()
    for path in space.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    named = {line.split(">=")[0] for line in (FID / "requirements.txt").read_text().split()}
    assert {"pillow" if name == "PIL" else name for name in imported - sys.stdlib_module_names} == named


# --- Files of other programs ---


@pytest.fixture
def statistics(tmp_path):
    """Embeddings of 40 images, and a file of their mean and covariance as pytorch-fid writes it."""
    images = pictures(40, 1)
    x = make_encoder(colours, normalize=False).encode(images).double().numpy()
    np.savez_compressed(tmp_path / "stats.npz", mu=np.mean(x, axis=0), sigma=np.cov(x, rowvar=False))
    return images, x, str(tmp_path / "stats.npz")


def test_statistics_of_pytorch_fid_in_place_of_references(statistics):
    images, _, path = statistics
    metric, predictions = fresh(encoder=colours), pictures(30, 2)
    expected = metric.compute(predictions=predictions, references=images)
    for given in (
        {"reference_moments": path},
        {"references": path},
        {"reference_moments": path, "reference_count": 40},
    ):
        found = metric.compute(predictions=predictions, **given)
        assert found["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-9)
        assert found["n_references"] == given.get("reference_count")
        assert "names no encoder" in found["notes"][0]
    assert "notes" not in expected
    back = metric.compute(predictions=path, references=predictions)
    assert back["frechet_distance"] == pytest.approx(expected["frechet_distance"], rel=1e-9)
    assert back["n_predictions"] is None
    for arguments, message in (
        ({"reference_count": 40, "references": images}, "reference_count is for a file of mean and covariance"),
        ({"reference_moments": path, "references": images}, "references are given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, **arguments)
    with pytest.raises(ValueError, match="^reference_moments has 6 dimensions, .* 2$"):
        fresh(encoder=lambda images: np.ones((len(images), 2))).compute(predictions=predictions, references=path)
    metric.add(prediction=predictions[0])
    with pytest.raises(ValueError, match="predictions are given twice, as images and as a file of statistics"):
        metric.compute(predictions=path, references=predictions)


def test_kid_from_a_file_of_embeddings(statistics, tmp_path):
    images, x, path = statistics
    metric, predictions = fresh(encoder=colours, keep_embeddings=True), pictures(30, 2)
    options = {"kid_subset_size": 9, "kid_subsets": 4}
    expected = metric.compute(predictions=predictions, references=images, **options)
    np.savez(tmp_path / "feats.npz", feats=x.astype(np.float32))
    found = metric.compute(predictions=predictions, references=tmp_path / "feats.npz", **options)
    assert found["kid"] == pytest.approx(expected["kid"], rel=1e-6) and found["n_references"] == 40
    with pytest.raises(ValueError, match="keep_embeddings=True: scores of pairs need references, .*not reference_mom"):
        metric.compute(predictions=predictions, reference_moments=path)
    with pytest.raises(ValueError, match="pairs need predictions, or their embeddings, not mean and covariance"):
        metric.compute(predictions=path, references=images)


def test_images_of_arrays_and_archives(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", images)
    with zipfile.ZipFile(tmp_path / "samples.zip", "w") as archive:
        for number, pixels in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{number:02}.png", buffer.getvalue())
    metric, references = fresh(encoder=colours), pictures(20, 3)
    expected = metric.compute(predictions=images, references=references)
    for name in ("samples.npz", "samples.zip"):
        found = metric.compute(predictions=str(tmp_path / name), references=references)
        assert found == {**expected, "frechet_distance": pytest.approx(expected["frechet_distance"], rel=1e-9)}


def test_a_bar_shows_where_it_takes_long(monkeypatch, capsys):
    metric, images = fresh(encoder=colours), pictures(9, 0)
    metric.compute(predictions=images, references=images)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("evaluate_metrics.core.image_sets.BAR_DELAY", 0)
    metric.compute(predictions=images, references=iter(images))
    told = capsys.readouterr().err
    assert "predictions: " in told and "9/9" in told and "references: " in told and "9image" in told
    evaluate.disable_progress_bar()
    try:
        metric.compute(predictions=images, references=images)
    finally:
        evaluate.enable_progress_bar()
    assert capsys.readouterr().err == ""
