"""Every loss under `RobustTrainer`: the same steps however a batch of 64 is split, and after a kill; L1; weights."""

import json
import math
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.data.transform import ImageTransform
from hf_robust.losses import get_loss, list_losses
from hf_robust.training.checkpoints import complete_checkpoints
from tests.processes import run_process, start_process

CLASSES = 4
MATRIX = [[0.7, 0.1, 0.1, 0.1], [0.0, 0.8, 0.2, 0.0], [0.3, 0.0, 0.6, 0.1], [0.05, 0.1, 0.15, 0.7]]
WEIGHTS = [0.5, 2.0, 0.0, 1.25]
# 64 + 64 + 38: the short window of an epoch is 16 + 16 + 6 accumulated, 32 + 6 on two processes.
IMAGES, STEPS = 166, 20
OPTIONS = {"ogc_ce": "queue=64, interval=4", "ogc_fl": "queue=100, interval=3", "ogc_gce": "queue=64, interval=4"}
OPTIONS = {name: f"epsilon=4, {text}" for name, text in OPTIONS.items()}
OPTIONS |= dict.fromkeys(("anl_ce", "anl_fl", "jal_ce", "jal_fl"), "delta=0.01")
OPTIONS |= {"elr": "beta=0.5", "nlnl": "num_negative=2, seed=3"}


def all_cases():
    """Spec, class weights and transition matrix, by name."""
    cases = {}
    for info in list_losses():
        spec = f"{info.name}({OPTIONS[info.name]})" if info.name in OPTIONS else info.name
        cases[info.name] = {"spec": spec}
        if "transition_matrix" in info.needs:
            cases[info.name]["transition_matrix"] = MATRIX
    sums = {
        "10*nce + 0.1*rce": {},
        "0.5*elr + gjs + 2*nlnl": {},
        "elr(lam=1) + 0.5*elr(beta=0.9)": {},
        "ogc_ce(epsilon=4, queue=64, interval=4) + 0.5*ogc_gce(epsilon=4, queue=96, interval=3)": {},
        "anl_ce(delta=0.01) + 2*jal_fl(delta=0.002)": {},
        "forward + 0.2*backward + elr": {"transition_matrix": MATRIX},
    }
    cases |= {spec: {"spec": spec, **more} for spec, more in sums.items()}
    weighted = ("nce + rce", "elr", "gjs", "anl_ce(delta=0.01)")
    return cases | {f"{spec}, weighted": {"spec": spec, "class_weights": WEIGHTS} for spec in weighted}


CASES = all_cases()


def image_dataset(n=IMAGES, size=5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=generator)
    return ImageTensorDataset(images, torch.randint(0, CLASSES, (n,), generator=generator))


class Net(nn.Module):
    """Small, without batch norm or dropout: a sample's output does not depend on its batch."""

    def __init__(self, size=5):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(size * size, 8), nn.Linear(8, CLASSES)
        nn.init.normal_(self.head.weight)  # logits of some size, so that p_y differs among the samples

    def forward(self, pixel_values, labels=None, **kwargs):
        return ImageClassifierOutput(logits=self.head(self.body(pixel_values.flatten(1)).tanh()))


def make_trainer(folder, loss, callbacks=None, **changes):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "max_steps": STEPS, "per_device_train_batch_size": 64,
        "learning_rate": 0.05, "weight_decay": 1e-3, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "logging_steps": STEPS,
    }  # fmt: skip
    return RobustTrainer(
        model=Net(),
        args=RobustTrainingArguments(**(defaults | changes)),
        train_dataset=image_dataset(),
        image_transform=ImageTransform([0.5], [0.25], crop_padding=1, horizontal_flip=True, seed=1),
        loss=loss,
        callbacks=callbacks,
    )


def train(folder, case, **changes):
    trainer = make_trainer(folder, get_loss(**case), **changes)
    trainer.train()
    return trainer


def logged_loss(trainer):
    """The mean loss of all steps, over all processes."""
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return loss


def everything(trainer):
    """Weights and the loss's state, as one dict."""
    return trainer.model.state_dict() | {f"loss.{key}": value for key, value in trainer.loss.state_dict().items()}


def assert_same(got, expected, atol):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


TWO_PROCESSES = """
import json, os, sys
import torch
from safetensors.torch import save_file
from tests.hf_robust.training.test_loss_training import *
for number, case in enumerate(CASES.values()):
    trainer = train(sys.argv[1], case, per_device_train_batch_size=32, ddp_backend="gloo")
    assert trainer.args.world_size == 2
    process = trainer.args.process_index
    state = {key: value.contiguous() for key, value in everything(trainer).items()}
    save_file(state, f"{sys.argv[1]}/{number}-{process}.safetensors", {"loss": json.dumps(logged_loss(trainer))})
folder = f"{sys.argv[1]}/resumed"
changes = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "ddp_backend": "gloo"}
whole = train(folder, {"spec": BY_TWO}, **(RESUMED | changes))
again = resume(folder, BY_TWO, f"{folder}/checkpoint-4", **changes)
for name, trainer in (("whole", whole), ("again", again)):
    save_file(everything(trainer), f"{folder}/{name}-{process}.safetensors")
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # all is written; taking several trainings down, gloo's threads abort the interpreter once in a while
"""
BY_TWO = "elr + ogc_ce(epsilon=4, queue=48, interval=1)"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of what two processes make of all the cases."""
    folder = tmp_path_factory.mktemp("two")
    done = run_process(TWO_PROCESSES, folder, processes=2, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class RecordThresholds(TrainerCallback):
    def __init__(self, loss):
        self.loss, self.thresholds = loss, []

    def on_step_end(self, args, state, control, **kwargs):
        self.thresholds.append([term.log_threshold.item() for term in self.loss.stateful.values()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow  # its fixture
def test_64_are_4_times_16_accumulated_are_2_processes_of_32(name, two_processes, tmp_path):
    case = CASES[name]
    loss = get_loss(**case)
    record = RecordThresholds(loss)
    whole = make_trainer(tmp_path, loss, callbacks=[record] if name.startswith("ogc") else None)
    whole.train()
    expected = everything(whole)
    assert whole.state.global_step == STEPS
    assert max((a - b).abs().max() for a, b in zip(whole.model.parameters(), Net().parameters(), strict=True)) > 1e-3

    parts = train(tmp_path, case, per_device_train_batch_size=16, gradient_accumulation_steps=4)
    assert parts.state.global_step == STEPS
    assert_same(everything(parts), expected, atol=1e-5)
    assert logged_loss(parts) == pytest.approx(logged_loss(whole), rel=1e-5)

    for process in (0, 1):  # each has the weights and the whole state
        with safe_open(two_processes / f"{list(CASES).index(name)}-{process}.safetensors", "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no dict
            assert_same(state, expected, atol=1e-5)
            assert json.loads(file.metadata()["loss"]) == pytest.approx(logged_loss(whole), rel=1e-5)

    for thresholds in zip(*record.thresholds, strict=True):  # fitted several times, and not to the same
        assert len(set(thresholds)) >= 4 and thresholds[0] == math.log(1e-7) < thresholds[-1]


def first_batch(folder, loss, **changes):
    """Pixels and labels of the first batch that a trainer sees."""
    trainer = make_trainer(folder, loss, **changes)
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return batch["pixel_values"], batch["labels"]


ONE_STEP = {
    "max_steps": 1, "learning_rate": 1.0, "optim_args": "momentum=0", "weight_decay": 0.0, "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant", "logging_steps": 1,
}  # fmt: skip


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_with_class_weights_is_that_of_weighted_cross_entropy(tmp_path, accumulation):
    case = {"spec": "ce", "class_weights": WEIGHTS}
    trainer = train(
        tmp_path, case, per_device_train_batch_size=64 // accumulation, gradient_accumulation_steps=accumulation,
        **ONE_STEP,
    )  # fmt: skip
    model = Net()
    pixels, labels = first_batch(tmp_path, get_loss(**case))
    assert len(labels) == 64
    loss = F.cross_entropy(model(pixels).logits, labels, weight=torch.tensor(WEIGHTS))
    for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        parameter.data -= gradient
    assert_same(trainer.model.state_dict(), model.state_dict(), atol=1e-6)
    assert logged_loss(trainer) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(
    "spec, without, l1",
    [
        ("anl_ce(alpha=2, beta=3, delta=0.01)", "2*nce + 3*nnce", 0.01),
        ("jal_ce(alpha=2, beta=3, a=5, delta=0.01)", "2*nce + 3*amse(a=5)", 0.01),
        ("0.5*anl_ce(delta=0.01) + 3*jal_ce(delta=0.02)", None, 0.065),
    ],
)
def test_l1_counts_once_a_step_before_clipping_and_once_in_the_log(
    tmp_path, spec, without, l1, accumulation, max_grad_norm
):
    changes = ONE_STEP | {"max_grad_norm": max_grad_norm}
    trainer = train(
        tmp_path, {"spec": spec}, per_device_train_batch_size=64 // accumulation,
        gradient_accumulation_steps=accumulation, **changes,
    )  # fmt: skip
    if without is None:
        without = spec.replace("delta=0.01", "delta=0").replace("delta=0.02", "delta=0")
    model = Net()
    pixels, labels = first_batch(tmp_path, get_loss(spec))
    data_loss = get_loss(without)(model(pixels).logits, labels)
    norm = sum(parameter.abs().sum() for parameter in model.parameters())
    gradients = torch.autograd.grad(data_loss, model.parameters())
    gradients = [g + l1 * p.detach().sign() for g, p in zip(gradients, model.parameters(), strict=True)]
    length = torch.cat([g.flatten() for g in gradients]).norm()
    factor = max_grad_norm / (length + 1e-6) if max_grad_norm else 1.0
    assert factor <= 1
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.data -= factor * gradient
    assert_same(trainer.model.state_dict(), model.state_dict(), atol=1e-6)
    assert logged_loss(trainer) == pytest.approx((data_loss + l1 * norm).item(), abs=1e-4)  # written with four digits


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_loss_is_told_of_every_optimizer_step_and_the_learning_rate_of_the_next(tmp_path, accumulation):
    loss, told = get_loss("elr + ogc_ce"), []
    for term in loss.stateful.values():
        term.step = told.append
    size = 64 // accumulation
    trainer = make_trainer(
        tmp_path, loss, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=7
    )
    trainer.train()
    expected = [0.05 * (1 + math.cos(math.pi * step / 7)) / 2 for step in range(1, 8)]  # the cosine schedule
    assert told[::2] == told[1::2] == pytest.approx(expected, abs=1e-12)


def test_the_loss_is_told_each_sample_once_an_epoch_and_which_epoch_it_is(tmp_path):
    """Of images in a known order, and after a resume in mid-epoch too, with the labels that belong to them."""
    seen, labels = [], image_dataset().labels

    def record(loss):
        forward = loss.forward

        def recorded(logits, given, *args, index, epoch, **kwargs):
            assert torch.equal(given, labels[index])
            seen.append((epoch, index))
            return forward(logits, given, *args, index=index, epoch=epoch, **kwargs)

        loss.forward = recorded
        return loss

    changes = RESUMED | {"max_steps": 9}
    make_trainer(tmp_path, record(get_loss("nlnl")), **changes).train()
    assert [epoch for epoch, _ in seen] == [0] * 11 + [1] * 11 + [2] * 11  # 4 + 4 + 3 batches of 16
    orders = [torch.cat([index for epoch, index in seen if epoch == e]) for e in range(3)]
    for order in orders:
        assert torch.equal(order.sort()[0], torch.arange(IMAGES))
    assert not torch.equal(orders[0], orders[1])
    whole = list(seen)
    seen.clear()
    make_trainer(tmp_path, record(get_loss("nlnl")), **changes).train(str(tmp_path / "checkpoint-4"))
    assert len(seen) == 33 - 15
    for (epoch, index), (expected_epoch, expected) in zip(seen, whole[15:], strict=True):
        assert epoch == expected_epoch and torch.equal(index, expected)


# 64 images a step, 3 steps an epoch: step 4 is the first of the second epoch, and 8 steps leave the third unfinished.
RESUMED = {
    "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 4,
}  # fmt: skip


def resume(folder, spec, checkpoint, **changes):
    """A fresh trainer, whose model has other weights and whose loss remembers nothing, from a checkpoint on."""
    trainer = make_trainer(folder, get_loss(spec), **(RESUMED | changes))
    for parameter in trainer.model.parameters():
        parameter.data.normal_()
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def assert_identical(trainer, expected):
    assert_same(everything(trainer), everything(expected), atol=0)
    momenta = (t.optimizer.state_dict()["state"] for t in (trainer, expected))
    for a, b in zip(*(list(m.values()) for m in momenta), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


@pytest.mark.parametrize(
    "spec",
    [
        "elr",
        "ogc_ce(epsilon=4, queue=48, interval=1)",
        "ogc_fl(epsilon=4, queue=80, interval=3)",
        "nlnl(num_negative=2)",
        "gjs",
        "anl_ce(delta=0.01)",
        "elr(beta=0.9) + gjs + 0.5*ogc_gce(epsilon=4, queue=48, interval=3)",
    ],
)
def test_resumed_in_mid_epoch_ends_with_the_same_bits(spec, tmp_path):
    whole = train(tmp_path, {"spec": spec}, **RESUMED)
    again = resume(tmp_path, spec, tmp_path / "checkpoint-4")
    assert again.state.global_step == 8 and again.loss.spec == whole.loss.spec
    assert_identical(again, whole)


@pytest.mark.slow  # its fixture
def test_two_processes_resume_in_mid_epoch_to_the_same_bits(two_processes):
    whole, *others = (
        load_file(two_processes / "resumed" / f"{name}-{process}.safetensors")
        for name in ("whole", "again") for process in (0, 1)
    )  # fmt: skip
    assert {"loss.stateful.0.targets", "loss.stateful.1.recent", "head.weight"} <= whole.keys()
    for other in others:
        assert_same(other, whole, atol=0)


KILLED = """
import sys, time
from tests.hf_robust.training.test_loss_training import *

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(1.0 if state.global_step >= 4 else 0.0)

make_trainer(sys.argv[1], get_loss("elr"), [Slow()], **RESUMED).train()
"""


def test_elr_killed_in_mid_epoch_and_resumed_ends_with_the_same_bits(tmp_path):
    folder = tmp_path / "run"
    process = start_process(KILLED, folder)
    deadline = time.monotonic() + 600
    while not (folder / "checkpoint-4" / "trainer_state.json").exists():
        assert process.returncode is None and time.monotonic() < deadline, "ended before the kill"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (checkpoint,) = complete_checkpoints(folder)
    assert checkpoint.name == "checkpoint-4"
    whole = train(tmp_path / "whole", {"spec": "elr"}, **RESUMED)
    assert_identical(resume(folder, "elr", checkpoint), whole)


@pytest.mark.parametrize(
    "spec, other",
    [
        ("elr", "ce"),
        ("elr", "ogc_ce"),
        ("ogc_ce(queue=48)", "elr"),
        ("nlnl", "elr"),
        ("elr + nlnl", "nlnl + elr"),
        ("elr", "elr + ogc_ce"),
    ],
)
def test_a_checkpoint_without_what_the_loss_remembers_is_refused(spec, other, tmp_path):
    """Of another loss, or cut off: ELR would else begin anew in silence, and its targets with it."""
    train(tmp_path, {"spec": spec}, **(RESUMED | {"max_steps": 4, "gradient_accumulation_steps": 1}))
    checkpoint = tmp_path / "checkpoint-4"
    kept = checkpoint / "loss.safetensors"
    assert kept.exists() == (spec != "nlnl")
    with pytest.raises(
        ValueError, match=r"checkpoint .*checkpoint-4 can't be resumed with loss .*another loss"
    ) as error:
        resume(tmp_path, other, checkpoint)
    assert get_loss(other).spec in str(error.value)
    if kept.exists():
        kept.unlink()
        with pytest.raises(ValueError, match=r"remembers stateful.*: its loss.safetensors is missing"):
            resume(tmp_path, spec, checkpoint)


def test_a_loss_that_remembers_nothing_resumes_without_a_file(tmp_path):
    train(tmp_path, {"spec": "nce"}, **(RESUMED | {"max_steps": 4}))
    assert not (tmp_path / "checkpoint-4" / "loss.safetensors").exists()
    resumed = resume(tmp_path, "nlnl + gce", tmp_path / "checkpoint-4")  # another loss, but nothing is lost
    assert resumed.state.global_step == 8
