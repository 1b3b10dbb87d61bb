import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_robust.noise.cifar10n import read_human_labels
from hf_robust.noise.human import HUMAN_CONFIGS

NUM_TRAIN = 157


def human_columns():
    rng = np.random.default_rng(4)
    clean = rng.permutation(np.arange(NUM_TRAIN) % 10)
    noisy = {
        name: np.where(rng.random(NUM_TRAIN) < 0.3, rng.integers(0, 10, NUM_TRAIN), clean) for name in HUMAN_CONFIGS
    }
    return {"clean": clean} | noisy


def published():
    # The dict of CIFAR-10_human.pt.
    columns = human_columns()
    return {"clean_label": columns["clean"], **{key: columns[name] for name, key in HUMAN_CONFIGS.items()}}


@pytest.mark.parametrize("layout", ["zip", "legacy", "legacy of NumPy 1"])
def test_published_human_labels(tmp_path, layout):
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save(published(), path, _use_new_zipfile_serialization=layout == "zip")
    if layout == "legacy of NumPy 1":
        data = path.read_bytes()
        assert b"numpy._core.multiarray" in data
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    labels = read_human_labels(path)
    assert set(labels) == {"clean", *HUMAN_CONFIGS}
    for name, expected in human_columns().items():
        assert labels[name].dtype == np.int64
        np.testing.assert_array_equal(labels[name], expected)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, np.save, np.load])
@pytest.mark.parametrize("wrapped", [True, False])
def test_malicious_human_file_runs_nothing(tmp_path, function, wrapped):
    marker = tmp_path / "ran.npy"
    arguments = {
        os.mkdir: (str(marker),),
        eval: (f"open({str(marker)!r}, 'w')",),
        np.save: (str(marker), 0),
        np.load: (str(tmp_path / "other.npy"), None, True),
    }
    evil = Malicious(function, *arguments[function])
    content = published() | {"extra": evil} if wrapped else evil
    torch.save(content, tmp_path / "human.pt")
    with pytest.raises(ValueError, match="is no pickled dict of NumPy arrays"):
        read_human_labels(tmp_path / "human.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="is no pickled dict of NumPy arrays"):
        read_human_labels(tmp_path / "plain.pt")
    assert not marker.exists()


def test_allow_list_is_taken_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save(published(), tmp_path / "human.pt")
    read_human_labels(tmp_path / "human.pt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize(
    ("match", "change"),
    [
        (r"lacks \['worse_label'\]; it has \['aggre_label'", lambda d: d.pop("worse_label")),
        ("unequal lengths", lambda d: d.update(worse_label=d["worse_label"][:-1])),
        (r"worse_label: .* in 0\.\.9, got 10", lambda d: d["worse_label"].fill(10)),
        ("no pickled dict", lambda d: d.update(worse_label=d["worse_label"] * 1.0)),  # float64 is not let through
    ],
)
def test_bad_human_labels(tmp_path, match, change):
    content = published()
    change(content)
    torch.save(content, tmp_path / "human.pt")
    with pytest.raises(ValueError, match=match):
        read_human_labels(tmp_path / "human.pt")


def test_human_labels_that_are_no_integers(tmp_path):
    columns = human_columns() | {"human_worst": np.linspace(0, 9, NUM_TRAIN)}
    pq.write_table(pa.table(columns), tmp_path / "human.parquet")
    with pytest.raises(
        ValueError, match="human.parquet: human_labels: human_worst: expected integers, got dtype float64"
    ):
        read_human_labels(tmp_path / "human.parquet")


def test_human_labels_that_are_no_dict(tmp_path):
    torch.save(np.arange(5), tmp_path / "human.pt")
    with pytest.raises(ValueError, match="holds a ndarray, expected a dict"):
        read_human_labels(tmp_path / "human.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="no pickled dict"):
        read_human_labels(tmp_path / "empty.pt")
