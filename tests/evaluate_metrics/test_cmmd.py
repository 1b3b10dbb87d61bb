import ast
import sys
import warnings

import datasets
import evaluate
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.publishing import write_space
from tests import ROOT
from tests.evaluate_metrics.clip_files import save_tiny_clip

FOLDER = ROOT / "evaluate_metrics" / "cmmd"
PHOTOGRAPHS = [Image.fromarray(array) for array in load_sample_images().images]
pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")  # of few images
RESULT = {
    "cmmd",
    "cmmd_unbiased",
    "standard_error",
    "error_bound",
    "frechet_distance",
    "n_predictions",
    "n_references",
    "encoder",
    "preprocessing",
    "digest",
}


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The Space as it is published, and a tiny CLIP."""
    place = tmp_path_factory.mktemp("space")
    (place / "cmmd").mkdir()
    write_space(FOLDER, "user/cmmd", place / "cmmd")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        projection_dim=6,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(place / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 28}).save_pretrained(place / "clip")
    return place


@pytest.fixture
def metric(space, tmp_path):
    return load(space, tmp_path)


def load(space, tmp_path, config="clip", **options):
    options = {"encoder": str(space / "clip"), "device": "cpu", **options}
    return evaluate.load(str(space / "cmmd"), config, cache_dir=str(tmp_path), **options)


def pieces(n, seed=0, photograph=0, size=None):
    """Pieces of a real photograph, of many shapes."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        width, height = (size, size) if size else draw.integers(24, 60, 2)
        left, top = draw.integers(0, 560), draw.integers(0, 360)
        found.append(PHOTOGRAPHS[photograph].crop((left, top, left + width, top + height)))
    return found


A, B = pieces(9), pieces(14, seed=1, photograph=1)


def by_hand(space, predictions, references):
    encoder = make_encoder(space / "clip", device="cpu")
    return cmmd(encoder.encode(predictions), encoder.encode(references), method="pairwise")


def close(result, expected, tolerance=1e-4):
    assert result.keys() == expected.keys() == RESULT
    for key, value in expected.items():
        assert result[key] == (value if isinstance(value, str) else pytest.approx(value, abs=tolerance)), key


def test_the_space_loads_and_scores_sets_of_unequal_size(space, metric):
    result = metric.compute(predictions=A, references=B)
    exact = by_hand(space, A, B)
    assert result.keys() == RESULT
    assert -1e-6 <= exact.biased - result["cmmd"] <= result["error_bound"] + 1e-6
    assert abs(exact.unbiased - result["cmmd_unbiased"]) <= result["error_bound"] + 1e-6
    assert result["standard_error"] == pytest.approx(exact.standard_error, rel=0.05)
    assert (result["n_predictions"], result["n_references"]) == (9, 14)
    assert result["encoder"] == str(space / "clip")
    assert result["frechet_distance"] > 0
    assert all("batch_size: images" in method.__doc__ for method in (metric.add, metric.add_batch, metric.compute))
    assert metric.name == "cmmd" and set(metric.features) == {"predictions", "references"}
    same = metric.compute(predictions=A, references=A)
    assert (
        0 <= same["cmmd"] < 1e-9
        and same["cmmd_unbiased"] < 0
        and same["frechet_distance"] == pytest.approx(0, abs=1e-9)
    )


def test_one_by_one_in_batches_and_at_once_are_the_same(metric):
    expected = metric.compute(predictions=A, references=B)
    for image in A[:5]:
        metric.add(prediction=image)
    metric.add(reference=B[0])
    metric.add_batch(references=B[1:4], batch_size=2)
    metric.add_batch(predictions=A[5:7], references=iter(B[4:]))
    close(metric.compute(predictions=A[7:], batch_size=1), expected, 1e-5)
    close(metric.compute(predictions=A, references=B), expected, 1e-9)  # nothing is left of what was added


def test_waiting_images_are_embedded_when_a_batch_is_full(space, tmp_path):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return torch.from_numpy(np.stack([np.asarray(image.resize((2, 2))).ravel() for image in images]) / 255.0)

    metric = load(space, tmp_path, encoder=encoder, device=None, batch_size=4)
    for image in A:
        metric.add(prediction=image, reference=image)
    assert seen == [1, 4, 4, 4, 4]  # the first is a trial
    assert 0 <= metric.compute()["cmmd"] < 1e-9
    assert seen == [1, 4, 4, 4, 4, 1, 1]


def test_references_once_and_predictions_many_times(space, metric, tmp_path):
    expected = [metric.compute(predictions=A[:k], references=B) for k in (4, 9)]
    moments, metadata = metric.moments(B, batch_size=5)
    moments.save(tmp_path / "b.safetensors", metadata)
    assert Moments.load(tmp_path / "b.safetensors")[1]["images"] == "14"
    for source in (tmp_path / "b.safetensors", str(tmp_path / "b.safetensors"), (moments, metadata)):
        for k, result in zip((4, 9), expected, strict=True):
            close(metric.compute(predictions=A[:k], reference_moments=source), result)
    # Moments of the package's own class, and not of the Space's.
    encoder = make_encoder(space / "clip", device="cpu")
    foreign = Moments.zeros(6).update(encoder.encode(B)), encoder.metadata
    close(metric.compute(predictions=A, reference_moments=foreign), expected[1])


def test_every_kind_of_image_gives_the_same(metric, tmp_path):
    images = pieces(6, size=40)
    expected = metric.compute(predictions=images, references=B)
    arrays = np.stack([np.asarray(image) for image in images])
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    paths = sorted(tmp_path.glob("*.png"))
    column = datasets.Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column(
        "image", datasets.Image()
    )
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    kinds = [
        arrays,
        list(arrays),
        tensors,
        list(tensors / 255.0),
        paths,
        [str(path) for path in paths],
        column["image"],
    ]
    for kind in kinds:
        close(metric.compute(predictions=kind, references=B), expected, 1e-9)
    undecoded = column.cast_column("image", datasets.Image(decode=False))
    close(metric.compute(predictions=undecoded["image"], references=(image for image in B)), expected, 1e-9)


def test_another_encoder_may_be_given_at_each_call(metric):
    def corners(images):
        return np.stack([np.asarray(image.resize((2, 2))).ravel() / 255 + 0.01 for image in images])

    default = metric.compute(predictions=A, references=B)
    result = metric.compute(predictions=A, references=B, encoder=corners)
    assert result["encoder"].endswith("corners") and result["cmmd"] != default["cmmd"]
    metric.add_batch(references=B, encoder=corners)
    metric.add(prediction=A[0])  # by the encoder of the images that are held
    close(metric.compute(predictions=A[1:]), result)
    close(metric.compute(predictions=A, references=B), default)


def test_a_protocol_without_unit_vectors_is_refused_before_an_image_is_read(space, tmp_path):
    save_tiny_clip(tmp_path)
    encoder = f"clip-score:{tmp_path}"
    metric = load(space, tmp_path, encoder=encoder)
    with pytest.raises(ValueError, match=f"^encoder '{encoder}' gives no unit vectors, which CMMD is defined for"):
        metric.compute(predictions=["gone.png"], references=["gone.png"])


def test_configurations_and_combine(space, tmp_path):
    assert load(space, tmp_path, None).config_name == "default"
    metrics = {name: load(space, tmp_path, name) for name in ("clip", "siglip")}
    combined = evaluate.combine(metrics)
    result = combined.compute(predictions=A, references=B)
    assert result.keys() == {f"{name}_{key}" for name in metrics for key in RESULT}
    assert result["clip_cmmd"] == pytest.approx(result["siglip_cmmd"], abs=1e-9)
    combined.add_batch(predictions=A[:-1], references=B[:5])
    combined.add_batch(references=B[5:-1], predictions=[])
    combined.add(A[-1], B[-1])
    assert combined.compute()["clip_cmmd"] == pytest.approx(result["clip_cmmd"], abs=1e-5)
    single = evaluate.combine([load(space, tmp_path), load(space, tmp_path, "align")])
    assert "cmmd_1_cmmd" in single.compute(predictions=A, references=B)
    with pytest.raises(ValueError, match=r"configuration must be one of \('clip', 'siglip', 'align'\), got 'vgg'"):
        load(space, tmp_path, "vgg")
    with pytest.raises(ValueError, match="num_process must be 1, got 2"):
        load(space, tmp_path, num_process=2, process_id=1)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ("clip", "openai/clip-vit-large-patch14-336"),
        ("siglip", "google/siglip-so400m-patch14-384"),
        ("align", "kakaobrain/align-base"),
    ],
)
def test_the_published_model_of_a_configuration_is_asked_for_when_needed(space, tmp_path, config, model):
    metric = load(space, tmp_path, config, encoder=None)
    with pytest.raises(OSError, match=f"encoder '{model}' could not be loaded"):
        metric.compute(predictions=A, references=B)


def test_one_image_has_a_biased_score_alone(metric):
    result = metric.compute(predictions=A[:1], references=B[:1])
    assert result["cmmd"] > 0
    assert result["cmmd_unbiased"] is result["standard_error"] is result["frechet_distance"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of the Frechet distance nobody asked for, nothing is said
        three = metric.compute(predictions=A[:3], references=B)
    assert three["frechet_distance"] > 0
    assert three["standard_error"] is None and three["cmmd_unbiased"] is not None


def test_what_can_be_counted_is_checked_before_an_image_is_embedded(metric):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return torch.ones(len(images), 3)

    for sets in ({"predictions": A, "references": []}, {"predictions": [], "references": A}):
        with pytest.raises(ValueError, match="hold no images"):
            metric.compute(**sets, encoder=encoder)
    assert seen == []
    with pytest.raises(ValueError, match="references hold no images"):
        metric.compute(predictions=A, references=iter([]), encoder=encoder)  # not known before it is read
    assert sum(seen) > len(A)


def nothing(images):
    return torch.full((len(images), 4), float("nan"))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"references": B}, ValueError, "predictions are missing"),
        ({"predictions": A}, ValueError, "references are missing: .* or give reference_moments"),
        ({"predictions": [], "references": B}, ValueError, "predictions hold no images"),
        ({"predictions": A, "references": []}, ValueError, "references hold no images"),
        ({"predictions": A[0], "references": B}, TypeError, "predictions must be a list .* got one Image"),
        ({"predictions": "a.png", "references": B}, TypeError, "predictions must be a list .* got one str"),
        ({"predictions": A, "references": [*B, "a.png"]}, ValueError, "a.png cannot be read as an image"),
        ({"predictions": 5, "references": B}, TypeError, "predictions must be a list .* got int"),
        (
            {"predictions": [{"image": A[0], "label": 3}], "references": B},
            ValueError,
            r"predictions\[0\] has neither bytes nor a path, but the keys \['image', 'label'\]; .* give the column",
        ),
        ({"predictions": [A[0], None], "references": B}, TypeError, r"predictions\[1\] must be .* got NoneType"),
        (
            {"predictions": A, "references": B, "encoder": nothing},
            ValueError,
            r"gave NaN .* for predictions\[0\]",
        ),
        ({"predictions": A, "references": B, "batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"predictions": A, "reference_moments": 3}, TypeError, "reference_moments must be a file, or .* got int"),
        ({"predictions": A, "reference_moments": (1, 2)}, TypeError, r"with their metadata, got \(int, int\)"),
        ({"predictions": A, "reference_moments": (1, {})}, TypeError, r"with their metadata, got \(int, dict\)"),
        ({"predictions": A, "reference_moments": (1,)}, TypeError, "with their metadata, got tuple"),
        ({"predictions": A, "reference_moments": "gone"}, FileNotFoundError, "no moments file at gone"),
    ],
)
def test_bad_input_is_refused_and_what_was_added_is_kept(metric, arguments, error, words):
    expected = metric.compute(predictions=A, references=B)
    with pytest.raises(error, match=words):
        metric.compute(**arguments)
    close(metric.compute(predictions=A, references=B), expected)
    metric.add_batch(predictions=A[:4])
    with pytest.raises(TypeError):
        metric.add_batch(predictions=[A[4], 3])
    close(metric.compute(predictions=A[4:], references=B), expected)


def test_moments_of_another_encoder_are_refused_by_both_names(space, metric, tmp_path):
    moments, metadata = metric.moments(B)
    with pytest.raises(ValueError, match="given twice, as images and as reference_moments"):
        metric.compute(predictions=A, references=B, reference_moments=(moments, metadata))
    moments.save(tmp_path / "clip.safetensors", {**metadata, "encoder": "my/other", "weights": "0123456789abcdef"})
    with pytest.raises(ValueError, match=f"are of the encoder 'my/other', which is not the same as '{space}/clip'"):
        metric.compute(predictions=A, reference_moments=tmp_path / "clip.safetensors")
    other = {**metadata, "preprocessing": "stretched to 28 x 28"}
    with pytest.raises(ValueError, match="preprocessing: 'stretched to 28 x 28', here 'central square"):
        metric.compute(predictions=A, reference_moments=(moments, other))
    metric.add_batch(predictions=A)
    with pytest.raises(ValueError, match="the images added before are of the encoder .*clip', .*lambda"):
        metric.compute(references=B, encoder=lambda images: torch.ones(len(images), 6))


def blurred(images, level):
    return [image.filter(ImageFilter.GaussianBlur(0.6 * level)) for image in images]


def noisy(images, level):
    draw = np.random.default_rng(level)
    arrays = [np.asarray(image, float) for image in images]
    return [np.clip(array + draw.normal(0, 16 * level, array.shape), 0, 255).astype(np.uint8) for array in arrays]


def imbalanced(images, level):
    return images[: len(images) - 16 * level] + pieces(16 * level, 5, photograph=1, size=32)


@pytest.mark.parametrize("damage", [blurred, noisy, imbalanced])
def test_more_damage_gives_a_higher_score(space, tmp_path, damage):
    def contrasts(images):  # local differences at three scales, by channel
        rows = []
        for image in images:
            features = []
            for size in (32, 16, 8):
                array = np.asarray(image.resize((size, size), Image.Resampling.BOX), float) / 255
                features += [array.mean((0, 1)), np.abs(np.diff(array, axis=0)).mean((0, 1)), array.std((0, 1))]
            rows.append(np.concatenate(features))
        return np.stack(rows)

    metric = load(space, tmp_path, encoder=contrasts, device=None)
    images = pieces(96, 3, size=32)
    references = metric.moments(pieces(200, 4, size=32), encoder=contrasts)
    results = [metric.compute(predictions=damage(images, level), reference_moments=references) for level in range(6)]
    for key in ("cmmd", "cmmd_unbiased", "frechet_distance"):
        values = [result[key] for result in results]
        assert values == sorted(values) and values[5] > 2 * values[0], key
    assert abs(results[0]["cmmd_unbiased"]) < 3 * results[0]["standard_error"]


def test_the_space_is_complete(space):
    folder = space / "cmmd"
    assert {path.name for path in folder.iterdir()} == {"README.md", "app.py", "cmmd.py", "requirements.txt"}
    card = (folder / "README.md").read_text()
    front, text = card.split("---\n")[1:3]
    for line in ("title: CMMD", "sdk: gradio", "app_file: app.py", "- evaluate", "- metric", "license: apache-2.0"):
        assert line in front
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Metric Description",
        "How to Use",
        "Inputs",
        "Output Values",
        "Examples",
        "Limitations and Bias",
        "Citation",
        "Further References",
    ]
    for key in RESULT:
        assert f"`{key}`" in text
    imported = set()
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert len(node.names) == 1, f"{path.name}: evaluate reads one module in each import"
                imported.add(node.names[0].name.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: evaluate copies nothing beside it"
                imported.add(node.module.split(".")[0])
    requirements = {line.split(">=")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert {"pillow" if name == "PIL" else name for name in imported - sys.stdlib_module_names} == requirements
