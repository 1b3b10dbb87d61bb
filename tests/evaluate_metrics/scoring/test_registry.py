"""The table of scores, what is made from it, and scores of one's own."""

import dataclasses
import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics import ScoreInfo, Value, register_score
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.scoring import registry
from evaluate_metrics.scoring.evaluation import evaluate_sources
from evaluate_metrics.scoring.registry import SCORES, keys_of, readme_table, score_lines
from evaluate_metrics.scoring.report import plot_score_curves, protocol_notes, score_table
from evaluate_metrics.scoring.scores import BUILT_IN, ScoredSet, score, score_curve, scored_set
from evaluate_metrics.scoring.settings import Evaluation
from evaluate_metrics.scoring.sources import open_source
from tests import ROOT


def vectors(n, seed, dim=6):
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 1, dim=1)


def held(rows, **more):
    return ScoredSet(Moments.zeros(rows.shape[1]).update(rows), rows, **more)


def colours(images):
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


@pytest.fixture
def folders(tmp_path):
    """Predictions of 14 and references of 17 images."""
    draw = np.random.default_rng(0)
    for name, n, low in (("fake", 14, 0), ("real", 17, 40)):
        (tmp_path / name).mkdir()
        for place in range(n):
            pixels = draw.integers(low, 256, (8, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{place:02}.png")
    return tmp_path


@pytest.fixture
def opened(folders):
    return open_source(str(folders / "fake")), open_source(str(folders / "real"))


@pytest.fixture
def own_scores(monkeypatch):
    """What a test registers is gone after it."""
    kept = dict(SCORES)
    yield
    SCORES.clear()
    SCORES.update(kept)


# --- What is made from the table ---


def test_every_score_has_what_computes_it_and_gives_the_keys_of_its_row():
    assert BUILT_IN.keys() == SCORES.keys()
    x = held(
        vectors(40, 0), spatial=Moments.zeros(6).update(vectors(40, 1)), head=torch.eye(6), captions=vectors(40, 2)
    )
    y = held(vectors(60, 3), spatial=Moments.zeros(6).update(vectors(60, 4)))
    settings = Evaluation(metrics=list(SCORES), kid_subsets=3, kid_subset_size=20, permutations=9)
    for name, info in SCORES.items():
        found = score(x, y, [name], settings)
        assert {*keys_of(info)} <= found.keys(), name
        assert all(isinstance(found[key], float) for key in keys_of(info)), name
        # Those that need no embeddings do without.
        if info.references != "embeddings":
            again = score(x, dataclasses.replace(y, embeddings=None), [name], settings)
            assert again == found


def test_no_two_scores_give_one_key_and_every_paper_is_cited_in_one_form():
    keys = [key for info in SCORES.values() for key in keys_of(info)]
    assert len(keys) == len(set(keys))
    assert all(len(info.paper.split(", ")) == 2 for info in SCORES.values())


def test_help_and_choices_are_the_tables():
    script = importlib.import_module("evaluate_metrics.commands.evaluate_images")
    (field,) = [field for field in dataclasses.fields(script.EvaluateArguments) if field.name == "metrics"]
    assert list(field.metadata["choices"]) == list(SCORES)
    assert "{scores}" in script.__doc__ and all(f"    {name} " in score_lines() for name in SCORES)


def test_the_readme_has_the_table():
    assert readme_table() in (ROOT / "evaluate_metrics" / "README.md").read_text(encoding="utf-8")


def test_the_table_is_known_without_torch():
    code = "import sys, evaluate_metrics.scoring.settings as s; print('torch' in sys.modules, len(s.SCORES))"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["False", str(len(SCORES))], done.stderr


# --- Parts of vectors ---


def test_the_moments_of_a_part_are_those_of_its_numbers():
    rows = vectors(30, 0, 9)
    parts = {"features": slice(0, 5), "spatial": slice(5, 9)}
    found = scored_set(Moments.zeros(9).update(rows), rows, parts, torch.ones(2, 5))
    for moments, part in ((found.moments, rows[:, :5]), (found.spatial, rows[:, 5:])):
        expected = Moments.zeros(part.shape[1]).update(part)
        torch.testing.assert_close(moments.outer, expected.outer)
        torch.testing.assert_close(moments.sum, expected.sum)
    assert torch.equal(found.kept(), rows[:, :5])
    torch.testing.assert_close(found.logits(), rows[:, :5].sum(1, keepdim=True).expand(-1, 2))
    with pytest.raises(RuntimeError, match="only moments were kept"):
        scored_set(found.moments, None, {"features": slice(0, 5)}).kept()


# --- Numbers of images ---


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        (
            "precision_recall",
            {"precision_k": 13},
            "needs 15 images or more, its precision_k \\+ 2, in each set; .* 14",
        ),
        ("density_coverage", {"density_k": 16}, "needs 18 references or more, its density_k \\+ 2; there are 17"),
        (
            "inception_score",
            {"inception_splits": 15},
            "needs 15 predictions or more, its inception_splits; there are 14",
        ),
        ("fd_infinity", {}, "needs 20 predictions or more; there are 14"),
    ],
)
def test_too_few_images_are_told_before_a_model_is_loaded(opened, metric, options, words):
    with pytest.raises(ValueError, match=f"{metric} {words}"):
        evaluate_sources(*opened, ["no encoder"], Evaluation(metrics=[metric], **options))


@pytest.mark.parametrize("name", ["precision_k", "density_k", "inception_splits"])
def test_settings_of_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more; got 0"):
        Evaluation(**{name: 0})


def test_scores_that_an_encoder_does_not_allow_are_named(opened, monkeypatch):
    monkeypatch.setitem(importlib.import_module("evaluate_metrics.core.encoders").ENCODERS, "colours", colours)
    (row,) = evaluate_sources(*opened, ["colours"], Evaluation(metrics=["fd", "sfid", "inception_score"]))
    assert row["notes"][:2] == [
        "sfid is defined for spatial features, which this encoder doesn't give",
        "inception_score is defined for the logits of classes, which this encoder doesn't give",
    ]
    with pytest.raises(ValueError, match="sfid is defined for spatial features, which colours doesn't give"):
        evaluate_sources(*opened, ["colours"], Evaluation(metrics=["sfid"]))


# --- Encoders beside each other ---


def row(encoder, digest, **values):
    return {"encoder": encoder, "dim": 6, "digest": digest, "notes": [], **values}


def test_rows_of_two_protocols_are_marked():
    one = row("clip", "aaaaaaaaaaaaaaaa", frechet_distance=1.0, n_predictions=5)
    other = row("clip", "bbbbbbbbbbbbbbbb", frechet_distance=2.0, n_predictions=5)
    assert "protocol" not in score_table([one, one]) and protocol_notes([one, one]) == []
    table = score_table([one, other])
    assert "| clip | 6 | aaaaaaaa | 1 |" in table and "| clip | 6 | bbbbbbbb | 2 |" in table
    assert "2 of them) do not compare" in table


def test_rows_of_other_settings_and_numbers_are_marked():
    rows = [
        row("clip", "a", precision=0.5, precision_k=k, n_predictions=n, n_references=9) for k, n in ((3, 5), (5, 7))
    ]
    assert protocol_notes(rows) == [
        "rows of different precision_k (3, 5) do not compare",
        "rows of different n_predictions (5, 7): most scores depend on them",
    ]


def test_results_carry_the_digest_of_their_protocol(opened, monkeypatch):
    encoders = importlib.import_module("evaluate_metrics.core.encoders")
    monkeypatch.setitem(encoders.ENCODERS, "colours", colours)
    rows = [
        evaluate_sources(*opened, ["colours"], Evaluation(metrics=["fd"], normalize=normalize))[0]
        for normalize in (True, True, False)
    ]
    digests = [row["digest"] for row in rows]
    assert digests[0] == digests[1] != digests[2] and all(len(digest) == 16 for digest in digests)
    made = [
        encoders.make_encoder(function) for function in (colours, lambda images: colours(images) * [1, 1, 1, 2, 1, 1])
    ]
    made[1].name = made[0].name
    assert made[0].digest != made[1].digest  # one name, two functions
    nearly = encoders.make_encoder(lambda images: colours(images) * (1 + 1e-7))
    nearly.name = made[0].name
    assert nearly.digest == made[0].digest


# --- One's own ---


def mean_distance(predictions, references, settings):
    return {"mean_distance": float((predictions.moments.mean - references.moments.mean).norm())}


INFO = ScoreInfo(
    "mean_distance",
    "distance of the means",
    "Doe 2031, arXiv:3101.00001",
    (Value("mean_distance", "means"),),
    mean_distance,
)


def test_a_registered_score_is_known_everywhere(own_scores, opened, monkeypatch):
    register_score(INFO)
    register_score(INFO)  # a module that is loaded again
    monkeypatch.setitem(importlib.import_module("evaluate_metrics.core.encoders").ENCODERS, "colours", colours)
    (found,) = evaluate_sources(*opened, ["colours"], Evaluation(metrics=["mean_distance"], normalize=False))
    x, y = (torch.from_numpy(colours([Image.open(path) for path in source.rows])) for source in opened)
    assert found["mean_distance"] == pytest.approx(float((x.mean(0) - y.mean(0)).norm()), rel=1e-5)
    assert "| means |" in score_table([found]) and "mean_distance" in score_lines()
    assert "`mean_distance` ↓" in registry.readme_table()


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (None, "must give numbers own; it failed: TypeError: 'NoneType'"),
        ({}, "must give numbers own; it failed: KeyError: 'own'"),
        ({"own": "high"}, "must give numbers own; it failed: ValueError: could not convert"),
        ({"own": 1, "more": torch.ones(2)}, "it failed: TypeError: Object of type Tensor"),
        ({"own": 1, "frechet_distance": 0.0}, "score 'own' gives 'frechet_distance', which is of fd"),
        ({"own": 1, "encoder": "mine"}, "score 'own' gives 'encoder', which every row has"),
    ],
)
def test_what_a_registered_score_gives_is_checked(own_scores, gives, words):
    register_score(ScoreInfo("own", "words", "this work 2026", (Value("own", "own"),), lambda x, y, settings: gives))
    with pytest.raises(ValueError, match=words):
        score(held(vectors(9, 0)), held(vectors(9, 1)), ["fd", "own"])


def test_numbers_of_any_kind_are_values_of_a_registered_score(own_scores):
    sets = held(vectors(9, 0)), held(vectors(9, 1))
    for number in (torch.tensor(2.5), np.float32(2.5), np.array(2.5)):
        info = ScoreInfo(
            "own", "words", "this work 2026", (Value("own", "own"),), lambda x, y, s, n=number: {"own": n}
        )
        SCORES.pop("own", None)
        register_score(info)
        found = score(*sets, ["own"])["own"]
        assert type(found) is float and found == 2.5


def test_a_registered_score_with_series_is_drawn_against_the_number_of_images(own_scores):
    register_score(dataclasses.replace(INFO, label="Means", series=(("mean_distance", "distance", "#117733"),)))
    x, y = held(vectors(130, 0)), held(vectors(90, 1))
    curve = score_curve(x.kept(), y, ["mean_distance"], repeats=2)
    assert curve["counts"] == [130, 65, 32] and [len(values) for values in curve["mean_distance"]] == [1, 2, 2]
    assert curve["mean_distance"][0][0] == pytest.approx(mean_distance(x, y, None)["mean_distance"])
    figure = plot_score_curves([row("own", "a", curve=curve)])
    assert figure.axes[0].get_title() == "Means, own"
    assert Evaluation(metrics=["mean_distance"], curve=True).curve


def test_a_value_that_is_missing_has_no_point(own_scores):
    register_score(dataclasses.replace(INFO, series=(("mean_distance", "distance", "#117733"),)))
    values = [[3.0], [1.0, 2.0], [None, 4.0], [float("inf")], [float("nan"), 1.0]]
    curve = {"counts": [480, 240, 120, 60, 30], "mean_distance": values}
    (axes,) = plot_score_curves([row("own", "a", curve=curve)]).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3, 1.5, *[np.nan] * 3])
    assert axes.get_ylim()[0] == 0 and 3 < axes.get_ylim()[1] < 4
    curve = {"counts": [60, 30], "mean_distance": [[None], [None]]}
    assert plot_score_curves([row("own", "a", curve=curve)]).axes[0].get_ylim() == (0, 1)


@pytest.mark.parametrize("fewest", [lambda settings: 2, lambda settings: (2, None), lambda settings: settings.few])
def test_a_least_number_of_images_that_is_none_names_its_score(own_scores, opened, fewest):
    register_score(dataclasses.replace(INFO, fewest=fewest))
    with pytest.raises(ValueError, match="fewest of score 'mean_distance' must give two numbers of images; it failed"):
        evaluate_sources(*opened, ["tiny"], Evaluation(metrics=["mean_distance"]))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"compute": None}, TypeError, "compute of 'mean_distance' must be callable, got None"),
        ({"name": "a b"}, ValueError, "name must be an identifier; got 'a b'"),
        ({"name": "fd"}, ValueError, "there is a score 'fd' already"),
        ({"values": ()}, ValueError, "mean_distance must give 1 value or more"),
        ({"values": (Value("recall", "R"),)}, ValueError, "gives 'recall', which precision_recall gives already"),
        ({"values": (Value("a", "A", "up"),)}, ValueError, "better of mean_distance must be of .*; got 'up'"),
        ({"predictions": "images"}, ValueError, "predictions of mean_distance must be of 'moments', .*; got 'images'"),
        ({"needs": ("text",)}, ValueError, "needs of mean_distance must be of .*; got 'text'"),
        (
            {"series": (("other", "a", "#0072B2"),)},
            ValueError,
            "series of mean_distance must be of the keys of its values; got 'other'",
        ),
        (
            {"series": (("mean_distance", "a", "red"),)},
            ValueError,
            "colours of mean_distance must be such as '#0072B2'; got 'red'",
        ),
        ({"paper": "mine"}, ValueError, "paper must be such as .*; got 'mine'"),
    ],
)
def test_what_can_not_be_a_score_is_refused(own_scores, changed, error, words):
    with pytest.raises(error, match=words):
        register_score(dataclasses.replace(INFO, **changed))
    with pytest.raises(TypeError, match="info must be a ScoreInfo, got str"):
        register_score("fd")
