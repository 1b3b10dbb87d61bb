"""Results of another rule of drawing noise are those of another run, and never mixed with new ones."""

import json

import pytest

from hf_robust.noise.base import NOISE_VERSION
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.folder import claim_output_dir, finished_results
from hf_robust.studies.folds import folds_settings
from hf_robust.studies.sweep import run_sweep


def arguments(folder):
    args = ExperimentArguments(output_dir=str(folder), num_train_epochs=1, use_cpu=True, disable_tqdm=True)
    return DataArguments(noise="symmetric_40", max_train_samples=60, max_test_samples=20), ModelArguments(), args


@pytest.mark.parametrize("version", [None, 1, NOISE_VERSION + 1])
def test_a_folder_of_another_version_is_another_run(tmp_path, version):
    settings = folds_settings(*arguments(tmp_path), 5)
    assert settings["noise_version"] == NOISE_VERSION == 2
    old = {key: value for key, value in settings.items() if key != "noise_version"}
    old |= {} if version is None else {"noise_version": version}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    (tmp_path / "results.json").write_text(json.dumps({"settings": old, "accuracy": {}, "noise": {}, "history": []}))
    for claim in (claim_output_dir, finished_results):
        with pytest.raises(ValueError, match=rf"holds another run: noise_version=2 \(it has {version}\)"):
            claim(tmp_path, settings)


def test_a_sweep_takes_no_cells_of_another_version(tmp_path):
    run_sweep(["ce"], ["symmetric_40"], ["cnn_small"], [0], *arguments(tmp_path))
    (path,) = tmp_path.rglob("seed0/results.json")
    results = json.loads(path.read_text())
    del results["settings"]["noise_version"]
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"result of another run: noise_version=2 \(it has None\)"):
        run_sweep(["ce"], ["symmetric_40"], ["cnn_small"], [0], *arguments(tmp_path))
