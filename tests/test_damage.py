"""Each kind of file that may come from elsewhere, changed at random: an error that names it, or what it says.

Where a file can be read, what is made of it (cards, tables) can be made too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluate_metrics.core.moments import Moments
from evaluate_metrics.scoring.embedding import EmbeddingCache
from hf_common.foreign import LONGEST
from hf_common.run_folder import RESULTS, SETTINGS, check_same_run
from hf_dit.models.dit import DiTModel
from hf_dit.publishing.card import dit_pipeline_card
from hf_dit.publishing.publish import read_scores, read_study
from hf_dit.studies.cells import Cell, finished_cell
from hf_dit.training.latents import LatentMoments
from hf_dit.training.records import read_state, read_training
from hf_robust.models import load_model
from hf_robust.noise.cifar10n import read_human_labels
from hf_robust.noise.human import HUMAN_CONFIGS
from hf_robust.noise.matrix_file import read_transition_matrix
from hf_robust.noisy_dataset.card import dataset_card
from hf_robust.noisy_dataset.manifest import read_manifest
from hf_robust.reports.matrix_plot import plot_transition_matrices
from hf_robust.reports.plots import plot_curves
from hf_robust.reports.results import read_results
from hf_robust.reports.tables import details_table, results_table
from hf_robust.studies.folder import finished_results
from hf_robust.studies.folds import _read_fold
from hf_robust.studies.publish import read_run, run_card
from tests import ROOT
from tests.damage import changed_bytes, changed_json, outcome, without_a_field

MEASURED = ROOT / "model_cards" / "results"
COUNT = 24  # of changes of a kind


class Kind(NamedTuple):
    """A kind of file.

    make: writes one into a folder and returns its path and what reads it.
    use: what is made of the value.
    digested: whether the file tells every change of its content.
    longest: characters of an error; a library's own are longer.
    """

    make: Callable[[Path], tuple[Path, Callable[[], object]]]
    use: Callable[[object], object] = lambda value: None
    digested: bool = False
    longest: int = LONGEST


def measured(name):
    return json.loads((MEASURED / f"{name}.json").read_text())


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def manifest(folder):
    path = folder / "noisy_cifar10.json"
    content = measured("noisy_cifar10")
    names = list(content["configs"])[:3]
    written(path, content | {"configs": {name: content["configs"][name] for name in names}})
    return path, lambda: read_manifest(folder, True)


def study(folder):
    path = written(folder / "study.json", measured("dit_landscapes")["study"])
    return path, lambda: read_study(folder)


def cell(folder):
    content = measured("dit_landscapes")["study"]
    settings = content["settings"] | {"class_labels": [0], "images_per_class": 2}
    found = {name: value for name, value in content["cells"][0].items() if not name.startswith("change_")}
    one = Cell(*(found[name] for name in Cell._fields))
    found["images"] = [f"cells/{one.folder}/{place:05d}.png" for place in range(2)]
    path = written(folder / "cells" / f"{one.folder}.json", found | {"settings": settings})
    for place, name in enumerate(found["images"]):
        (folder / name).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(place).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    return path, folder, lambda: finished_cell(folder, one, settings)


def cell_json(folder):
    path, _, read = cell(folder)
    return path, read


def cell_picture(folder):
    _, folder, read = cell(folder)
    path = sorted(folder.rglob("*.png"))[0]

    def pixels():
        if read() is None:
            return None
        with Image.open(path) as image:
            return np.asarray(image)

    return path, pixels


def robust_results(folder):
    path = written(folder / RESULTS, measured("cnn_small_symmetric_40")[0])
    return path, lambda: read_results(path)


def published_results(folder):
    path, _ = robust_results(folder)
    return path, lambda: read_run(path)


def use_published(results):
    use_results(results)
    run_card([results], "user/x", figures={})


def use_results(results):
    results_table([results])
    details_table([results])
    plot_curves(results)
    plot_transition_matrices(results)


def run_settings(folder):
    settings = measured("cnn_small_symmetric_40")[0]["settings"]
    path = written(folder / SETTINGS, settings)

    def read():
        check_same_run(folder, settings)
        return settings

    return path, read


def sweep_cell(folder):
    results = measured("cnn_small_symmetric_40")[0]
    written(folder / SETTINGS, results["settings"])
    path = written(folder / RESULTS, results)
    return path, lambda: finished_results(folder, results["settings"])


def stochastic():
    matrix = np.random.default_rng(0).random((10, 10))
    return matrix / matrix.sum(axis=1, keepdims=True)


def matrix_json(folder):
    path = written(folder / "matrix.json", stochastic().tolist())
    return path, lambda: read_transition_matrix(path, 10)


def matrix_of_results(folder):
    path = written(folder / RESULTS, measured("cnn_small_symmetric_40")[0])
    return path, lambda: read_transition_matrix(path, 10)


def matrix_npy(folder):
    path = folder / "matrix.npy"
    np.save(path, stochastic())
    return path, lambda: read_transition_matrix(path, 10)


def use_matrix(matrix):
    assert matrix.shape == (10, 10) and matrix.min() >= 0 and np.allclose(matrix.sum(axis=1), 1, atol=1.1e-4)


def moments(folder):
    path = folder / "moments.safetensors"
    one = Moments.zeros(4)
    one.update(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    one.save(path, {"encoder": "e", "preprocessing": "p"})

    def read():
        found, metadata = Moments.load(path)
        return found.n, found.sum, found.outer, metadata

    return path, read


def embeddings(folder):
    encoder = SimpleNamespace(weights="w", dim=4, metadata={"encoder": "e"}, name="e")
    cache, images = EmbeddingCache(folder, encoder, torch.float32), [{"bytes": b"1"}, {"bytes": b"2"}]
    cache.put(images, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    (path,) = folder.rglob("*.safetensors")
    return path, lambda: cache.get(images)


def human():
    draw = np.random.default_rng(0)
    return {name: draw.integers(0, 10, 300) for name in ("clean", *HUMAN_CONFIGS)}


def human_pickle(folder, **how):
    path, labels = folder / "CIFAR-10_human.pt", human()
    names = {"clean": "clean_label", **HUMAN_CONFIGS}
    torch.save({key: labels[name] for name, key in names.items()}, path, **how)
    return path, lambda: read_human_labels(path)


def human_old_pickle(folder):
    return human_pickle(folder, _use_new_zipfile_serialization=False)


def human_parquet(folder):
    path = folder / "human.parquet"
    pq.write_table(pa.table(human()), path, write_page_checksum=True)
    return path, lambda: read_human_labels(path)


def use_labels(labels):
    assert all(len(column) == 300 and 0 <= column.min() <= column.max() <= 9 for column in labels.values())


def fold(folder):
    given, held_out = np.arange(30) % 3, np.arange(0, 30, 2)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 15)
    path = folder / "fold-0.safetensors"
    tensors = {"index": held_out, "given": given[held_out], "probabilities": probabilities}
    save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
    return path, lambda: _read_fold(folder, 0, held_out, given, 3)


def dit_results(folder):
    path = written(folder / RESULTS, measured("dit_landscapes")["training"])
    return path, lambda: read_training(path)


def use_dit_results(results):
    dit_pipeline_card(results, repo_id="user/x", pictures={})


def use_study(content):
    training = measured("dit_landscapes")["training"]
    dit_pipeline_card(training, repo_id="user/x", study=content, pictures={"study": content["pictures"]})


def dit_state(folder):
    row = {"step": 5, "loss": 0.5, "mse": 0.4, "vb": 0.1, "learning_rate": 1e-4}
    content = {
        "step": 12, "global_batch": 8, "train_images": 30, "history": [row, row | {"step": 10}],
        "window": [[0.5, 0.4, 0.1], [0.6, 0.4, 0.2]],
    }  # fmt: skip
    path = written(folder / "checkpoint-12" / "training_state.json", content)
    return path, lambda: read_state(path, 12)


def use_state(state):
    [sum(values) for values in zip(*state["window"], strict=True)]


def scores(folder):
    content = {name: value for name, value in measured("dit_landscapes_scores")[0].items() if name != "sampling"}
    path = written(folder / RESULTS, content)
    return path, lambda: read_scores([folder])


def use_scores(content):
    training = measured("dit_landscapes")["training"]
    dit_pipeline_card(training, repo_id="user/x", scores=content, pictures={})


def dit_config(folder):
    DiTModel(
        sample_size=8, patch_size=2, in_channels=3, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_classes=3,
    ).save_pretrained(folder)  # fmt: skip

    def read():
        model = DiTModel.from_pretrained(folder, use_safetensors=True)
        return dict(model.config) | {"_name_or_path": ""}

    return folder / "config.json", read


def classifier_config(folder):
    load_model("cnn_small", num_labels=3, image_size=8).save_pretrained(folder)

    def read():
        return load_model(folder, num_labels=3).config.to_dict()

    return folder / "config.json", read


def latents(folder):
    config = SimpleNamespace(scaling_factor=0.3, shift_factor=None)
    path = folder / "latents-00000.safetensors"
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.rand(6, 2, 4, 4, generator=draw) for name in ("mean", "std")}
    save_file(tensors | {"rows": torch.arange(6)}, path)

    def read():
        moments = LatentMoments(folder, config, 6)
        return moments.rows.clone(), moments.shape

    return path, read


KINDS = {
    "data set's manifest": Kind(manifest, dataset_card),
    "study.json": Kind(study, use_study),
    "cell's JSON": Kind(cell_json),
    "cell's picture": Kind(cell_picture),
    "classifier's results": Kind(robust_results, use_results),
    "classifier's published results": Kind(published_results, use_published),
    "classifier's settings": Kind(run_settings),
    "result in a sweep": Kind(sweep_cell, use_results),
    "matrix.json": Kind(matrix_json, use_matrix),
    "matrix of results": Kind(matrix_of_results, use_matrix),
    "matrix.npy": Kind(matrix_npy, use_matrix),
    "moments": Kind(moments, digested=True),
    "embeddings": Kind(embeddings, digested=True),
    "human labels, .pt": Kind(human_pickle, use_labels, digested=True),
    "human labels, old .pt": Kind(human_old_pickle, use_labels),
    "human labels, Parquet": Kind(human_parquet, use_labels),
    "fold": Kind(fold),
    "DiT's results": Kind(dit_results, use_dit_results),
    "DiT's state": Kind(dit_state, use_state),
    "scores": Kind(scores, use_scores),
    "DiT's config": Kind(dit_config, longest=600),
    "classifier's config": Kind(classifier_config),
    "latents": Kind(latents),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_changed_file_is_named_or_harmless(name, tmp_path):
    kind = KINDS[name]
    path, read = kind.make(tmp_path)
    good, before = path.read_bytes(), read()
    kind.use(before)
    changes = changed_json if path.suffix == ".json" else changed_bytes
    kinds = set()
    for how, content in changes(good, COUNT):
        path.write_bytes(content)
        found = outcome(read, path, before, kind.longest)
        kinds.add(found.kind)
        if found.kind == "other":
            assert not kind.digested, how
            kind.use(found.value)
    assert kinds & {"refused", "absent"}
    path.write_bytes(good)
    assert outcome(read, path, before).kind == "same"


@pytest.mark.parametrize(
    "name", ["data set's manifest", "study.json", "cell's JSON", "DiT's results", "DiT's state", "scores"]
)
def test_no_field_that_is_missing_is_missed_later(name, tmp_path):
    kind = KINDS[name]
    path, read = kind.make(tmp_path)
    before, kinds = read(), set()
    for way, content in without_a_field(path.read_bytes()):
        path.write_bytes(content)
        found = outcome(read, path, before, kind.longest)
        kinds.add(found.kind)
        if found.kind == "other":
            try:
                kind.use(found.value)
            except Exception as error:
                raise AssertionError(f"without {way}") from error
    assert kinds & {"refused", "absent"}
