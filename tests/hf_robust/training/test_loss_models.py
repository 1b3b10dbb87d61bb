"""`RobustTrainer` and its losses with compiled, half-precision, plain and Transformers models."""

import gc
import json
import math

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.data.transform import ImageTransform
from hf_robust.losses import get_loss

CLASSES, SIZE = 3, 8
MATRIX = [[0.7, 0.2, 0.1], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]]
WEIGHTS = [0.5, 2.0, 1.25]


def image_dataset(n=40, channels=1):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return ImageTensorDataset(images, torch.randint(0, CLASSES, (n,), generator=generator))


# `Trainer` collects garbage after every run; what the imports left behind need not be searched each time.
@pytest.fixture(autouse=True, scope="module")
def _freeze():
    gc.freeze()
    yield
    gc.unfreeze()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(SIZE * SIZE, 8), nn.Linear(8, CLASSES)

    def logits(self, pixel_values):
        return self.head(self.body(pixel_values.flatten(1)).tanh())

    def forward(self, pixel_values, labels=None, **kwargs):
        return ImageClassifierOutput(logits=self.logits(pixel_values))


class TupleNet(Net):
    """No config, no output class, no argument for the labels."""

    def forward(self, pixel_values):
        return (self.logits(pixel_values),)


class DictNet(Net):
    def forward(self, pixel_values):
        return {"logits": self.logits(pixel_values)}


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIZE,
                  patch_size=4, num_channels=1, num_labels=CLASSES)
    )  # fmt: skip


def resnet():
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
                     num_labels=CLASSES)
    )  # fmt: skip


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                   num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": 16,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "epoch",
    }  # fmt: skip
    return RobustTrainingArguments(**(defaults | changes))


def make_trainer(folder, spec="elr", model=None, dataset=None, loss=None, **changes):
    return RobustTrainer(
        model=Net() if model is None else model,
        args=arguments(folder, loss=spec, **changes),
        train_dataset=image_dataset() if dataset is None else dataset,
        image_transform=ImageTransform([0.5], [0.25], horizontal_flip=True),
        loss=loss,
    )


def train(*args, **changes):
    trainer = make_trainer(*args, **changes)
    trainer.train()
    return trainer


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(got, expected, atol):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


class Recorder:
    """The loss's inputs and results, as the trainer sees them."""

    def __init__(self, monkeypatch, trainer):
        self.seen = []
        forward = trainer.loss.forward

        def record(logits, labels, *args, **kwargs):
            loss = forward(logits, labels, *args, **kwargs)
            self.seen.append((trainer.loss.training, logits, loss))
            return loss

        monkeypatch.setattr(trainer.loss, "forward", record)


# --- Compiled and half-precision


@pytest.mark.parametrize("spec", ["elr", "gjs + nlnl", "anl_ce(delta=0.01)", "ogc_ce(queue=32, interval=1)"])
def test_a_compiled_model_is_trained_to_the_same_weights(spec, tmp_path):
    torch.compiler.reset()
    calls = []

    class Counted(Net):
        def forward(self, pixel_values, labels=None, **kwargs):
            if not torch.compiler.is_compiling():
                calls.append(len(pixel_values))  # not reached by compiled code
            return super().forward(pixel_values)

    plain = train(tmp_path / "plain", spec, Counted())
    assert len(calls) == 6
    compiled = make_trainer(tmp_path, spec, Counted(), torch_compile=True, torch_compile_backend="aot_eager")
    compiled.train()
    assert len(calls) == 6
    assert_same(weights(compiled), weights(plain), atol=1e-6)
    assert_same(compiled.loss.state_dict(), plain.loss.state_dict(), atol=1e-6)
    assert losses_of(compiled) == pytest.approx(losses_of(plain), abs=1e-5)
    scores = [trainer.evaluate(image_dataset(21)) for trainer in (compiled, plain)]
    for name in ("eval_loss", "eval_cross_entropy", "eval_accuracy"):
        assert scores[0][name] == pytest.approx(scores[1][name], abs=1e-6)


@pytest.mark.parametrize("spec", ["elr", "nce + rce", "gjs", "forward", "ogc_gce(queue=32, interval=1)"])
def test_under_bf16_the_loss_is_float32_and_training_finite(spec, tmp_path, monkeypatch):
    loss = get_loss(spec, transition_matrix=MATRIX if spec == "forward" else None)
    trainer = make_trainer(tmp_path, "ce", loss=loss, bf16=True)
    products = []
    trainer.model.head.register_forward_hook(lambda module, inputs, output: products.append(output.dtype))
    recorder = Recorder(monkeypatch, trainer)
    trainer.train()
    trainer.evaluate(image_dataset(21))
    assert set(products) == {torch.bfloat16}  # it was in autocast
    assert {training for training, _, _ in recorder.seen} == {True, False}
    for training, logits, value in recorder.seen:
        assert value.isfinite() and value.dtype == (torch.float32 if training or logits.dtype != torch.float64
                                                    else torch.float64)  # fmt: skip
    assert all(
        value.isfinite().all() and value.dtype == torch.float32 for value in trainer.model.state_dict().values()
    )
    assert len(losses_of(trainer)) == 2
    full = train(tmp_path, "ce", loss=get_loss(spec, transition_matrix=MATRIX if spec == "forward" else None))
    assert losses_of(trainer) == pytest.approx(losses_of(full), rel=0.02)
    assert losses_of(trainer) != losses_of(full)


@pytest.mark.parametrize("spec", ["elr", "gjs", "nlnl", "ogc_ce(queue=32, interval=1)", "anl_ce"])
def test_evaluation_needs_no_index_or_second_view_and_no_certain_batch(spec, tmp_path):
    trainer = train(tmp_path, spec, per_device_eval_batch_size=7, eval_strategy="no")
    before = {name: value.clone() for name, value in trainer.loss.state_dict().items()}
    # An evaluation set of another size, whose places are others than those of the training set.
    test = image_dataset(90)
    scores = trainer.evaluate(test)
    logits = trainer.model(ImageTransform([0.5], [0.25])(test.images)).logits.detach().double()
    expected = get_loss(spec)
    expected.load_state_dict(before)
    value = expected.eval()(logits, test.labels).item()
    assert scores["eval_loss"] == pytest.approx(value, abs=1e-6)
    cross_entropy = nn.functional.cross_entropy(logits, test.labels).item()
    assert scores["eval_cross_entropy"] == pytest.approx(cross_entropy, abs=1e-6)
    for name, tensor in trainer.loss.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("spec", ["elr", "gjs", "nlnl", "ogc_ce(queue=32, interval=1)"])
def test_evaluation_between_epochs_does_not_change_training(spec, tmp_path):
    plain = train(tmp_path / "a", spec)
    trainer = RobustTrainer(
        model=Net(), args=arguments(tmp_path / "b", loss=spec, eval_strategy="steps", eval_steps=1),
        train_dataset=image_dataset(), eval_dataset=image_dataset(50),
        image_transform=ImageTransform([0.5], [0.25], horizontal_flip=True),
    )  # fmt: skip
    trainer.train()
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 6
    assert_same(weights(trainer), weights(plain), atol=0)
    assert_same(trainer.loss.state_dict(), plain.loss.state_dict(), atol=0)


# --- Models of all kinds


@pytest.mark.parametrize("kind", [TupleNet, DictNet])
@pytest.mark.parametrize("spec", ["elr", "gjs", "anl_ce(delta=0.01)"])
def test_a_plain_module_without_config_works(kind, spec, tmp_path):
    trainer, expected = train(tmp_path, spec, kind()), train(tmp_path, spec, Net())
    assert not hasattr(trainer.model, "config")
    assert_same(weights(trainer), weights(expected), atol=0)
    assert trainer.state.global_step == 6


def image_rows(n=20):
    """A `datasets.Dataset` of normalised pixels."""
    dataset = image_dataset(n)
    pixels = ImageTransform([0.5], [0.25])(dataset.images)
    rows = {"pixel_values": pixels.tolist(), "label": dataset.labels.tolist(), "note": ["x"] * n}
    return datasets.Dataset.from_dict(rows)


def text_rows(n=20):
    rng = np.random.default_rng(0)
    rows = {"input_ids": rng.integers(0, 50, (n, 7)).tolist(), "label": rng.integers(0, CLASSES, n).tolist()}
    return datasets.Dataset.from_dict(rows | {"note": ["x"] * n})


@pytest.mark.parametrize("build, rows", [(vit, image_rows), (resnet, image_rows), (bert, text_rows)])
def test_transformers_models_train_with_elr_on_a_dataset_with_an_index(build, rows, tmp_path):
    train_rows = rows()
    args = arguments(tmp_path, loss="elr(beta=0.5)", per_device_train_batch_size=8, learning_rate=0.1)
    for spec in ("elr", "nlnl"):
        with pytest.raises(ValueError, match=rf"'{spec}' needs an 'index' column.*add_column\('index', range\("):
            RobustTrainer(model=build(), args=arguments(tmp_path, loss=spec), train_dataset=train_rows)
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = RobustTrainer(
        model=model, args=args, train_dataset=train_rows.add_column("index", range(20)), eval_dataset=train_rows
    )
    trainer.train()
    assert trainer.state.global_step == 6 and all(math.isfinite(loss) for loss in losses_of(trainer))
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    targets = trainer.loss.stateful["0"].targets
    assert targets.shape == (20, CLASSES)
    # Each sample was seen twice: 1 - 0.5^2 of a probability distribution.
    torch.testing.assert_close(targets.sum(1), torch.full((20,), 0.75))
    scores = trainer.evaluate()  # whose rows have no index
    assert math.isfinite(scores["eval_loss"]) and scores["eval_loss"] == pytest.approx(scores["eval_cross_entropy"])


def test_the_index_of_a_dataset_says_whose_average_it_is(tmp_path):
    """Two epochs in any order by a frozen model: every sample's average is that of its own prediction."""
    rows = text_rows().add_column("index", np.random.default_rng(1).permutation(20))
    trainer = RobustTrainer(
        model=bert(), args=arguments(tmp_path, loss="elr(beta=0.5)", learning_rate=0.0), train_dataset=rows
    )
    trainer.train()
    with torch.no_grad():
        p = bert().eval()(input_ids=torch.tensor(rows["input_ids"])).logits.softmax(1)
    expected = torch.empty(20, CLASSES)
    expected[torch.tensor(rows["index"])] = 0.75 * p
    torch.testing.assert_close(trainer.loss.stateful["0"].targets, expected, atol=1e-5, rtol=0)


def test_a_part_of_a_numbered_data_set_is_not_taken_for_the_whole(tmp_path):
    message = r"index must be in 0\.\.9, the places in the training set, got \d\d;"
    part = text_rows().add_column("index", range(20)).select(range(10, 20))
    with pytest.raises(ValueError, match=message):
        RobustTrainer(model=bert(), args=arguments(tmp_path, loss="elr"), train_dataset=part).train()
    with pytest.raises(ValueError, match=message):
        train(tmp_path, dataset=torch.utils.data.Subset(image_dataset(), range(10, 20)))


@pytest.mark.parametrize("spec", ["ce", "gjs"])
def test_augmentation_without_an_index_is_an_error_and_not_left_out(spec, tmp_path):
    """Two views of each image would be the same image twice."""
    rows = datasets.Dataset.from_dict(
        {"pixel_values": image_dataset().images.tolist(), "labels": image_dataset().labels.tolist()}
    ).with_format("torch")

    def collate(samples):
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        return batch | {"pixel_values": batch["pixel_values"].to(torch.uint8)}

    def run(train_rows, **options):
        trainer = RobustTrainer(
            model=Net(), args=arguments(tmp_path, loss=spec, train_sampling_strategy="sequential"),
            train_dataset=train_rows, data_collator=collate,
            image_transform=ImageTransform([0.5], [0.25], **options),
        )  # fmt: skip
        trainer.train()
        return weights(trainer)

    with pytest.raises(ValueError, match="horizontal_flip draws by each sample's 'index'.*add_column"):
        run(rows, horizontal_flip=True)
    flipped = run(rows.add_column("index", range(40)), horizontal_flip=True)
    if spec == "gjs":
        with pytest.raises(ValueError, match="needs two augmented views"):
            run(rows)
    else:
        assert any((value - flipped[name]).abs().max() > 1e-4 for name, value in run(rows).items())


def test_gjs_trains_on_two_views_that_differ(tmp_path):
    batches = []
    trainer = make_trainer(tmp_path, "gjs")
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["pixel_values"].clone()), with_kwargs=True
    )
    trainer.train()
    assert [len(batch) for batch in batches] == [32, 32, 16] * 2
    for batch in batches:
        first, second = batch.chunk(2)
        same = (first == second).flatten(1).all(1)
        mirrored = (first == second.flip(-1)).flatten(1).all(1)
        assert (same | mirrored).all()
    same = torch.cat([(first == second).flatten(1).all(1) for first, second in (b.chunk(2) for b in batches)])
    assert 0.25 < same.float().mean() < 0.75


# --- What the config keeps

KEPT = [
    ("10*nce + 0.1*rce", {}),
    ("gce(q=0.3)", {"class_weights": WEIGHTS}),
    ("forward", {"transition_matrix": MATRIX}),
    ("elr(beta=0.9) + 0.5*backward", {"transition_matrix": MATRIX, "class_weights": WEIGHTS}),
    ("ogc_fl(gamma=2, queue=10)", {}),
    ("nlnl(seed=123456789012)", {}),
]


@pytest.mark.parametrize("spec, options", KEPT, ids=[spec for spec, _ in KEPT])
@pytest.mark.parametrize(
    "build, auto", [(vit, AutoModelForImageClassification), (bert, AutoModelForSequenceClassification)]
)
def test_a_saved_model_says_with_which_loss_it_was_trained(build, auto, spec, options, tmp_path):
    loss = get_loss(spec, **options)
    trainer = RobustTrainer(model=build(), args=arguments(tmp_path), loss=loss)
    trainer.save_model(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["robust_loss"]["spec"] == loss.spec
    model = auto.from_pretrained(tmp_path / "saved")
    again = get_loss(model.config.robust_loss)
    assert again.spec == loss.spec and again.terms == loss.terms
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (12,), generator=generator)
    labels[3] = -100
    for reduction in ("none", "mean", "sum"):
        assert torch.equal(again.eval()(logits, labels, reduction), loss.eval()(logits, labels, reduction))
    for each in (loss, again):
        each.train().prepare(12)
    index = torch.arange(12)
    assert torch.equal(again(logits, labels, index=index, epoch=2), loss(logits, labels, index=index, epoch=2))
    # and a model that is trained on keeps the newer loss
    RobustTrainer(model=model, args=arguments(tmp_path, loss="mae"))
    assert model.config.robust_loss == {"spec": "mae"}


def test_arguments_with_class_weights_reach_the_config(tmp_path):
    trainer = RobustTrainer(model=vit(), args=arguments(tmp_path, loss="nce+rce", class_weights=WEIGHTS))
    assert trainer.model.config.robust_loss == {"spec": "nce + rce", "class_weights": WEIGHTS}


def with_model_init(folder, spec, build=None):
    return RobustTrainer(
        model_init=build or vit, args=arguments(folder, loss=spec), train_dataset=image_dataset(),
        image_transform=ImageTransform([0.5], [0.25], horizontal_flip=True),
    )  # fmt: skip


def test_a_model_of_model_init_trains_as_one_that_was_given_and_notes_its_loss(tmp_path):
    trainer = with_model_init(tmp_path / "a", "elr")
    assert trainer.model.config.robust_loss == {"spec": "elr"}
    trainer.train()
    assert trainer.model.config.robust_loss == {"spec": "elr"}
    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    assert get_loss(saved.config.robust_loss).spec == "elr"
    given = train(tmp_path / "b", "elr", vit())
    assert_same(weights(trainer), weights(given), atol=0)
    with_model_init(tmp_path, "elr", lambda: Net()).train()  # a module without config, too


@pytest.mark.parametrize("spec", ["ce", "gjs", "nlnl", "elr", "ogc_ce(queue=32, interval=1)"])
def test_train_called_again_with_model_init_starts_anew(spec, tmp_path):
    trainer = with_model_init(tmp_path, spec)
    trainer.train()
    first = weights(trainer)
    trainer.train()
    assert_same(weights(trainer), first, atol=0)
