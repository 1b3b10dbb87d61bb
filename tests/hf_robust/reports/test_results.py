import copy
import json

import pytest

from hf_robust.reports.card import render_card
from hf_robust.reports.plots import plot_runs
from hf_robust.reports.results import accuracy_summary, epoch_history, read_results
from hf_robust.reports.tables import details_table, results_table
from hf_robust.studies.publish import draw_figures
from tests import ROOT

MEASURED = json.loads((ROOT / "model_cards" / "results" / "cnn_small_symmetric_40.json").read_text())[0]


def test_history_joins_the_entries_of_a_step():
    log = [
        {"loss": 2.0, "learning_rate": 0.1, "epoch": 1.0, "step": 5},
        {"eval_accuracy": 0.5, "eval_loss": 1.0, "eval_cross_entropy": 1.5, "epoch": 1.0, "step": 5},
        {"train_memorised": 0.25, "epoch": 1.0, "step": 5},
        {"loss": 1.0, "epoch": 1.5, "step": 7},
        {"eval_accuracy": 0.5, "epoch": 2.0, "step": 10},
        {"train_loss": 9.0, "epoch": 2.0, "step": 10},
    ]
    history = epoch_history(log)
    assert history[0] == {
        "epoch": 1.0, "train_loss": 2.0, "learning_rate": 0.1, "test_accuracy": 0.5, "test_loss": 1.0,
        "test_cross_entropy": 1.5, "train_memorised": 0.25,
    }  # fmt: skip
    assert history[1] == {"epoch": 2.0, "test_accuracy": 0.5}
    assert accuracy_summary(history) == {"last": 0.5, "best": 0.5, "best_epoch": 1.0}


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        (("accuracy", "best"), 0.99, "'accuracy' must be that of its history"),
        (("history", -1, "train_memorised"), 0.5, "'memorisation' must be that of the last entry"),
        (("history", 0, "test_accuracy"), None, "'history[0].test_accuracy' must be a number"),
        (("noise", "matrix", 3, 7), 0.5, "'noise.matrix' must have 10 rows of 10 shares that sum to 1"),
        (("noise", "estimated_matrix", 3), [1.0], "'noise.estimated_matrix' must have 10 rows"),
        (("noise", "rate"), 0.9, "'noise.rate' must be that of its matrix, is 0.9"),
        (("history", 0, "loss_histogram", "clean"), [1], "a count between each two edges"),
        (("history", 0, "loss_histogram", "edges", 2), -1, "edges must ascend"),
    ],
)
def test_results_that_contradict_themselves_are_refused(way, value, says, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(MEASURED))
    assert read_results(path) == MEASURED
    holder = content = copy.deepcopy(MEASURED)
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value) and len(str(caught.value)) <= 300


OPTIONAL = [
    "memorisation",
    "images_per_second",
    "train_images",
    "test_images",
    "parameters",
    "label_names",
    "versions",
]
OPTIONAL += ["hardware", "finished", "noise.rate", "noise.matrix", "noise.estimated_rate", "noise.estimated_matrix"]


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("null", [False, True])
def test_what_may_be_missing_is_missed_by_no_card_table_or_figure(name, null, tmp_path):
    content = copy.deepcopy(MEASURED)
    holder, key = (content["noise"], name.partition(".")[2]) if "." in name else (content, name)
    if null:
        holder[key] = None
    else:
        del holder[key]
    (tmp_path / "results.json").write_text(json.dumps(content))
    results = read_results(tmp_path / "results.json")
    card = render_card([results], repo_id="someone/model", reproduce="train", task="image-classification")
    assert "symmetric" in card
    for table in (results_table([results]), details_table([results])):
        assert "nce" in table
    for position, figure in enumerate(draw_figures([results]).values()):
        figure.savefig(tmp_path / f"{position}.png", dpi=20)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("history", 0, "epoch"), 1e308),
        (("history", 0, "loss_histogram", "clean", 0), 10**400),
        (("history", 0, "loss_histogram", "edges", -1), 1e308),
        (("test_images",), 10**30),
    ],
)
def test_numbers_that_no_figure_can_show_are_refused(way, value, tmp_path):
    holder = content = copy.deepcopy(MEASURED)
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="results.json: .*must be"):
        read_results(tmp_path / "results.json")


def test_names_of_any_characters_are_drawn(tmp_path):
    result = copy.deepcopy(MEASURED)
    result["label_names"] = [r"$\x$", "a$b$c", "\ud800", "_", "$", "\\", "{", "x" * 5000, "\n", "^"]
    result["settings"] |= {"model": r"$\nosuch$ \ud800", "noise": "$$_{", "dataset": "\udfff"}
    for position, figure in enumerate(draw_figures([result]).values()):
        figure.savefig(tmp_path / f"{position}.png", dpi=20)
        assert position < 5 and (tmp_path / f"{position}.png").stat().st_size < 1 << 21
    plot_runs([result, result | {"settings": result["settings"] | {"model": "_$\\x$"}}]).savefig(tmp_path / "runs.png")


def test_the_loss_of_a_plugin_that_is_not_imported_says_what_to_import(tmp_path):
    path = tmp_path / "results.json"
    settings = MEASURED["settings"] | {"loss": "nce + powers"}
    path.write_text(json.dumps({**MEASURED, "settings": settings, "plugins": ["own_kinds"]}))
    with pytest.raises(ValueError, match="loss 'nce . powers' needs --plugins own_kinds, which registers it"):
        read_results(path)
