"""Names that come from elsewhere are text in every card: never a heading, a fence, a link, a tag or another cell."""

import copy
import json
import re

import pytest
import yaml

from hf_dit.publishing.card import dit_pipeline_card
from hf_robust.noisy_dataset.card import dataset_card
from hf_robust.reports.card import render_card
from tests import ROOT

from .hf_common.test_words import BAD_NAMES

RESULTS = ROOT / "model_cards" / "results"
HOSTILE = [*BAD_NAMES, "a\u202eb", "x\n```\n# y", "\n\n---\n\n", "'\"${x} {{ 7 * 7 }} {% raw %}", "x" * 300 + "|"]


def measured(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def of_data_set(name):
    manifest = measured("noisy_cifar10")
    manifest["class_names"] = [f"{place}{name}" for place in range(10)]
    return dataset_card(manifest | {"source": name, "versions": {"hf_robust": name, "other": name}})


def of_classifier(name):
    run = copy.deepcopy(measured("cnn_small_symmetric_40")[0])
    run["label_names"] = [name for _ in run["label_names"]]
    run["settings"] |= {"dataset": name, "model": name, "augmentation": name, "dataset_config": name, "noise": name}
    run["settings"]["other_arguments"] = {"optim_args": name}
    run |= {"hardware": name, "versions": {"torch": name}}
    reproduce = "```bash\nx\n```"
    return render_card([run], repo_id="user/x", name=name, task="image-classification", reproduce=reproduce)


def of_pipeline(name):
    found, scores = measured("dit_landscapes"), measured("dit_landscapes_scores")
    training, study = found["training"], found["study"]
    training["label_names"] = [name for _ in training["label_names"]]
    training["settings"] |= {"dataset_name": name, "model": name}
    training |= {"from_hub": [], "hardware": name, "versions": {"torch": name}}
    study["settings"]["hardware"] = name
    for one in scores:
        one["arguments"] |= {"references": name, "references_config": name}
        for score in one["scores"]:
            score["notes"] = [name]
    return dit_pipeline_card(training, repo_id="user/x", study=study, scores=scores, pictures={})


def of_hub_data(name):
    training = measured("dit_landscapes")["training"]
    training["settings"] |= {"dataset_name": name, "model": name}
    training["from_hub"] = ["dataset_name", "model"]
    return dit_pipeline_card(training, repo_id="user/x", pictures={})


def structure(text):
    markdown_it = pytest.importorskip("markdown_it")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()  # as the Hub reads it
    assert isinstance(yaml.safe_load(front), dict)
    outer = markdown_it.MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(body)
    tokens = [token for block in outer for token in (block, *(block.children or []))]
    return [(token.type, token.tag) for token in tokens if token.type not in ("text", "text_special")]


@pytest.mark.parametrize("card", [of_data_set, of_classifier, of_pipeline, of_hub_data])
def test_a_card_has_the_same_structure_whatever_names_are_in_it(card):
    plain = structure(card("plain name"))
    for name in HOSTILE:
        assert structure(card(name)) == plain, name
