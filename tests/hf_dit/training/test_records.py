import copy
import json

import pytest

from hf_dit.training.records import read_state, read_training
from tests import ROOT

RESULTS = json.loads((ROOT / "model_cards/results/dit_landscapes.json").read_text())["training"]
ROW = {"step": 5, "loss": 0.5, "mse": 0.4, "vb": 0.1, "learning_rate": 1e-4}
STATE = {"step": 12, "global_batch": 8, "train_images": 30, "history": [ROW], "window": [[0.5, 0.4, 0.1]]}


def changed(content, way, value):
    content = copy.deepcopy(content)
    holder = content
    for key in way[:-1]:
        holder = holder[key]
    holder[way[-1]] = value
    return content


def refused(read, path, content):
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text) <= 300
    return text


@pytest.mark.parametrize(
    ("way", "value", "says"),
    [
        (("steps",), 2599, "must be a whole number"),
        (("loss",), 0.5, "'steps' and 'loss' must be those of the last entry"),
        (("history", 7, "smoothed"), 0.5, "'smoothed' must be the mean"),
        (("history", 7, "mse"), 0.9, r"history[7].loss' must be the sum of its parts"),
        (("history", 7, "vb"), None, "'history[7].vb' must be a number"),
        (("label_names",), ["a"], "must have label_names of num_classes=4"),
        (("config", "num_layers"), 10**12, "config: num_layers must be at most"),
        (("config", "attention"), "na7x", "config: attention item 'na7x'"),
        (("settings", "seed"), "0", "'settings.seed' must be int"),
        (("settings", "random_flip"), 1, "'settings.random_flip' must be bool"),
        (("from_hub",), ["../x"], "'from_hub' must be a list of dataset_name, model or vae"),
    ],
)
def test_results_that_contradict_themselves_are_refused(way, value, says, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    assert read_training(path) == RESULTS
    assert says in refused(read_training, path, changed(RESULTS, way, value))


def test_a_state_is_of_the_step_of_its_folder(tmp_path):
    path = tmp_path / "training_state.json"
    path.write_text(json.dumps(STATE))
    assert read_state(path, 12) == STATE
    assert "'step' must be 13, as in the folder's name, is 12" in refused(
        lambda file: read_state(file, 13), path, STATE
    )
    for way, value in ((("window", 0, 1), 9.0), (("window", 0), [0.5]), (("history", 0, "step"), 13)):
        refused(lambda file: read_state(file, 12), path, changed(STATE, way, value))
