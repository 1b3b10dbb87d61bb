"""Several scores of one embedding, by `evaluate.load`."""

import json
import warnings

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.clip_score import clip_score
from evaluate_metrics.core.density_coverage import density_coverage
from evaluate_metrics.core.encoders import Encoder, make_encoder
from evaluate_metrics.core.frechet import frechet_distance, kernel_distance
from evaluate_metrics.core.inception_score import inception_score
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.precision_recall import precision_recall
from evaluate_metrics.core.statistics import save_statistics
from evaluate_metrics.core.vision_models import embed_captions
from evaluate_metrics.publishing import check_space
from evaluate_metrics.scoring.scores import scored_set
from hf_common.sample_scores import SampleScorer
from tests import ROOT
from tests.evaluate_metrics.clip_files import save_tiny_clip

QUALITY = ROOT / "evaluate_metrics" / "image_quality"


def colours(images):
    """An encoder with few dimensions: mean and spread of each channel."""
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


def pictures(n, seed, shift=0):
    rng = np.random.default_rng(seed)
    levels = rng.integers(30, 150, (n, 1, 1, 3)) + shift
    return [Image.fromarray(p.astype(np.uint8)) for p in (levels + rng.integers(0, 60, (n, 9, 8, 3))).clip(0, 255)]


@pytest.fixture(scope="module")
def sets():
    return pictures(23, 0), pictures(31, 1, shift=10)


@pytest.fixture(scope="module")
def quality():
    return evaluate.load(str(QUALITY), encoder=colours)


def load(**options):
    return evaluate.load(str(QUALITY), **{"encoder": colours, **options})


def embedded(sets):
    return [torch.from_numpy(colours(images)) for images in sets]


def numbers(result):
    """What is the same but for rounding, and what is the same."""
    near = {key: value for key, value in result.items() if isinstance(value, float)}
    return pytest.approx(near, rel=1e-6), {key: value for key, value in result.items() if key not in near}


def assert_same(one, other):
    near, equal = numbers(other)
    assert {key: value for key, value in one.items() if isinstance(value, float)} == near
    assert {key: value for key, value in one.items() if not isinstance(value, float)} == equal


def moments(vectors):
    return Moments.zeros(vectors.shape[1]).update(vectors)


def test_scores_are_those_of_their_functions(quality, sets):
    result = quality.compute(predictions=sets[0], references=sets[1], density_k=4)
    x, y = embedded(sets)
    first, second = precision_recall(x, y), density_coverage(x, y, 4)
    assert (result["precision"], result["recall"]) == (first.precision, first.recall)
    assert result["recall_standard_error"] == first.recall_error
    assert (result["density"], result["coverage"]) == (second.density, second.coverage)
    assert (result["precision_k"], result["density_k"]) == (3, 4) and 0 < result["coverage_expected"] < 1
    assert result["frechet_distance"] == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-6)
    assert (result["n_predictions"], result["n_references"]) == (23, 31)
    assert len(result["digest"]) == 16 and result["encoder"].endswith("colours") and result["preprocessing"]
    assert "sfid is defined for spatial features" in result["notes"][0] and "inception_score" not in result


def test_batches_and_sets_of_unknown_size_give_the_same(quality, sets):
    whole = quality.compute(predictions=sets[0], references=sets[1])
    quality.add_batch(predictions=sets[0][:9], references=iter(sets[1]))
    for image in sets[0][9:11]:
        quality.add(prediction=image)
    assert_same(quality.compute(predictions=iter(sets[0][11:])), whole)


def test_references_once(sets, tmp_path):
    metric = load(scores=["fd", "precision_recall", "kid"])
    options = {"predictions": sets[0], "kid_subset_size": 20, "kid_subsets": 4, "seed": 3}
    whole = metric.compute(references=sets[1], **options)
    kept, metadata = metric.moments(sets[1])
    assert_same(metric.compute(reference_moments=(kept, metadata), **options), whole)
    kept.save(tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match="precision_recall and kid: scores of pairs need references, or their"):
        metric.compute(reference_moments=tmp_path / "x.safetensors", **options)
    alone = metric.compute(predictions=sets[0], reference_moments=tmp_path / "x.safetensors", scores=["fd"])
    assert alone["frechet_distance"] == pytest.approx(whole["frechet_distance"]) and "kid" not in alone
    x, y = embedded(sets)
    assert (whole["kid"], whole["kid_std"]) == pytest.approx(kernel_distance(x, y, 4, 20, 3), rel=1e-5)


def test_a_training_can_score_its_samples_with_it(sets):
    scorer = SampleScorer(str(QUALITY), lambda: sets[1])
    scorer._options["encoder"] = colours
    found = scorer(sets[0])
    x, y = embedded(sets)
    assert found["precision"] == precision_recall(x, y).precision and found["frechet_distance"] > 0


@pytest.fixture
def network(monkeypatch):
    """In place of the FID network one of 6 + 4 numbers and 3 classes, which says what it was asked for."""
    asked = []

    def small(weights, sha256, resizing, device, spatial=False):
        asked.append((resizing, spatial))
        parts = {"features": slice(0, 6), **({"spatial": slice(6, 10)} if spatial else {})}

        def embed(images):
            features = colours(images)
            return np.concatenate((features, features[:, :4] ** 2), 1) if spatial else features

        head = torch.arange(18.0).reshape(3, 6) - 8
        return Encoder("small", "w" * 16, resizing, False, lambda image, _: image, embed, parts=parts, head=head)

    quality = evaluate.load(str(QUALITY))
    monkeypatch.setitem(type(quality)._make_encoder.__globals__, "inception_encoder", small)
    return asked


def test_the_default_gives_what_papers_report(network, sets):
    result = evaluate.load(str(QUALITY)).compute(predictions=sets[0], references=sets[1], inception_splits=3)
    assert network == [("tensorflow", True)]
    x, y = embedded(sets)
    spatial = [moments(v[:, :4] ** 2) for v in (x, y)]
    assert result["sfid"] == pytest.approx(frechet_distance(*spatial, warn=False), rel=1e-4)
    assert result["frechet_distance"] == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-6)
    logits = x @ (torch.arange(18.0).reshape(3, 6) - 8).T
    expected = inception_score(logits, 3)
    assert (result["inception_score"], result["inception_score_std"]) == pytest.approx(expected[:2], rel=1e-5)
    assert result["inception_splits"] == 3 and result["precision"] == precision_recall(x, y).precision
    metric = evaluate.load(str(QUALITY), "inception-clean", scores=["fd"])
    assert metric.compute(predictions=sets[0], references=sets[1])["preprocessing"] == "clean"
    assert network[-1] == ("clean", False)


def test_moments_of_both_parts_serve_fid_and_sfid(network, sets, tmp_path):
    metric = evaluate.load(str(QUALITY), scores=["fd", "sfid"])
    whole = metric.compute(predictions=sets[0], references=sets[1])
    found, metadata = metric.moments(sets[1])
    found.save(tmp_path / "both.safetensors", metadata)
    again = metric.compute(predictions=sets[0], reference_moments=tmp_path / "both.safetensors")
    assert_same(again, whole)
    plain = evaluate.load(str(QUALITY), scores=["fd"])
    alone = plain.compute(predictions=sets[0], reference_moments=tmp_path / "both.safetensors")
    assert alone["digest"] == whole["digest"]  # one FID, with the sFID or without
    assert alone["frechet_distance"] == pytest.approx(whole["frechet_distance"], rel=1e-12)
    found, metadata = plain.moments(sets[1])
    found.save(tmp_path / "plain.safetensors", metadata)
    with pytest.raises(ValueError, match=r"holds 6 features and not the 4 spatial ones \(mu_s .*; leave sfid out"):
        metric.compute(predictions=sets[0], reference_moments=tmp_path / "plain.safetensors")


def test_statistics_of_adm_give_fid_and_sfid(network, sets, tmp_path):
    """ADM's `mu_s` and `sigma_s` know nothing across the parts, and neither score does."""
    metric = evaluate.load(str(QUALITY), scores=["fd", "sfid"])
    whole = metric.compute(predictions=sets[0], references=sets[1])
    features, square = embedded(sets)[1].double().numpy(), (embedded(sets)[1][:, :4] ** 2).double().numpy()
    arrays = {"mu": features.mean(0), "sigma": np.cov(features.T), "mu_s": square.mean(0), "sigma_s": np.cov(square.T)}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), **arrays)
    keys = ("frechet_distance", "sfid")
    for options in ({}, {"reference_count": len(features)}):
        found = metric.compute(predictions=sets[0], reference_moments=tmp_path / "adm.npz", **options)
        assert [found[key] for key in keys] == pytest.approx([whole[key] for key in keys], rel=1e-5)
    of_both = metric.moments(sets[1])[0]
    of_parts = scored_set(of_both, None, {"features": slice(0, 6), "spatial": slice(6, 10)})
    save_statistics(tmp_path / "ours.npz", of_parts.moments, of_parts.spatial)
    with np.load(tmp_path / "ours.npz") as written:
        assert set(written) == set(arrays)
        for name, value in arrays.items():
            np.testing.assert_allclose(written[name], value, rtol=1e-5, atol=1e-5)
    np.savez(tmp_path / "other.npz", **{**arrays, "mu_s": np.zeros(3), "sigma_s": np.eye(3)})
    with pytest.raises(ValueError, match="holds 6 features and not the 4 spatial ones"):
        metric.compute(predictions=sets[0], reference_moments=tmp_path / "other.npz")


def test_captions(sets, tmp_path):
    save_tiny_clip(tmp_path)
    metric = load(encoder=str(tmp_path), scores=["clip_score", "cmmd"], normalize=True, device="cpu")
    captions = [f"picture {i}" for i in range(23)]
    metric.add_batch(predictions=sets[0][:5])
    result = metric.compute(predictions=sets[0][5:], references=sets[1], captions=captions)
    words = embed_captions(str(tmp_path), "cpu", torch.float32, [f"A photo depicts {text}" for text in captions])
    expected = clip_score(make_encoder(tmp_path, device="cpu").encode(sets[0]), words)
    assert result["clip_score"] == pytest.approx(expected.mean, rel=1e-4) and result["cmmd"] > 0
    with pytest.raises(ValueError, match="clip_score needs captions"):
        metric.compute(predictions=sets[0], references=sets[1])
    with pytest.raises(ValueError, match="captions must be as many as their images, 23; got 2"):
        metric.compute(predictions=sets[0], references=sets[1], captions=captions[:2])


def test_classes(sets):
    metric = load(scores=["fd", "cmmd"], normalize=True, keep_embeddings=True)
    classes = [i % 2 for i in range(23)], ["01"[i % 2] for i in range(31)]
    options = {"prediction_classes": classes[0], "reference_classes": classes[1]}
    result = metric.compute(predictions=sets[0], references=sets[1], **options)
    assert list(result["per_class"]) == ["0", "1"] and result["per_class"]["0"]["n_references"] == 16
    assert result["frechet_distance_of_classes"] > 0
    json.dumps(result)
    with pytest.raises(ValueError, match="must both be given, or neither"):
        metric.compute(predictions=sets[0], references=sets[1], prediction_classes=classes[0])
    with pytest.raises(ValueError, match="reference_classes must be as many as their images, 31; got 23"):
        metric.compute(predictions=sets[0], references=sets[1], **{**options, "reference_classes": classes[0]})
    with pytest.raises(ValueError, match="loaded with keep_embeddings=True"):
        load(scores=["fd"]).compute(predictions=sets[0], references=sets[1], **options)


@pytest.mark.parametrize(
    ("loaded", "given", "error", "words"),
    [
        ({"scores": ["fid"]}, {}, ValueError, "scores must be of cmmd, .*; got fid"),
        ({"scores": []}, {}, ValueError, "scores must be of cmmd, .*; got none"),
        ({}, {"captions": ["x"] * 23}, ValueError, "captions have no effect on fd, .*; scores must have clip_score"),
        ({"scores": "fd"}, {}, ValueError, "scores must be a list of names, got 'fd'"),
        ({"config_name": "dino"}, {}, ValueError, "the configuration must be one of .*fd-dinov2"),
        ({"scores": ["fd"]}, {"scores": ["kid"]}, ValueError, "scores must be of those loaded, fd; got kid"),
        ({"scores": ["kid"]}, {}, ValueError, "kid needs 1000 images or more.*has 4"),
        ({"scores": ["precision_recall"]}, {}, ValueError, "precision_recall needs 5 images or more.*has 4"),
        ({"scores": ["density_coverage"]}, {"density_k": 6}, ValueError, "needs 8 references or more.*there are 7"),
        ({"scores": ["fd"]}, {"k": 6}, TypeError, "compute\\(\\) takes precision_k, .*; got 'k'"),
        ({"scores": ["fd", "sfid"]}, {}, ValueError, "sfid is defined for spatial features, which .*colours doesn't"),
        ({}, {"captions": "four"}, ValueError, "captions must be a list of texts, one of each prediction; got 'four'"),
        ({}, {"captions": 4}, ValueError, "captions must be a list of texts, one of each prediction; got 4"),
        ({}, {"captions": ["a", None, "b", "c"]}, ValueError, r"captions\[1\] must be a text .*; got None"),
        (
            {},
            {"captions": ["a", "b", "c", " "]},
            ValueError,
            r"captions\[3\] must be a text that is not empty; got ' '",
        ),
        ({"scores": ["fd"]}, {"scores": "fd"}, ValueError, "scores must be a list of names, got 'fd'"),
        ({"scores": ["fd"]}, {"scores": [1]}, ValueError, "scores must be of those loaded, fd; got 1"),
        ({"scores": ["cmmd"]}, {}, ValueError, "cmmd is defined for unit vectors"),
    ],
)
def test_bad_input_is_told_before_an_image_is_embedded(loaded, given, error, words):
    seen = []

    def encoder(images):
        seen.append(len(images))
        return colours(images)

    encoder.__qualname__ = "colours"
    with pytest.raises(error, match=words):
        load(**{"encoder": encoder, **loaded}).compute(predictions=pictures(4, 0), references=pictures(7, 1), **given)
    assert sum(seen) <= 1  # the image that tells the number of dimensions


def test_scores_that_the_encoder_lacks_ask_for_no_images(sets):
    """Of the usual scores the Inception Score would need 10 predictions, were there logits to make it of."""
    x, y = embedded((sets[0][:6], sets[1]))
    result = load().compute(predictions=sets[0][:6], references=sets[1])
    assert result["precision"] == precision_recall(x, y).precision and "inception_score" not in result
    with pytest.raises(ValueError, match="precision_recall needs 5 images or more"):
        load().compute(predictions=sets[0][:4], references=sets[1])


def test_few_images_are_noted(sets):
    metric = load(scores=["fd"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metric.compute(predictions=sets[0][:4], references=sets[1])
    assert result["notes"][0].startswith("the Frechet distance of 6 dimensions from 4 images is biased upwards")


def test_the_folder_can_be_published():
    check_space(QUALITY, "user/image_quality")
