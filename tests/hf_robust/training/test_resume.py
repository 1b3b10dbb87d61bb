"""What a checkpoint gives back: the weights of every family to the last bit, the record, and errors that name what
is missing."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_common import running, signals
from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.transform import ImageTransform
from hf_robust.training.checkpoints import complete_checkpoints, train_until_stopped
from hf_robust.training.restore import restore_weights
from tests.processes import run_process

from .families import MODELS, WITHOUT_IMAGES, largest_difference, make_trainer, record, samples


class Broken(Exception):
    pass


class BreakAt(TrainerCallback):
    """As a kill would, after what a step does and before what follows it."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Broken


def trained(family, folder, **changes):
    trainer = make_trainer(family, folder, **changes)
    trainer.train()
    return trainer


def broken(family, folder, step, **changes):
    trainer = make_trainer(family, folder, **changes)
    trainer.add_callback(BreakAt(step))
    with pytest.raises(Broken):
        trainer.train()


def resumed(family, folder, **changes):
    trainer = make_trainer(family, folder, **changes)
    for parameter in trainer.model.parameters():  # none of the seed's, of which some would be right by chance
        if parameter.requires_grad:
            parameter.data.fill_(0.5)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def assert_equal(a, b):
    assert largest_difference(a.model, b.model) == 0
    assert record(a) == record(b)


@pytest.mark.parametrize("family", MODELS)
def test_a_resumed_training_equals_one_that_was_never_stopped(tmp_path, family):
    """With dropout, in mid-epoch (7 of 15 steps, of 5 an epoch), and with a loss that has a state where one fits."""
    loss = "anl_ce" if family in WITHOUT_IMAGES else "elr"
    whole = trained(family, tmp_path / "a", loss=loss)
    broken(family, tmp_path / "b", 7, loss=loss)
    assert_equal(resumed(family, tmp_path / "b", loss=loss), whole)


@pytest.mark.parametrize("family", MODELS)
def test_the_best_model_at_the_end_has_the_weights_of_the_best_step(tmp_path, family):
    """The first of three evaluations is the best; the weights are looked at while they train, not in a checkpoint."""
    seen, turns = {}, itertools.count()

    class Look(TrainerCallback):
        def on_save(self, args, state, control, model, **kwargs):
            seen[state.global_step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trainer = make_trainer(
        family, tmp_path, save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="eval_turn",
        greater_is_better=False,
    )  # fmt: skip
    trainer.compute_metrics = lambda prediction: {"turn": next(turns)}
    trainer.add_callback(Look())
    trainer.train()
    assert list(seen) == [5, 10, 15] and trainer.state.best_model_checkpoint.endswith("checkpoint-5")
    moved = 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, seen[5][name]), name
        moved += not torch.equal(tensor, seen[15][name])
    assert moved > 3


KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from tests.hf_robust.training.families import make_trainer

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = make_trainer("vit", sys.argv[1], loss="ogc_ce")
trainer.add_callback(Kill())
trainer.train()
"""


def test_a_killed_process_is_resumed_by_another(tmp_path):
    killed = run_process(KILLED, tmp_path / "b", OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert killed.returncode == -signal.SIGKILL
    assert_equal(resumed("vit", tmp_path / "b", loss="ogc_ce"), trained("vit", tmp_path / "a", loss="ogc_ce"))


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    broken("convnext", tmp_path / "b", 7)
    last = tmp_path / "b" / "checkpoint-6"
    (last / "trainer_state.json").unlink()
    assert_equal(resumed("convnext", tmp_path / "b"), trained("convnext", tmp_path / "a"))


def test_no_complete_checkpoint_is_one_error(tmp_path):
    trainer = make_trainer("vit", tmp_path)
    with pytest.raises(ValueError, match="resume_from_checkpoint=True.*holds no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="checkpoint-2.*trainer_state.json"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("stop", [6, 11])
def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_evaluation(tmp_path, stop):
    """Saved every 5 steps, of 5 an epoch; also 2.6 epochs, whose last step is in the middle of one."""
    changes = {"save_steps": 5, "max_steps": 13}
    whole = trained("vit", tmp_path / "a", **changes)
    state = json.loads((tmp_path / "a" / "checkpoint-5" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "eval_loss" in row] == [5]
    broken("vit", tmp_path / "b", stop, **changes)
    assert_equal(resumed("vit", tmp_path / "b", **changes), whole)


def test_a_training_that_is_resumed_at_its_end_makes_no_step(tmp_path):
    whole = trained("vit", tmp_path, max_steps=13)
    assert complete_checkpoints(tmp_path)[0].name == "checkpoint-13"
    again = resumed("vit", tmp_path, max_steps=13)
    assert again.state.global_step == 13
    assert_equal(again, whole)


def test_another_number_of_processes_is_refused(tmp_path):
    broken("vit", tmp_path, 3)
    progress = tmp_path / "checkpoint-2" / "progress.json"
    content = json.loads(progress.read_text())
    progress.write_text(json.dumps(content | {"losses": content["losses"] * 2}))
    with pytest.raises(ValueError, match="as many processes as wrote it, 2; got 1"):
        make_trainer("vit", tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_without_a_state_that_trainer_would_miss_in_silence_is_refused(tmp_path, name):
    broken("vit", tmp_path, 3)
    path = tmp_path / "checkpoint-2" / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"[]" * 40):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint-2' can't be resumed: (its state of the|.* is not what was)"):
            make_trainer("vit", tmp_path).train(resume_from_checkpoint=True)
    path.unlink()
    with pytest.raises(ValueError, match=f"checkpoint-2' can't be resumed: it lacks {name}"):
        make_trainer("vit", tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("optimizer.pt", lambda state: state.update(state={})),
        ("optimizer.pt", lambda state: state["state"].popitem()),
        ("scheduler.pt", lambda state: state.update(last_epoch=0)),
    ],
)
def test_a_state_that_is_whole_but_another_is_refused(tmp_path, name, change):
    broken("vit", tmp_path, 3)
    path = tmp_path / "checkpoint-2" / name
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"checkpoint-2' can't be resumed: {name} is not what was written there"):
        make_trainer("vit", tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"global_step": 4}, "'global_step' must be that of the folder's name"),
        ({"max_steps": "x"}, "'max_steps' must be"),
        ({"epoch": 3.0}, "'epoch' is 3.0 at step 6"),
        ({"log_history": []}, "'log_history' is empty"),
        ({"log_history": [1]}, "'log_history' must be"),
        ({"stateful_callbacks": None}, "'stateful_callbacks' must be"),
        ({"total_flos": "x"}, "'total_flos' must be"),
    ],
)
def test_a_state_file_that_contradicts_itself_is_named(tmp_path, changes, said):
    broken("vit", tmp_path, 7)
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError) as caught:
        make_trainer("vit", tmp_path).train(resume_from_checkpoint=str(path.parent))
    assert str(caught.value).startswith(str(path)) and said in str(caught.value)


@pytest.mark.parametrize("step", [5.5, True, -3, {}, "2", None])
def test_a_state_whose_step_is_no_number_of_steps_is_of_no_checkpoint(tmp_path, step):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    assert complete_checkpoints(tmp_path) == [folder]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert complete_checkpoints(tmp_path) == []
    (folder / "trainer_state.json").write_text('{"log_history": ' + "[" * 100_000)
    assert complete_checkpoints(tmp_path) == []


def changed_weights(folder, change) -> Path:
    file = next(path for path in Path(folder).glob("*model.safetensors"))
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})
    return file


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(logits=self.head(self.norm(self.body(pixel_values.flatten(1)))))


def plain_trainer(folder):
    return RobustTrainer(
        model=Plain(), train_dataset=samples("vit"), image_transform=ImageTransform([0.5] * 3, [0.25] * 3),
        args=RobustTrainingArguments(str(folder), use_cpu=True, max_steps=2, save_steps=1, save_strategy="steps",
                                     report_to="none", disable_tqdm=True, per_device_train_batch_size=8),
    )  # fmt: skip


@pytest.mark.parametrize("family", ["plain", "vit", "swin", "lora", "bert"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_named(tmp_path, family):
    def make():
        return plain_trainer(tmp_path) if family == "plain" else make_trainer(family, tmp_path, max_steps=2)

    make().train()
    last, gone = tmp_path / "checkpoint-2", {}

    def without_one(weights):
        name = "norm.running_var" if family == "plain" else sorted(weights)[len(weights) // 2]
        gone[name] = weights.pop(name)

    changed_weights(last, without_one)
    ((name, tensor),) = gone.items()
    trainer = make()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="checkpoint-2.*missing") as caught:
        trainer.train(resume_from_checkpoint=str(last))
    assert name.rpartition(".")[2] in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    changed_weights(last, lambda weights: weights.update({name: tensor, "none_of.its.names": torch.ones(2)}))
    with pytest.raises(ValueError, match="checkpoint-2.*none_of.its.names"):
        make().train(resume_from_checkpoint=str(last))
    changed_weights(last, lambda weights: weights.pop("none_of.its.names"))
    make().train(resume_from_checkpoint=str(last))
    changed_weights(last, lambda weights: weights.update({name: torch.ones(9, 9)}))
    with pytest.raises(ValueError, match="checkpoint-2.*"):
        make().train(resume_from_checkpoint=str(last))


@pytest.mark.parametrize("family", ["vit", "lora"])
def test_weights_of_which_one_bit_was_flipped_are_refused(tmp_path, family):
    """In the checkpoint to go on from, and in the best one, which is read at the end."""
    best = {"save_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 2}

    def flip(folder):
        (file,) = folder.glob("*model.safetensors")
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)

    trained(family, tmp_path / "a", max_steps=2)
    flip(tmp_path / "a" / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoint-2' can't be resumed: its weights are not what was written there"):
        make_trainer(family, tmp_path / "a", max_steps=2).train(resume_from_checkpoint=True)
    trainer = make_trainer(family, tmp_path / "b", **best)
    load = trainer._load_best_model

    def flip_and_load():
        flip(Path(trainer.state.best_model_checkpoint))
        load()

    trainer._load_best_model = flip_and_load
    with pytest.raises(ValueError, match="its weights are not what was written there"):
        trainer.train()


def test_weights_that_are_no_safetensors_are_named(tmp_path):
    trained("vit", tmp_path, max_steps=2)
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ValueError, match="checkpoint-2"):
        make_trainer("vit", tmp_path).train(resume_from_checkpoint=True)


def test_a_model_changed_after_it_was_made_is_restored_by_its_names(tmp_path):
    def make():
        trainer = make_trainer("convnext", tmp_path, max_steps=2)
        trainer.model.classifier = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        return trainer

    first = make()
    first.train()
    second = make()
    restore_weights(second.model, tmp_path / "checkpoint-2")
    assert largest_difference(first.model, second.model) == 0


def test_half_precision_is_restored_as_it_is(tmp_path):
    model = MODELS["vit"]().to(torch.bfloat16)
    model.classifier.to(torch.float32)
    model.save_pretrained(tmp_path)
    other = MODELS["vit"]().to(torch.bfloat16)
    other.classifier.to(torch.float32)
    restore_weights(other, tmp_path)
    for name, tensor in model.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype and torch.equal(other.state_dict()[name], tensor), name


def test_what_is_trained_beside_adapters_and_saved_by_none_is_named(tmp_path):
    from peft import LoraConfig, get_peft_model

    def make():
        trainer = make_trainer("vit", tmp_path, max_steps=2)
        model = get_peft_model(MODELS["vit"](), LoraConfig(r=2, target_modules=["q_proj"]))
        model.base_model.model.classifier.requires_grad_(True)
        return RobustTrainer(
            model=model,
            args=trainer.args,
            train_dataset=samples("vit"),
            image_transform=trainer.image_transform,
            eval_dataset=samples("vit"),
        )

    make().train()
    with pytest.raises(ValueError, match="classifier.weight.*modules_to_save"):
        make().train(resume_from_checkpoint=True)


class SignalAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [3, 5])
def test_a_signal_ends_a_training_with_a_checkpoint_from_which_it_goes_on(tmp_path, step, monkeypatch):
    """In the middle of an epoch and at its last step."""
    ended = []
    monkeypatch.setattr(signals._State, "number", None)
    monkeypatch.setattr(running.os, "_exit", ended.append)

    def command():
        trainer = make_trainer("vit", tmp_path / "b", save_strategy="epoch")
        trainer.add_callback(SignalAt(step))
        train_until_stopped(trainer, None)
        raise AssertionError("not stopped")

    running.run_command(command, "kept")
    assert ended == [128 + signal.SIGTERM]
    assert [folder.name for folder in complete_checkpoints(tmp_path / "b")] == [f"checkpoint-{step}"]
    monkeypatch.setattr(signals._State, "number", None)
    whole = trained("vit", tmp_path / "a", save_strategy="epoch")
    assert_equal(resumed("vit", tmp_path / "b", save_strategy="epoch"), whole)


def test_without_a_signal_nothing_is_stopped(tmp_path):
    trainer = make_trainer("vit", tmp_path, max_steps=6)
    train_until_stopped(trainer, None)
    assert trainer.state.global_step == 6


def test_weights_saved_by_the_class_of_before_are_read(tmp_path):
    """The names that `save_pretrained` writes are not those of the module: else this test would hold nothing."""
    model = MODELS["vit"]()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) != set(model.state_dict())
    other = ViTForImageClassification(model.config)
    restore_weights(other, tmp_path)
    assert largest_difference(model, other) == 0
    shutil.rmtree(tmp_path)
