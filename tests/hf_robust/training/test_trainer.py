import json
import math
import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.memory import EpochShuffleSampler, ImageTensorDataset
from hf_robust.data.transform import ImageTransform
from hf_robust.losses import LossInfo, loss_function
from hf_robust.losses.table import LOSSES
from hf_robust.training.checkpoints import complete_checkpoints, last_good_checkpoint
from tests.processes import run_process

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def image_dataset(n=84, classes=4, size=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageTensorDataset(images, torch.randint(0, classes, (n,), generator=generator))


class Net(nn.Module):
    """Small, without batch norm or dropout: a sample's output does not depend on its batch."""

    def __init__(self, classes=4, size=6):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, 8), nn.Tanh()
        )
        self.head = nn.Linear(8, classes)

    def forward(self, pixel_values, labels=None, **kwargs):
        return ImageClassifierOutput(logits=self.head(self.body(pixel_values)))


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": 32,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "epoch",
    }  # fmt: skip
    return RobustTrainingArguments(**(defaults | changes))


def train(folder, model=None, dataset=None, transform=True, **changes):
    trainer = RobustTrainer(
        model=Net() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=image_dataset() if dataset is None else dataset,
        image_transform=ImageTransform(MEAN, STD) if transform else None,
    )
    trainer.train()
    return trainer


def assert_same_weights(a, b, atol=1e-6):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_defaults_are_the_recipe_of_the_papers(tmp_path):
    args = RobustTrainingArguments(output_dir=str(tmp_path))
    got = (args.loss, args.optim, args.optim_args, args.learning_rate, args.weight_decay, args.max_grad_norm)
    assert got == ("nce+rce", "sgd", "momentum=0.9", 0.01, 1e-4, 5.0)
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.lr_scheduler_type) == (128, 120, "cosine")


def test_training_equals_a_loop_by_hand(tmp_path):
    """RCE's gradients are long enough here for the clipping at 5 to matter; 84 = 2 * 32 + 20 images."""
    trainer = train(tmp_path, loss="nce+rce", learning_rate=0.05, weight_decay=0.01, max_grad_norm=0.5)
    model, dataset, steps = Net(), image_dataset(), 6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    step, clipped = 0, 0
    for epoch in range(2):
        order = torch.tensor(list(EpochShuffleSampler(84, 42, lambda epoch=epoch: epoch)))
        for part in order.split(32):
            pixels = (dataset.images[part].float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
                3, 1, 1
            )
            log_probs = model(pixels).logits.log_softmax(-1)
            given = log_probs.gather(1, dataset.labels[part, None])[:, 0]
            loss = (given / log_probs.sum(1) - math.log(1e-4) * (1 - given.exp())).mean()
            optimizer.zero_grad()
            loss.backward()
            clipped += nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            step += 1
    assert step == steps and clipped > 0
    assert_same_weights(trainer.model, model)


@pytest.mark.parametrize("batch, accumulation", [(8, 4), (16, 2), (5, 4)])
def test_accumulated_micro_batches_make_the_same_step(tmp_path, batch, accumulation):
    """The last window is short: 84 images in steps of 32 leave 20, in steps of 20 they leave 4."""
    reference = train(tmp_path / "a", per_device_train_batch_size=batch * accumulation)
    accumulated = train(tmp_path / "b", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert accumulated.state.global_step == reference.state.global_step == 2 * math.ceil(84 / (batch * accumulation))
    assert_same_weights(accumulated.model, reference.model)
    loss_a, loss_b = (t.state.log_history[-1]["train_loss"] for t in (reference, accumulated))
    assert loss_b == pytest.approx(loss_a, abs=1e-5)


TWO_PROCESSES = """
import json, os, sys
import torch
from safetensors.torch import save_file
from tests.hf_robust.training.test_trainer import SIZES, image_dataset, train
for n in SIZES:
    trainer = train(sys.argv[1], dataset=image_dataset(n), per_device_train_batch_size=16, ddp_backend="gloo")
    assert trainer.args.world_size == 2
    scores = trainer.evaluate(image_dataset(21))
    if trainer.args.process_index == 0:
        save_file(trainer.model.state_dict(), f"{sys.argv[1]}/{n}.safetensors", {"scores": json.dumps(scores)})
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # all is written; taking several trainings down, gloo's threads abort the interpreter once in a while
"""
# In steps of 2 x 16, 84 images leave the second process 4 in the last step, 66 leave it none, 70 leave the first 6.
SIZES = (84, 66, 70)


def test_two_processes_make_the_same_steps_as_one(tmp_path):
    done = run_process(TWO_PROCESSES, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for n in SIZES:
        reference = train(tmp_path / str(n), dataset=image_dataset(n), per_device_train_batch_size=32)
        with safe_open(tmp_path / f"{n}.safetensors", "pt") as file:
            for name, value in reference.model.state_dict().items():
                torch.testing.assert_close(file.get_tensor(name), value, atol=1e-6, rtol=0)
            scores = json.loads(file.metadata()["scores"])
        expected = reference.evaluate(image_dataset(21))
        for name in ("eval_accuracy", "eval_cross_entropy", "eval_loss"):
            assert scores[name] == pytest.approx(expected[name], abs=1e-6)


def test_augmented_training_is_the_same_accumulated(tmp_path):
    def run(folder, **changes):
        transform = ImageTransform(MEAN, STD, crop_padding=1, horizontal_flip=True, seed=1)
        trainer = RobustTrainer(
            model=Net(), args=arguments(folder, **changes), train_dataset=image_dataset(), image_transform=transform
        )
        trainer.train()
        return trainer.model

    whole = run(tmp_path / "a")
    assert_same_weights(whole, run(tmp_path / "b", per_device_train_batch_size=8, gradient_accumulation_steps=4))
    plain = train(tmp_path / "c").model
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(whole.parameters(), plain.parameters(), strict=True))


def test_ignored_labels_do_not_count(tmp_path):
    dataset = image_dataset()
    dataset.labels[::3] = -100
    trainer = RobustTrainer(
        model=Net(),
        args=arguments(tmp_path, max_steps=1, per_device_train_batch_size=84, learning_rate=1.0,
                       optim_args="momentum=0", weight_decay=0, max_grad_norm=0, lr_scheduler_type="constant"),
        train_dataset=dataset,
        image_transform=ImageTransform(MEAN, STD),
    )  # fmt: skip
    trainer.train()
    model, kept = Net(), dataset.labels != -100
    pixels = ImageTransform(MEAN, STD)(dataset.images[kept])
    probability = model(pixels).logits.softmax(-1).gather(1, dataset.labels[kept, None])[:, 0]
    log_probs = model(pixels).logits.log_softmax(-1)
    loss = (probability.log() / log_probs.sum(1) - math.log(1e-4) * (1 - probability)).mean()
    for parameter, gradient in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        parameter.data -= gradient
    assert_same_weights(trainer.model, model)


@pytest.mark.parametrize("batch", [1, 10, 64])
def test_evaluation_reports_accuracy_loss_and_plain_cross_entropy(tmp_path, batch):
    dataset = image_dataset(21)
    trainer = RobustTrainer(
        model=Net(), args=arguments(tmp_path, per_device_eval_batch_size=batch, loss="mae"), eval_dataset=dataset,
        data_collator=None, train_dataset=dataset, image_transform=ImageTransform(MEAN, STD),
        compute_metrics=lambda prediction: {"n": len(prediction.label_ids)},
    )  # fmt: skip
    scores = trainer.evaluate()
    with torch.no_grad():
        logits = Net()(ImageTransform(MEAN, STD)(dataset.images)).logits
    assert scores["eval_n"] == 21
    assert scores["eval_accuracy"] == pytest.approx((logits.argmax(-1) == dataset.labels).float().mean().item())
    assert scores["eval_cross_entropy"] == pytest.approx(F.cross_entropy(logits, dataset.labels).item(), abs=1e-6)
    mae = 1 - logits.softmax(-1).gather(1, dataset.labels[:, None]).mean().item()
    assert scores["eval_loss"] == pytest.approx(mae, abs=1e-6)


def test_dropping_the_last_training_batch_drops_nothing_from_an_evaluation(tmp_path):
    dataset = image_dataset(84)
    trainer = RobustTrainer(
        model=Net(), args=arguments(tmp_path, dataloader_drop_last=True, per_device_eval_batch_size=32),
        train_dataset=dataset, eval_dataset=dataset, image_transform=ImageTransform(MEAN, STD),
    )  # fmt: skip
    assert len(trainer.predict(dataset).predictions) == 84 and len(trainer.get_train_dataloader()) == 2
    assert trainer.args.dataloader_drop_last
    with torch.no_grad():
        logits = Net()(ImageTransform(MEAN, STD)(dataset.images)).logits
    assert trainer.evaluate()["eval_cross_entropy"] == pytest.approx(F.cross_entropy(logits, dataset.labels).item())


def test_evaluates_without_a_training_set(tmp_path):
    dataset = image_dataset(21)
    trainer = RobustTrainer(
        model=Net(), args=arguments(tmp_path), eval_dataset=dataset, image_transform=ImageTransform(MEAN, STD)
    )
    part = torch.utils.data.Subset(dataset, range(5))
    assert trainer.predict(part).predictions == pytest.approx(trainer.predict(dataset).predictions[:5], abs=1e-6)


def test_momentum_is_sgds_default_and_no_others(tmp_path):
    assert arguments(tmp_path, optim="adamw_torch").optim_args is None
    assert arguments(tmp_path, optim="rmsprop", optim_args="momentum=0.9").optim_args == "momentum=0.9"
    assert arguments(tmp_path, optim_args="momentum=0.5").optim_args == "momentum=0.5"


def test_evaluation_is_not_augmented(tmp_path):
    dataset = image_dataset(21)
    transform = ImageTransform(MEAN, STD, crop_padding=2, horizontal_flip=True)
    trainer = RobustTrainer(
        model=Net(), args=arguments(tmp_path), train_dataset=dataset, eval_dataset=dataset, image_transform=transform
    )
    with torch.no_grad():
        expected = Net()(transform(dataset.images)).logits
    torch.testing.assert_close(torch.tensor(trainer.predict(dataset).predictions), expected, atol=1e-6, rtol=0)


def test_trains_a_vision_transformer_on_resized_images(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                       image_size=8, patch_size=4, num_labels=4)  # fmt: skip

    def run(folder, **changes):
        torch.manual_seed(0)
        trainer = RobustTrainer(
            model=ViTForImageClassification(config), args=arguments(folder, loss="gce(q=0.5)", **changes),
            train_dataset=image_dataset(), image_transform=ImageTransform(MEAN, STD, size=8),
        )  # fmt: skip
        trainer.train()
        return trainer

    whole = run(tmp_path / "a", num_train_epochs=10)
    parts = run(tmp_path / "b", num_train_epochs=10, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    assert_same_weights(whole.model, parts.model, atol=1e-5)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_trains_a_text_classifier_on_a_datasets_dataset(tmp_path):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    rows = datasets.Dataset.from_dict(
        {
            "input_ids": rng.integers(0, 50, (30, 7)).tolist(),
            "label": rng.integers(0, 3, 30).tolist(),
            "note": ["x"] * 30,
        }
    )
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    weights = BertForSequenceClassification(config).state_dict()

    def run(folder, **changes):
        model = BertForSequenceClassification(config)
        model.load_state_dict(weights)
        args = arguments(folder, loss="sce", optim="adamw_torch", learning_rate=1e-3, **changes)
        trainer = RobustTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        return trainer

    whole = run(tmp_path / "a", per_device_train_batch_size=8)
    parts = run(tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    # AdamW divides by the gradient's size, so that rounding of tiny gradients shows more than under SGD.
    assert_same_weights(whole.model, parts.model, atol=1e-4)
    assert "eval_cross_entropy" in whole.evaluate()


class Exploding(Net):
    """Finite logits for three steps, then infinity."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, pixel_values, **kwargs):
        self.calls += self.training
        return ImageClassifierOutput(logits=super().forward(pixel_values).logits / (self.calls <= 3))


def test_logits_that_are_not_finite_stop_the_run_and_name_step_and_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 4 .*checkpoint-2"):
        train(tmp_path, model=Exploding(), save_strategy="steps", save_steps=2)
    with pytest.raises(FloatingPointError, match=r"step 4 .*none"):
        train(tmp_path / "other", model=Exploding())


def test_a_loss_that_is_nan_of_finite_logits_is_named(tmp_path, monkeypatch):
    none = loss_function()(lambda x: x.logp_y * float("nan"))
    monkeypatch.setitem(LOSSES, "none_at_all", LossInfo("none_at_all", none, "nan", "this work"))
    with pytest.raises(FloatingPointError, match=r"with loss 'none_at_all'.*Its values were NaN before"):
        train(tmp_path, loss="none_at_all")


def test_complete_and_good_checkpoints(tmp_path):
    train(tmp_path, save_strategy="steps", save_steps=2)
    names = [folder.name for folder in complete_checkpoints(tmp_path)]
    assert names == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_st')  # killed while writing
    weights = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    weights["head.bias"][1] = math.nan
    save_file(weights, tmp_path / "checkpoint-4" / "model.safetensors")
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]
    assert last_good_checkpoint(tmp_path).name == "checkpoint-2"
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert last_good_checkpoint(tmp_path) is None
    assert complete_checkpoints(tmp_path / "nothing") == []


def test_decay_can_follow_the_usual_rule(tmp_path):
    every = RobustTrainer(model=Net(), args=arguments(tmp_path))
    usual = RobustTrainer(model=Net(), args=arguments(tmp_path, decay_bias_and_norm=False))
    assert "head.bias" in every.get_decay_parameter_names(every.model)
    assert "head.bias" not in usual.get_decay_parameter_names(usual.model)
    assert "head.weight" in usual.get_decay_parameter_names(usual.model)


def test_bad_arguments_are_named_before_training(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1.*nce"):
        arguments(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="average_tokens_across_devices=False"):
        arguments(tmp_path, average_tokens_across_devices=False)
    with pytest.raises(ValueError, match="batch_eval_metrics=True"):
        arguments(tmp_path, batch_eval_metrics=True)
    with pytest.raises(ValueError, match="nosuch.*nce"):
        arguments(tmp_path, loss="nosuch")
    with pytest.raises(TypeError, match="RobustTrainingArguments.*NoneType"):
        RobustTrainer(model=Net())


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch"):
        RobustTrainer(model=Net(), args=args)


def test_batch_without_labels_is_an_error(tmp_path):
    rows = datasets.Dataset.from_dict({"pixel_values": torch.zeros(4, 3, 6, 6).tolist()})
    trainer = RobustTrainer(model=Net(), args=arguments(tmp_path), train_dataset=rows)
    with pytest.raises(ValueError, match="no 'labels'"):
        trainer.train()
