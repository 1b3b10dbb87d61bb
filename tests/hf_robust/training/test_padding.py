"""Data sets that know nothing of padding, on several processes: the steps of one process, to the last bits."""

import json

import datasets
import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.memory import EpochShuffleSampler
from hf_robust.data.padded import PaddedSamples
from tests.processes import run_process

CLASSES, WIDTH = 4, 5


class Words(nn.Module):
    """A linear classifier that takes its input by the name of the data set's column."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, features, labels=None, **kwargs):
        return self.linear(features)


def rows(n):
    random = torch.Generator().manual_seed(n)
    return torch.randn(n, WIDTH, generator=random), torch.randint(CLASSES, (n,), generator=random)


def dicts(n):
    return [{"features": x, "labels": y, "index": i} for i, (x, y) in enumerate(zip(*rows(n), strict=True))]


def table(n):
    features, labels = rows(n)
    return datasets.Dataset.from_dict(
        {"features": features.tolist(), "label": labels.tolist(), "index": list(range(n))}
    )


def joined(n):
    parts = dicts(n)
    return ConcatDataset([parts[:10], parts[10:]])


def lazily(n):
    return table(n).with_transform(lambda batch: {name: torch.tensor(values) for name, values in batch.items()})


KINDS = {
    "dicts": (dicts, {"loss": "elr"}),
    "table": (table, {"loss": "nce+rce"}),
    "joined": (joined, {"loss": "ogc_ce"}),
    "lazily": (lazily, {"loss": "anl_ce", "remove_unused_columns": False}),
    "seeded": (table, {"loss": "gce", "data_seed": 7, "num_train_epochs": 3}),
}
# Of steps of 2 x 8: 42 leave 8 and 2, 35 leave 3 and none, 16 nothing; 3 are less than a batch of one process.
SIZES = (42, 35, 16, 3)


def trained(folder, kind, n, batch, **changes):
    make, options = KINDS[kind]
    args = RobustTrainingArguments(
        **{
            "output_dir": str(folder), "use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": batch,
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        } | options | changes
    )  # fmt: skip
    trainer = RobustTrainer(model=Words(), args=args, train_dataset=make(n))
    trainer.train()
    return trainer


SCRIPT = """
import json, os, sys
import torch
from safetensors.torch import save_file
from tests.hf_robust.training.test_padding import KINDS, SIZES, trained
for kind in KINDS:
    for n in SIZES:
        trainer = trained(sys.argv[1], kind, n, 8, ddp_backend="gloo")
        assert trainer.args.world_size == 2
        if trainer.args.process_index == 0:
            loss = json.dumps(trainer.state.log_history[-1]["train_loss"])
            save_file(trainer.model.state_dict(), f"{sys.argv[1]}/{kind}-{n}.safetensors", {"loss": loss})
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # all is written; taking several trainings down, gloo's threads abort the interpreter once in a while
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    done = run_process(SCRIPT, folder, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(folder, tmp_path, kind, n):
    one = trained(tmp_path / "a", kind, n, 16)
    accumulated = trained(tmp_path / "b", kind, n, 4, gradient_accumulation_steps=4)
    with safe_open(folder / f"{kind}-{n}.safetensors", "pt") as file:
        loss = json.loads(file.metadata()["loss"])
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(file.get_tensor(name), value, atol=1e-6, rtol=0)
            torch.testing.assert_close(accumulated.model.state_dict()[name], value, atol=1e-6, rtol=0)
    assert loss == pytest.approx(one.state.log_history[-1]["train_loss"], abs=1e-5)


def test_the_order_is_that_of_trainer_itself(tmp_path, monkeypatch):
    """Of one process, epoch after epoch, as a data set sees which samples are asked for."""
    asked = []

    class Told(list):
        def __getitem__(self, place):
            asked.append(place)
            return super().__getitem__(place)

    def make(n):
        return Told(dicts(n))

    monkeypatch.setitem(KINDS, "told", (make, {"loss": "ce", "seed": 5}))
    asked.clear()
    trained(tmp_path, "told", 10, 4)
    order = asked[-20:]
    expected = []
    for epoch in range(2):
        expected += EpochShuffleSampler(10, 5, lambda epoch=epoch: epoch, 1, stock=True)
    assert order == expected
    assert order[:10] == torch.randperm(10, generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize(
    ("sample", "ignored"),
    [
        ({"x": 1, "labels": 2}, {"x": 1, "labels": -100}),
        ({"x": 1, "label": torch.tensor(2)}, {"x": 1, "label": torch.tensor(-100)}),
        ({"x": 1, "label_ids": np.int64(2)}, {"x": 1, "label_ids": -100}),
        ({"x": 1, "target": 2}, {"x": 1, "target": -100}),
        (("x", 2), ("x", -100)),
        (["x", torch.tensor(2, dtype=torch.uint8)], ["x", torch.tensor(-100)]),
    ],
)
def test_what_lies_beyond_the_end_is_ignored(sample, ignored):
    padded = PaddedSamples([sample, sample], "target")
    assert len(padded) == 2
    assert padded[1] == sample and padded[3] == ignored and padded[5] == ignored
    assert padded.__getitems__([0, 3]) == [sample, ignored]


def test_tensors_in_pairs_are_padded():
    padded = PaddedSamples(TensorDataset(*rows(3)))
    value, label = padded[4]
    torch.testing.assert_close(value, rows(3)[0][1])
    assert label.item() == -100 and label.dtype == torch.int64


@pytest.mark.parametrize("sample", [{"x": 1}, (1, 2, 3), "text", {"labels": None}])
def test_samples_without_a_label_are_named(sample):
    with pytest.raises(ValueError, match="samples of train_dataset must be dicts with one of"):
        PaddedSamples([sample])
