"""The report of the studies: verdicts and text come from the cells and follow them."""

import json
import sys

import pytest

from tests import ROOT
from tests.processes import run_process

sys.path.insert(0, str(ROOT / "scripts"))
from findings import cells, claims, collapse, noise, report
from findings.robust_runs import Plan, run_plans
from findings.study import Place, Sources

sys.path.remove(str(ROOT / "scripts"))

CONFIRMED, REFUTED, OPEN = claims.CONFIRMED, claims.REFUTED, claims.OPEN


def cell(loss, name, accuracy, seed=0, images=noise.IMAGES, **settings):
    return {
        "settings": {"loss": loss, "noise": name, "seed": seed, "model": "cnn_small", "max_train_samples": images}
        | settings,
        "accuracy": {"last": accuracy / 100, "best": accuracy / 100, "best_epoch": 3.0},
        "noise": {"rate": 0.4},
        "memorisation": {"train_memorised": 0.5},
        "history": [
            {"epoch": float(epoch), "test_accuracy": accuracy / 100, "train_memorised": 0.1} for epoch in (1, 2)
        ],
        "train_images": images,
        "parameters": 7,
        "hardware": "cpu",
        "versions": {"torch": "2", "transformers": "5", "datasets": "5"},
    }


# Accuracies for which everything that the report said is true.
AS_SAID = {
    "clean": {"ce": 61, "fl": 60, "nce": 47, "nfl": 48, "nce+rce": 59},
    "symmetric_20": {"ce": 50, "fl": 50, "nce": 46, "nfl": 46, "nce+rce": 55},
    "symmetric_40": {"ce": 38, "fl": 38, "nce": 43, "nfl": 44, "nce+rce": 52},
    "symmetric_60": {"ce": 27, "fl": 27, "nce": 39, "nfl": 40, "nce+rce": 46},
    "symmetric_80": {"ce": 14, "fl": 14, "nce": 25, "nfl": 25, "nce+rce": 19},
    "asymmetric_10": {"ce": 50, "fl": 50, "nce": 46, "nfl": 46, "nce+rce": 57},
    "asymmetric_20": {"ce": 57, "fl": 57, "nce": 46, "nfl": 46, "nce+rce": 55},
    "asymmetric_30": {"ce": 40, "fl": 40, "nce": 46, "nfl": 46, "nce+rce": 53},
    "asymmetric_40": {"ce": 45, "fl": 45, "nce": 46, "nfl": 46, "nce+rce": 51},
}


def as_said():
    found = [cell(loss, name, value) for name, row in AS_SAID.items() for loss, value in row.items()]
    again = [cell(loss, name, AS_SAID[name][loss] + 0.4, 1) for name in noise.REPEATED for loss in noise.LOSSES]
    return found + again


def verdicts(cells_of):
    return [claim.verdict for claim in noise.claims(cells_of)]


def test_what_the_cells_show_is_confirmed():
    assert verdicts(as_said()) == [CONFIRMED] * 4


@pytest.mark.parametrize(
    ("loss", "name", "value", "claim"),
    [
        ("nce", "clean", 70, 0),
        ("ce", "clean", 20, 1),
        ("nfl", "symmetric_60", 60, 2),
        ("nce+rce", "asymmetric_20", 20, 3),
    ],
)
def test_one_other_cell_turns_its_verdict(loss, name, value, claim):
    changed = as_said()
    for one in changed:
        if (one["settings"]["loss"], one["settings"]["noise"]) == (loss, name):
            one["accuracy"]["last"] = value / 100
    assert verdicts(changed)[claim] == REFUTED


def test_what_the_spread_hides_is_left_open():
    changed = as_said()
    for one in changed:
        if (one["settings"]["loss"], one["settings"]["noise"]) == ("nfl", "symmetric_60"):
            one["accuracy"]["last"] = 0.459
    assert verdicts(changed)[2] == OPEN
    alone = [one for one in as_said() if one["settings"]["seed"] == 0]  # no seeds, no spread
    assert verdicts(alone) == [OPEN] * 4
    assert verdicts([]) == [OPEN] * 4


def test_differences_are_judged_by_their_errors():
    assert claims.decide([(1.0, 0.4), (0.9, 0.4)]) == CONFIRMED
    assert claims.decide([(1.0, 0.4), (0.7, 0.4)]) == OPEN
    assert claims.decide([(1.0, 0.4), (-0.9, 0.4)]) == REFUTED
    assert claims.pooled_spread([[1.0, 3.0], [5.0], [2.0, 2.0, 5.0]]) == pytest.approx((8 / 3) ** 0.5)
    assert claims.pooled_spread([[1.0], [2.0]]) is None
    assert claims.difference([3.0], [1.0, 2.0], 2.0) == (1.5, pytest.approx(6**0.5))


def of_variant(name, accuracy, seed=0):
    variant = collapse.VARIANTS[name]
    settings = collapse.BARE | variant.flags | {"model": variant.model, "config_overrides": variant.config}
    return cell("nce+rce", "symmetric_80", accuracy, seed, images=None, **settings) | {"train_images": 50_000}


def test_the_collapse_and_what_heals_it():
    bare = [of_variant("bare", 10), of_variant("bare", 11, 1)]
    healed = [of_variant("width_4", 35), of_variant("resnet20", 30)]
    assert [claim.verdict for claim in collapse.claims(bare + healed)] == [CONFIRMED, CONFIRMED]
    assert [claim.verdict for claim in collapse.claims([*bare, healed[0], of_variant("resnet20", 12)])] == [
        CONFIRMED,
        REFUTED,
    ]
    assert [claim.verdict for claim in collapse.claims([of_variant("bare", 30), *healed])] == [REFUTED, OPEN]
    assert [claim.verdict for claim in collapse.claims([])] == [OPEN, OPEN]
    assert "Learns: width x 4, resnet20_cifar." in collapse.paragraph(bare + healed)


def test_a_plan_of_each_study_is_another_cell():
    for study in report.STUDIES.values():
        assert len(set(study.cells)) == len(study.cells)
    assert [len(report.STUDIES[name].cells) for name in ("noise", "collapse", "human")] == [67, 14, 24]


def test_a_run_becomes_a_cell_once(tmp_path):
    plan = Plan("nce+rce", "symmetric_40", images=96, flags={"num_train_epochs": 1.0, "use_cpu": True})
    sources = Sources("digits", "nowhere", "nowhere", "clip")
    run_plans("noise", [plan], Place(tmp_path / "work", tmp_path / "cells", sources))
    path = tmp_path / "cells" / "noise" / "symmetric_40-cnn_small-nce+rce-seed0.json"
    content = json.loads(path.read_text())
    assert content["settings"]["dataset"] == "cifar10" and content["settings"]["loss"] == "nce + rce"
    assert content["noise"] == {"rate": pytest.approx(0.4, abs=0.02)}
    assert all("loss_histogram" not in row for row in content["history"])
    before = path.stat().st_mtime_ns
    run_plans("noise", [plan], Place(tmp_path / "other", tmp_path / "cells", sources))
    assert path.stat().st_mtime_ns == before and not (tmp_path / "other").exists()


def committed():
    return {name: list(cells.read_cells(name, cells.RESULTS).values()) for name in report.STUDIES}


def test_the_committed_report_is_what_its_cells_give():
    assert (ROOT / "model_cards" / "RESULTS.md").read_text(encoding="utf-8") == report.render_report(committed())
    changed = committed()
    changed["noise"][0]["accuracy"]["last"] = 0.0123
    assert report.render_report(changed) != report.render_report(committed())


def test_the_script_lists_the_studies():
    done = run_process(ROOT / "scripts" / "studies.py", "--list")
    assert done.returncode == 0 and "of  67 cells  Accuracy against noise" in done.stdout
