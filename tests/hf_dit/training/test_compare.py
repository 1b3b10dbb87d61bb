"""Trainings that differ in one thing: each is the training that `train_dit` makes alone; the report is of them all."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from hf_dit.training.axes import CompareArguments
from hf_dit.training.compare import Matched, Variant, compare, compare_markdown, names_of, plot_trainings, variants
from hf_dit.training.run import train_dit
from hf_dit.training.scoring_arguments import ScoringArguments
from tests import ROOT
from tests.processes import run_process

from .small import arguments
from .test_run import flags


def weights(folder):
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_each_training_is_the_one_alone(colours, tmp_path):
    small = {"max_train_steps": 3, "sample_steps": 2}
    axes = CompareArguments(attentions=["full", "na3"], objectives=["epsilon", "flow"])
    report = compare(Matched(*arguments(colours, tmp_path / "all", **small)), axes)
    names = ["full, epsilon", "full, flow", "na3, epsilon", "na3, flow"]
    assert [run["name"] for run in report["runs"]] == names
    alone = arguments(colours, tmp_path / "alone", **small, attention="na3", prediction_type="flow")
    results = train_dit(*alone)
    run = report["runs"][3]
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "all" / "na3_flow_0")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert run["history"] == [[row["step"], row["smoothed"]] for row in results["history"]]
    assert json.loads((tmp_path / "all" / "compare.json").read_text()) == report
    table = (tmp_path / "all" / "compare.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert Image.open(tmp_path / "all" / "samples.png").height > 3 * 2 * 64

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").glob("*/results.json")}
    again = compare(Matched(*arguments(colours, tmp_path / "all", **small)), CompareArguments(
        attentions=["full", "na3"], objectives=["epsilon", "flow"], seeds=[0, 1]
    ))  # fmt: skip
    assert len(again["runs"]) == 8
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert again["runs"][4]["name"] == "full, epsilon, seed 1"


def test_conditionings_keep_the_other_overrides(colours, tmp_path):
    matched = Matched(*arguments(colours, tmp_path, config_overrides="dropout=0.1"))
    _, model, args = matched.arguments(Variant(None, None, "in_context", 4), tmp_path / "x")
    assert model.config_overrides == "dropout=0.1,conditioning=in_context"
    assert (args.seed, args.output_dir) == (4, str(tmp_path / "x"))
    with pytest.raises(ValueError, match="snr_gamma has no meaning for prediction_type='flow'"):
        compare(
            Matched(*arguments(colours, tmp_path / "never", snr_gamma=5.0)),
            CompareArguments(objectives=["epsilon", "flow"]),
        )
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("attention", "message"),
    [("na99x", "attention item 'na99x' is not known"), ("na3*7", "names 7 layers; the model has 2")],
)
def test_what_a_later_training_cannot_have_is_told_before_the_first(colours, tmp_path, attention, message):
    with pytest.raises(ValueError, match=message):
        compare(Matched(*arguments(colours, tmp_path / "all")), CompareArguments(attentions=["full", attention]))
    assert not (tmp_path / "all").exists()


def test_a_network_that_does_not_fit_is_told_before_the_first_training(colours, tmp_path):
    train_dit(*arguments(colours, tmp_path / "trained", max_train_steps=1))
    matched = Matched(*arguments(colours, tmp_path / "all", model=str(tmp_path / "trained")))
    with pytest.raises(ValueError, match="it has learn_sigma=True, not False"):
        compare(matched, CompareArguments(objectives=["epsilon", "flow"]))
    assert not (tmp_path / "all").exists()


def test_scores_of_one_folder_are_all_of_one_kind(colours, tmp_path):
    parts = arguments(colours, tmp_path / "all", max_train_steps=1)
    compare(Matched(*parts), CompareArguments())
    with pytest.raises(ValueError, match="scored in another way: eval_metric='x' .it has None.; choose another"):
        compare(Matched(*parts, ScoringArguments(eval_metric="x")), CompareArguments(seeds=[0, 1]))
    assert not (tmp_path / "all" / "1").exists()


def test_two_processes_make_all_trainings(colours, tmp_path):
    small = {"max_train_steps": 2, "train_batch_size": 2}
    line = [*flags(colours, tmp_path / "two", **small), "--attentions", "full", "na3"]
    done = run_process(ROOT / "scripts/compare_dit.py", *line, processes=2)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "two" / "compare.json").read_text())["runs"]
    assert [run["name"] for run in runs] == ["full", "na3"]
    train_dit(*arguments(colours, tmp_path / "alone", max_train_steps=2, attention="na3"))
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "two" / "na3_0")
    assert all(np.allclose(one[name], two[name], rtol=0, atol=1e-6) for name in one)


def test_names_say_in_what_they_differ():
    assert names_of(variants(CompareArguments(), 3)) == ["as given"]
    axes = CompareArguments(objectives=["flow"], seeds=[1, 2])
    assert names_of(variants(axes, 0)) == ["seed 1", "seed 2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objectives": ["velocity"]}, "objectives must be among epsilon, sample, v_prediction, flow; got 'velocity'"),
        ({"conditionings": ["film"]}, "conditionings must be among adaln_zero"),
        ({"attentions": []}, "attentions must be one or more different values"),
        ({"seeds": [1, 1]}, "seeds must be one or more different values"),
        ({"seeds": [-1]}, "seeds must be 0 or more"),
    ],
)
def test_bad_axes(given, message):
    with pytest.raises(ValueError, match=message):
        CompareArguments(**given)


RUN = {  # what all trainings of these tests share
    "parameters": 2_000_000,
    "images_per_second": None,
    "loss": 0.5,
    "steps": 10,
    "global_batch": 8,
    "history": [[10, 0.5]],
}


def test_scores_stand_with_their_error():
    run = {
        "name": "a",
        **RUN,
        "scored": [{"step": 10, "cmmd": 1.25, "standard_error": 0.125, "frechet_distance": 3.0}],
        "hardware": "cpu",
        "versions": {"torch": "2"},
    }
    text = compare_markdown([run, {**run, "name": "b"}])
    assert "| a | 2.00 | – | 0.5000 | 1.25 ± 0.12 | 3 |" in text and "80 images seen" in text
    figure = plot_trainings([run, {**run, "name": "b"}])
    assert [len(axes.lines) > 0 for axes in figure.axes] == [True, True, True]
    assert len(plot_trainings([{**run, "scored": []}]).axes) == 1


def test_scores_have_their_errors_and_no_counts():
    last = {"step": 10, "recall": 0.5, "recall_standard_error": 0.04, "frechet_distance": 3.0, "precision_k": 3.0}
    run = {
        **RUN,
        "scored": [last | {"n_predictions": 30.0, "n_references": 200.0}],
        "hardware": "cpu",
        "versions": {"torch": "2"},
    }
    runs = [{**run, "name": f"cross_attention, v_prediction, seed {seed}"} for seed in range(12)]
    lines = compare_markdown(runs).splitlines()
    assert lines[0] == "| training | million parameters | images/s | loss | recall | frechet_distance |"
    assert lines[2].endswith("| 0.5000 | 0.5 ± 0.04 | 3 |")
    figure = plot_trainings(runs)
    figure.draw_without_rendering()
    label, names = figure.axes[2].yaxis.label, figure.axes[2].get_xticklabels()
    assert "standard errors" in label.get_text()
    assert not any(label.get_window_extent().overlaps(name.get_window_extent()) for name in names)
    assert all(tick == round(tick) for axes in figure.axes[:2] for tick in axes.get_xticks())
