import json
import re

import pytest
from huggingface_hub import DatasetCard, ModelCard

from tests import ROOT
from tests.processes import run_process

CARDS = {
    path.name: path
    for path in sorted((ROOT / "model_cards").glob("*.md"))
    if path.name not in ("README.md", "RESULTS.md")
}
SCRIPT = ROOT / "scripts" / "make_cards.py"


def results(name):
    return json.loads((ROOT / "model_cards" / "results" / f"{name}.json").read_text())


def test_the_committed_cards_are_what_the_script_renders():
    before = {name: path.read_bytes() for name, path in CARDS.items()}
    done = run_process(SCRIPT, "--check")
    assert done.returncode == 0, done.stderr
    assert len(before) == 3 and before == {name: path.read_bytes() for name, path in CARDS.items()}


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_valid_and_their_pictures_are_there(name, hub):
    text = CARDS[name].read_text()
    kind = DatasetCard if name == "noisy-cifar10.md" else ModelCard
    kind.load(CARDS[name], ignore_metadata_errors=False).validate()
    assert [request.path for request in hub.server.requests] == ["/api/validate-yaml"]
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)|<img src="([^"]+)"', text)
    assert pictures
    for one, other in pictures:
        assert (CARDS[name].parent / (one or other)).read_bytes().startswith(b"\x89PNG"), (one, other)
    for heading in ("how to use", "reproduce", "limit", "citation|references"):
        assert re.search(rf"^##+ .*({heading})", text, re.MULTILINE | re.IGNORECASE), heading
    assert not re.search(r"\{\{ |\{%|\| None|\bNone\b|\bnan\b|/home/|/tmp/|More Information Needed", text)


def test_the_classifiers_metadata_are_means_of_the_runs():
    card = ModelCard.load(CARDS["cnn_small-nce-rce-symmetric_40.md"])
    runs = [run for run in results("cnn_small_symmetric_40") if run["settings"]["loss"] == "nce + rce"]
    for which in ("last", "best"):
        values = [run["accuracy"][which] for run in runs]
        (entry,) = [entry for entry in card.data.eval_results if which in entry.metric_name]
        assert entry.metric_value == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert entry.dataset_config == "symmetric_40"
        assert entry.metric_args["n"] == 10_000 and entry.metric_args["seed"] == [0, 1, 2]


def test_the_pipelines_metadata_are_the_measured_scores():
    card = ModelCard.load(CARDS["dit-tiny-4-landscapes.md"])
    measured = {
        score[key]
        for one in results("dit_landscapes_scores")
        if one["sampling"]
        for score in one["scores"]
        for key in ("cmmd", "cmmd_unbiased", "frechet_distance", "fd_infinity")
    }
    entries = card.data.eval_results
    assert len(entries) == len(measured)
    for entry in entries:
        assert min(abs(entry.metric_value - value) for value in measured) <= 1e-3 * abs(entry.metric_value)
        assert entry.metric_args["encoder"] and entry.metric_args["n"] >= 1000
    assert all(entry.metric_args["standard_error"] > 0 for entry in entries if entry.metric_type == "cmmd")


def test_the_data_sets_card_has_every_rate():
    text = CARDS["noisy-cifar10.md"].read_text()
    manifest = results("noisy_cifar10")
    assert len(manifest["configs"]) == 24
    for name, entry in manifest["configs"].items():
        assert re.search(rf"^\| `{name}` \| 50000 \| .*\| {100 * entry['rate']:.3f} \|$", text, re.MULTILINE), name
