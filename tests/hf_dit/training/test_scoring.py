"""Scores of samples while training: what a metric of evaluate says of the averaged weights' samples, and the best."""

import json

import datasets
import evaluate
import numpy as np
import pytest
import torch
from PIL import Image

from hf_common.plugins import import_source
from hf_common.sample_scores import SampleScorer
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training.images import ImageFormat, image_format, open_rows
from hf_dit.training.records import read_training
from hf_dit.training.run import train_dit
from hf_dit.training.scoring import reference_images
from hf_dit.training.scoring_arguments import ScoringArguments

from .small import COLOURS, arguments, picture, write_parquet

ENCODER = """
import numpy as np, torch
CALLS = []
def encode(images):
    CALLS.append(len(images))
    pixels = np.stack([np.asarray(image.resize((2, 2)), np.float32).ravel() for image in images])
    return torch.from_numpy(pixels / 255 + 0.1)
"""


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / f"encoder_of_{abs(hash(tmp_path.name))}.py"
    path.write_text(ENCODER)
    return f"{path}:encode"


def scoring(encoder, **changes):
    defaults = {"eval_metric": "evaluate_metrics/cmmd", "eval_steps": 2, "eval_num_images": 7, "eval_batch_size": 3}
    return ScoringArguments(**{**defaults, "eval_encoder": encoder, **changes})


@pytest.mark.parametrize("objective", ["epsilon", "flow"])
def test_scores_are_those_of_the_saved_pipelines_samples(objective, colours, tmp_path, encoder):
    parts = arguments(colours, tmp_path / "run", prediction_type=objective, max_train_steps=5, sample_steps=3)
    results = train_dit(*parts, scoring=scoring(encoder, eval_guidance_scale=2.0))
    scored = results["scored"]
    assert [row["step"] for row in scored] == [2, 4, 5]  # and at the end
    assert read_training(tmp_path / "run" / "results.json")["scored"] == scored
    assert {"cmmd", "frechet_distance", "standard_error"} <= scored[0].keys()

    best = min(scored, key=lambda row: row["cmmd"])
    pipeline = DiTImagePipeline.from_pretrained(tmp_path / "run" / "best")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [0, 1, 2, 0, 1, 2, 0],
        guidance_scale=2.0,
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(number) for number in range(7)],
    ).images
    rows = open_rows(parts[0])
    references = list(reference_images(scoring(encoder), rows, image_format(rows, parts[0])))
    assert len(references) == 30 and references[0].size == (8, 8)
    encode = import_source(encoder.rpartition(":")[0]).encode
    metric = evaluate.load("evaluate_metrics/cmmd", encoder=encode)
    expected = metric.compute(predictions=images, references=references)
    for name in ("cmmd", "frechet_distance"):
        assert best[name] == pytest.approx(expected[name], rel=1e-4)


def test_a_resumed_training_has_the_same_scores_and_weights(colours, tmp_path, encoder):
    whole = train_dit(*arguments(colours, tmp_path / "whole"), scoring=scoring(encoder))
    plain = train_dit(*arguments(colours, tmp_path / "plain"))
    for steps in (3, 6):
        again = {"max_train_steps": steps, "resume_from_checkpoint": "last", "checkpointing_steps": 1}
        parts = train_dit(*arguments(colours, tmp_path / "parts", **again), scoring=scoring(encoder))
    rows = {row["step"]: row for row in parts["scored"]}
    assert rows.keys() == {2, 3, 4, 6}  # 3 was the last step of the first part
    assert all(rows[row["step"]] == row for row in whole["scored"])
    assert [row["loss"] for row in whole["history"]] == [row["loss"] for row in plain["history"]]
    assert "scored" not in plain


def test_references_of_ones_own(tmp_path, encoder):
    colour = next(iter(COLOURS.values()))
    images = [picture(colour, side, 10) for side in (12, 10, 20, 31)]
    folder = write_parquet(tmp_path / "data", {"image": images}, {"image": datasets.Image()})
    rows = open_rows(arguments(folder, tmp_path, unconditional=True, resolution=8)[0])
    form = image_format(rows, arguments(folder, tmp_path, unconditional=True, resolution=8)[0])
    own = tmp_path / "own"
    own.mkdir()
    for number in range(5):
        Image.fromarray(np.full((6, 9, 3), 40 * number, np.uint8)).save(own / f"{number}.png")
    found = list(reference_images(scoring(encoder, eval_references=str(own)), rows, form))
    assert sorted(image.getpixel((0, 0))[0] for image in found) == [0, 40, 80, 120, 160]
    assert {image.size for image in found} == {(8, 8)}
    few = list(reference_images(scoring(encoder, eval_references=str(own), eval_max_references=2), rows, form))
    assert len(few) == 2
    assert len(list(reference_images(scoring(encoder), rows, form))) == 4


def test_the_references_are_embedded_once(encoder):
    calls = import_source(encoder.rpartition(":")[0]).CALLS
    references = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in range(0, 200, 20)]
    scorer = SampleScorer("evaluate_metrics/cmmd", lambda: references, encoder=encoder)
    del calls[:]
    first, second = (scorer(references[:4]) for _ in range(2))
    assert first == second
    assert sum(calls) == 10 + 4 + 4 + calls.count(1)  # an encoder is tried with one image when it is made


def test_bad_input_is_refused_before_the_first_step(colours, tmp_path, encoder):
    def run(**changes):
        train_dit(*arguments(colours, tmp_path / "run"), scoring=scoring(**{"encoder": encoder, **changes}))

    with pytest.raises(ValueError, match="metric 'nosuch/metric' can't be loaded"):
        run(eval_metric="./nosuch/metric.py".replace("./", "").removesuffix(".py"))
    with pytest.raises(ValueError, match="encoder 'nosuch.py:encode' can't be imported: FileNotFoundError"):
        run(encoder="nosuch.py:encode")
    broken = tmp_path / "broken_encoder_here.py"
    broken.write_text("def encode(images):\n    raise KeyError('x')\n")
    with pytest.raises(ValueError, match="can't embed the references: KeyError"):
        run(encoder=f"{broken}:encode")
    assert not (tmp_path / "run" / "results.json").exists()
    with pytest.raises(ValueError, match="eval_steps has no effect without eval_metric"):
        ScoringArguments(eval_steps=5)
    with pytest.raises(ValueError, match="eval_guidance_scale must be finite; got nan"):
        ScoringArguments(eval_metric="m", eval_guidance_scale=float("nan"))
    with pytest.raises(ValueError, match="eval_num_images must be 1 or more; got 0"):
        ScoringArguments(eval_metric="m", eval_num_images=0)


def test_several_scores_and_which_tells_the_best(colours, tmp_path, encoder):
    chosen = {
        "eval_metric": "evaluate_metrics/image_quality",
        "eval_arguments": 'scores=["fd","density_coverage"], normalize=false',
        "metric_for_best_model": "density",
        "greater_is_better": True,
    }
    parts = arguments(colours, tmp_path / "run", max_train_steps=5, sample_steps=3)
    scored = train_dit(*parts, scoring=scoring(encoder, **chosen))["scored"]
    assert [list(row)[:2] for row in scored] == [["step", "density"]] * 3  # what pictures show
    assert {"frechet_distance", "coverage", "density_standard_error"} <= scored[0].keys()
    pipeline = DiTImagePipeline.from_pretrained(tmp_path / "run" / "best")
    best = max(scored, key=lambda row: row["density"])
    scores = SampleScorer(
        chosen["eval_metric"],
        lambda: reference_images(scoring(encoder), open_rows(parts[0]), image_format(open_rows(parts[0]), parts[0])),
        encoder=encoder,
        arguments={"scores": ["fd", "density_coverage"], "normalize": False},
    )
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(number) for number in range(7)]
    images = pipeline([0, 1, 2, 0, 1, 2, 0], num_inference_steps=3, guidance_scale=1.0, generator=generators).images
    found = scores(images)
    for name in ("density", "frechet_distance"):
        assert found[name] == pytest.approx(best[name], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric_for_best_model": "fid"}, "metric_for_best_model must be one of cmmd, .*; got 'fid'"),
        ({"eval_arguments": "scores=fd"}, "arguments: the metric takes no 'scores'"),
        ({"eval_arguments": "scores"}, "eval_arguments must be name=value,...; got 'scores'"),
        ({"eval_arguments": "encoder=clip"}, "the encoder is given twice, by eval_encoder and eval_arguments"),
        (
            {"eval_metric": "evaluate_metrics/image_quality", "eval_arguments": 'scores=["kid"]'},
            "metric 'evaluate_metrics/image_quality' can't score 7 images: ValueError: .*kid needs 1000",
        ),
    ],
)
def test_scores_that_there_will_not_be_are_refused_before_the_first_step(colours, tmp_path, encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        train_dit(*arguments(colours, tmp_path / "run"), scoring=scoring(encoder, **changes))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("changes", [{"unconditional": True}, {"class_dropout_prob": 0.0}])
def test_guidance_that_the_model_cannot_give_is_refused_at_the_start(colours, tmp_path, encoder, changes):
    parts = arguments(colours, tmp_path / "run", sample_guidance_scales=[1.0], **changes)
    with pytest.raises(ValueError, match=f"eval_guidance_scale must be 1 with {next(iter(changes))}.*; got 2"):
        train_dit(*parts, scoring=scoring(encoder, eval_guidance_scale=2.0))
    assert not (tmp_path / "run").exists()


def test_references_of_other_sizes_become_those_of_the_samples(tmp_path, encoder):
    (tmp_path / "references").mkdir()
    for number, size in enumerate([(24, 16), (30, 16), (9, 40)]):  # (width, height)
        picture(COLOURS["red"], size[1], size[0], seed=number).save(tmp_path / "references" / f"{number}.png")
    args = scoring(encoder, eval_references=str(tmp_path / "references"))
    images = list(reference_images(args, [], ImageFormat((8, 12), resized=False)))
    assert [image.size for image in images] == [(12, 8)] * 3
    assert images[0] == picture(COLOURS["red"], 16, 24).resize((12, 8), Image.Resampling.BICUBIC)


def test_the_picture_shows_the_scores(colours, tmp_path, encoder):
    train_dit(*arguments(colours, tmp_path / "plain"))
    train_dit(*arguments(colours, tmp_path / "scored"), scoring=scoring(encoder))
    sizes = [Image.open(tmp_path / name / "loss_curve.png").size for name in ("plain", "scored")]
    assert sizes[1][0] > sizes[0][0]
    assert json.loads((tmp_path / "scored" / "settings.json").read_text()) == json.loads(
        (tmp_path / "plain" / "settings.json").read_text()
    )
