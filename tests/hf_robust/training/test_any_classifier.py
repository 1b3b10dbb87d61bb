"""Models, labels and data sets of every shape train as the plain ones do, or one error names what is wrong."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import HPSearchBackend

from hf_robust import RobustTrainer, RobustTrainingArguments, get_loss
from hf_robust.data.memory import ImageTensorDataset, collate_batch
from hf_robust.data.transform import ImageTransform
from hf_robust.training.needs import penalty
from tests.processes import run_process

from .families import CLASSES, MODELS, N, largest_difference, lora_vit, make_trainer, samples

CROP = {"crop_padding": 1, "horizontal_flip": True}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(192, 6), nn.Linear(6, CLASSES)

    def logits(self, pixel_values):
        return self.head(torch.tanh(self.body(pixel_values.flatten(1))))

    def forward(self, pixel_values, labels=None):
        return ImageClassifierOutput(logits=self.logits(pixel_values))


class OwnLoss(Net):
    """As the models of Trainer's own tests: with labels (loss, logits), without (logits,)."""

    def forward(self, pixel_values, labels=None):
        logits = self.logits(pixel_values)
        return (logits,) if labels is None else (nn.functional.cross_entropy(logits, labels), logits)


class AlwaysALoss(Net):
    def forward(self, pixel_values, labels=None):
        return None, self.logits(pixel_values), pixel_values.mean((1, 2, 3))


class Bare(Net):
    def forward(self, pixel_values):
        return self.logits(pixel_values)


class LogitsLast(Net):
    def forward(self, pixel_values, labels=None):
        return {"features": pixel_values.flatten(1)[:, :2], "logits": self.logits(pixel_values)}


class Positional(Net):
    def forward(self, x):
        return self.logits(x)


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder), "use_cpu": True, "num_train_epochs": 1, "per_device_train_batch_size": 8,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "learning_rate": 0.1,
        "train_sampling_strategy": "sequential", "loss": "ce",
    }  # fmt: skip
    return RobustTrainingArguments(**(defaults | changes))


def fit(folder, model=None, dataset=None, transform=None, eval_dataset=None, collator=None, **changes):
    transform = {} if transform is None else transform
    trainer = RobustTrainer(
        model=Net() if model is None else model, args=arguments(folder, **changes), data_collator=collator,
        train_dataset=samples("vit") if dataset is None else dataset, eval_dataset=eval_dataset,
        image_transform=None if transform is False else ImageTransform([0.5] * 3, [0.25] * 3, **transform),
    )  # fmt: skip
    trainer.train()
    return trainer


# --- Models


@pytest.mark.parametrize("kind", [OwnLoss, AlwaysALoss, Bare, LogitsLast])
@pytest.mark.parametrize("size", [40, 1])
def test_outputs_of_every_shape_are_trained_and_evaluated(tmp_path, kind, size):
    trainer, expected = fit(tmp_path, kind()), fit(tmp_path)
    assert largest_difference(trainer.model, expected.model) == 0
    part = ImageTensorDataset(samples("vit").images[:size], samples("vit").labels[:size])
    scores, wanted = trainer.evaluate(part), expected.evaluate(part)
    for name in ("eval_loss", "eval_accuracy", "eval_cross_entropy"):
        assert scores[name] == wanted[name]
    first = trainer.predict(part).predictions
    first = first[0] if isinstance(first, tuple) else first
    np.testing.assert_array_equal(first, expected.predict(part).predictions)


def test_a_tensor_is_predicted_without_labels(tmp_path):
    trainer = fit(tmp_path, Bare())
    rows = datasets.Dataset.from_dict({"pixel_values": samples("vit").images[:3].tolist()})
    trainer.args.per_device_eval_batch_size = 2  # the last batch has one row
    expected = fit(tmp_path).predict(samples("vit")).predictions[:3]
    np.testing.assert_allclose(trainer.predict(rows).predictions, expected, atol=1e-6)


def test_outputs_without_logits_are_named(tmp_path):
    class Hidden(Net):
        def forward(self, pixel_values):
            return {"hidden": self.logits(pixel_values)}

    with pytest.raises(ValueError, match="no 'logits'; it has .'hidden'"):
        fit(tmp_path, Hidden())


def test_class_weights_of_another_number_are_refused_by_plain_modules_too(tmp_path):
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for weights in ([1.0] * (CLASSES - 1), [1.0] * (CLASSES + 1)):
        with pytest.raises(ValueError, match=f"got {len(weights)} for {CLASSES} classes"):
            fit(tmp_path, model, class_weights=weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- Labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_whole_numbers_of_any_type_are_labels(tmp_path, dtype):
    def collate(batches):
        return {**batches[0], "labels": batches[0]["labels"].to(dtype)}

    whole = {"eval_dataset": samples("vit"), "class_weights": [1.0, 2.0, 0.5]}
    trainer, expected = fit(tmp_path, collator=collate, **whole), fit(tmp_path, **whole)
    assert largest_difference(trainer.model, expected.model) == 0
    assert trainer.evaluate()["eval_cross_entropy"] == expected.evaluate()["eval_cross_entropy"]


def rows(**changes):
    data = samples("vit")
    columns = {"pixel_values": data.images.tolist(), "label": data.labels.tolist(), "index": list(range(N))} | changes
    return datasets.Dataset.from_dict({name: column for name, column in columns.items() if column is not None})


def test_labels_under_another_name(tmp_path):
    target = rows(label=None, target=samples("vit").labels.tolist())
    for weights in (None, [1.0, 2.0, 0.5]):
        trainer = fit(tmp_path, dataset=target, eval_dataset=target, label_names=["target"], class_weights=weights)
        expected = fit(tmp_path, class_weights=weights)
        assert largest_difference(trainer.model, expected.model) == 0
        wanted = expected.evaluate(samples("vit"))["eval_cross_entropy"]
        assert trainer.evaluate()["eval_cross_entropy"] == pytest.approx(wanted)


def test_two_label_names_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"label_names must name one column.*\['labels', 'other'\]"):
        arguments(tmp_path, label_names=["labels", "other"])
    with pytest.raises(ValueError, match=r"no 'target'.*it has \[.*'labels'"):
        fit(tmp_path, dataset=rows(), label_names=["target"])


@pytest.mark.parametrize(("column", "changes"), [("label", {}), ("target", {"label_names": ["target"]})])
def test_labels_that_are_text_are_refused_unless_something_makes_numbers_of_them(tmp_path, column, changes):
    words = [("cat", "cow", "dog")[label] for label in samples("vit").labels]
    text = rows(**{"label": None, column: words})
    for given in ({"dataset": text}, {"eval_dataset": text}):
        with pytest.raises(ValueError, match=rf"column '{column}' .* holds text, .*class_encode_column\('{column}'\)"):
            fit(tmp_path, **given, **changes)
    encoded = fit(tmp_path, dataset=text.class_encode_column(column), **changes)
    assert largest_difference(encoded.model, fit(tmp_path).model) == 0
    numbers = {"cat": 0, "cow": 1, "dog": 2}

    def encode(batch):
        return batch | {column: [numbers[word] for word in batch[column]]}

    lazily = fit(tmp_path, dataset=text.with_transform(encode), remove_unused_columns=False, **changes)
    assert largest_difference(lazily.model, encoded.model) == 0
    with pytest.raises(ValueError, match="labels must be whole numbers; got the text 'cat'"):
        collate_batch([(torch.zeros(3, 4, 4), "cat")])


@pytest.mark.parametrize("make", [lambda: samples("vit"), rows])
def test_labels_that_are_all_ignored_are_refused_before_training(tmp_path, make):
    dataset = make()
    if isinstance(dataset, datasets.Dataset):
        dataset = rows(label=[-100] * N)
    else:
        dataset.labels.fill_(-100)
    with pytest.raises(ValueError, match=f"all {N} labels of train_dataset are -100"):
        RobustTrainer(model=Net(), args=arguments(tmp_path), train_dataset=dataset)


@pytest.mark.parametrize("wrap", [lambda d: ConcatDataset([d, d]), lambda d: Subset(d, range(5, 25)), lambda d: d])
def test_labels_of_which_none_counts_are_refused_in_any_part(tmp_path, wrap):
    ignored, one_class = samples("vit"), samples("vit")
    ignored.labels.fill_(-100)
    one_class.labels.fill_(0)
    for dataset in (ignored, rows(label=[-100] * N)):
        with pytest.raises(ValueError, match="labels of train_dataset are -100"):
            RobustTrainer(model=Net(), args=arguments(tmp_path), train_dataset=wrap(dataset))
    weights = {"class_weights": [0.0, 1.0, 1.0]}
    with pytest.raises(ValueError, match="class_weights are 0 for all labels of train_dataset"):
        RobustTrainer(model=Net(), args=arguments(tmp_path, **weights), train_dataset=wrap(one_class))
    for dataset in (samples("vit"), ImageTensorDataset(ignored.images, torch.arange(N) % 2 * 101 - 100)):  # -100, 1
        assert fit(tmp_path, dataset=wrap(dataset), **weights).state.log_history[-1]["train_loss"] > 0


def test_a_label_without_a_weight_is_named(tmp_path):
    dataset = samples("vit")
    dataset.labels[3] = 7
    with pytest.raises(ValueError, match="class_weights must have one row a class: got 3 .*since a label is 7"):
        fit(tmp_path, dataset=dataset, class_weights=[1.0, 1.0, 1.0])


# --- Data sets


class Pairs(Dataset):
    """(image, label), as torchvision's data sets."""

    def __init__(self, picture=False):
        self.data, self.picture = samples("vit"), picture

    def __len__(self):
        return N

    def __getitem__(self, index):
        image = self.data.images[index]
        if self.picture:
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        return image, int(self.data.labels[index])


@pytest.mark.parametrize("model", [Net, Positional])
@pytest.mark.parametrize("picture", [False, True])
def test_pairs_of_image_and_label(tmp_path, model, picture):
    trainer = fit(tmp_path, model(), dataset=Pairs(picture), eval_dataset=Pairs(picture))
    expected = fit(tmp_path)
    assert largest_difference(trainer.model, expected.model) == 0
    wanted = expected.evaluate(samples("vit"))["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted)


def test_samples_that_are_no_pairs_are_named():
    with pytest.raises(ValueError, match="a pair .image, label.; got 3 values"):
        collate_batch([(1, 2, 3)])
    with pytest.raises(ValueError, match=r"one shape; got \[\(3, 4, 4\), \(3, 5, 5\)\]"):
        collate_batch([(torch.zeros(3, size, size), 0) for size in (4, 5)])
    with pytest.raises(ValueError, match=r"0\.\.255; got -1\.\.-1"):
        collate_batch([(torch.arange(-1, 0).reshape(1, 1, 1), 0)])


def parts():
    data = samples("vit")
    return ConcatDataset([ImageTensorDataset(data.images[a:b], data.labels[a:b]) for a, b in ((0, 15), (15, N))])


@pytest.mark.parametrize("loss", ["gjs", "elr", "ce"])
@pytest.mark.parametrize("make", [rows, parts])
def test_images_of_any_data_set_with_an_index_are_augmented_alike(tmp_path, make, loss):
    """The images of the second part have the draws and the memory of their place in the whole."""
    changes = {"transform": CROP, "loss": loss, "num_train_epochs": 2}
    trainer = fit(tmp_path, dataset=make(), eval_dataset=samples("vit"), **changes)
    expected = fit(tmp_path, eval_dataset=samples("vit"), **changes)
    assert largest_difference(trainer.model, expected.model) < 1e-6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], abs=1e-6)
    assert largest_difference(trainer.model, fit(tmp_path, loss="ce").model) > 1e-4


def test_images_under_another_name_are_named(tmp_path):
    other = rows(pixel_values=None, picture=samples("vit").images.tolist())
    with pytest.raises(ValueError, match="images as 'pixel_values'; the batch has"):
        fit(tmp_path, dataset=other, remove_unused_columns=False)


def test_a_stream_lacks_its_length_and_not_its_index(tmp_path):
    stream = rows().to_iterable_dataset()
    with pytest.raises(ValueError, match="'elr' .*number, which a train_dataset without length .*without streaming"):
        fit(tmp_path, dataset=stream, loss="elr", max_steps=5)
    trainer = fit(tmp_path, dataset=stream, transform=CROP, loss="gjs", max_steps=5)
    assert largest_difference(trainer.model, fit(tmp_path, transform=CROP, loss="gjs").model) < 1e-6


def test_places_that_are_given_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="another one for each sample.*40 samples and 20"):
        fit(tmp_path, dataset=rows(index=[i // 2 for i in range(N)]), loss="elr")


# --- The last step


@pytest.mark.parametrize("batch, accumulation", [(8, 2), (4, 4), (2, 8)])
def test_what_is_dropped_does_not_depend_on_accumulation(tmp_path, batch, accumulation):
    """40 images in steps of 16: 8 are left out, and not what is left of a batch alone."""
    changes = {"dataloader_drop_last": True, "num_train_epochs": 2, "train_sampling_strategy": "random"}
    whole = fit(tmp_path, per_device_train_batch_size=16, **changes)
    parts = fit(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **changes)
    assert parts.state.global_step == whole.state.global_step == 4
    assert largest_difference(parts.model, whole.model) < 1e-6


def test_a_short_last_step_of_other_data_sets_is_refused_where_the_last_batch_is_dropped(tmp_path):
    changes = {"dataloader_drop_last": True, "gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match="hold 5 batches, no multiple of gradient_accumulation_steps=2"):
        fit(tmp_path, dataset=rows(), **changes)
    with pytest.raises(ValueError, match="hold 5 batches"):  # in their order, they are no sampler's of ours
        fit(tmp_path, **changes)
    assert fit(tmp_path, dataset=rows(), per_device_train_batch_size=10, **changes).state.global_step == 2
    with pytest.raises(ValueError, match="drop all of the 40 training samples: a step takes 64"):
        fit(tmp_path, per_device_train_batch_size=32, **changes)


# --- Adapters


def test_an_adapters_norm_is_of_what_is_trained_and_the_loss_is_noted_in_the_base(tmp_path):
    torch.manual_seed(0)
    model = lora_vit()
    trained = sum(p.double().abs().sum() for p in model.parameters() if p.requires_grad).item()
    every = sum(p.double().abs().sum() for p in model.parameters()).item()
    assert every > 3 * trained
    loss = get_loss("anl_ce(delta=0.5)")
    whole, cut = penalty(loss, model.parameters())
    assert cut == 0 and whole.item() == pytest.approx(0.5 * trained)
    trainer = fit(tmp_path, model, loss="anl_ce", class_weights=[1.0] * CLASSES)
    assert get_loss(trainer.model.get_base_model().config.robust_loss).spec == get_loss("anl_ce").spec
    with pytest.raises(ValueError, match="got 2 for 3 classes"):
        RobustTrainer(
            model=lora_vit(), args=arguments(tmp_path, class_weights=[1.0, 1.0]), train_dataset=samples("vit")
        )


# --- What hangs on the loss


def test_arguments_made_of_others_have_the_defaults_of_their_loss(tmp_path):
    args = arguments(tmp_path)
    assert (args.weight_decay, args.optim_args) == (1e-4, "momentum=0.9")
    other = dataclasses.replace(args, loss="anl_ce", optim="adamw_torch")
    assert (other.weight_decay, other.optim_args) == (0, None)
    assert "weight_decay" not in other.not_default and "optim_args" not in other.not_default
    assert dataclasses.replace(other, loss="ce", optim="sgd").weight_decay == 1e-4
    said = dataclasses.replace(arguments(tmp_path, weight_decay=1e-4), loss="anl_ce")
    assert said.weight_decay == 1e-4 and said.not_default["weight_decay"] == 1e-4


def test_a_loss_that_is_set_later_is_trained_with_what_hangs_on_it(tmp_path):
    """In the arguments after they were made, and after a training."""
    alone = fit(tmp_path, loss="anl_ce")
    args = arguments(tmp_path)
    args.loss = "anl_ce"
    transform = ImageTransform([0.5] * 3, [0.25] * 3)
    first = RobustTrainer(model=Net(), args=args, train_dataset=samples("vit"), image_transform=transform)
    again = RobustTrainer(
        model_init=Net, args=arguments(tmp_path), train_dataset=samples("vit"), image_transform=transform
    )
    again.train()
    again.args.loss = "anl_ce"
    for trainer in (first, again):
        trainer.train()
        assert (trainer.loss.spec, trainer.args.weight_decay) == (alone.loss.spec, 0)
        assert largest_difference(trainer.model, alone.model) == 0
    again.args.loss, again.args.weight_decay = "ce", 0.25  # said, and so kept
    again.train()
    assert (again.loss.spec, again.args.weight_decay) == ("ce", 0.25)


def test_a_search_over_the_loss_trains_each_trial_with_its_own(tmp_path):
    trainer = RobustTrainer(
        model_init=lambda: Net(), args=arguments(tmp_path), train_dataset=samples("vit"),
        image_transform=ImageTransform([0.5] * 3, [0.25] * 3),
    )  # fmt: skip
    for trial in ({"loss": "gce"}, {"loss": "anl_ce"}, {"loss": "mae", "weight_decay": 0.01}, {"loss": "ce"}):
        set_up(trainer, trial)  # in a space that sets the weight decay for one loss alone, the others have their own
        trainer.train()
        alone = fit(tmp_path, **trial)
        assert trainer.loss.spec == alone.loss.spec
        assert trainer.args.weight_decay == alone.args.weight_decay
        assert largest_difference(trainer.model, alone.model) == 0


def set_up(trainer, trial):
    """As a search does before a trial; the services that run searches are not installed here."""
    trainer.hp_search_backend = HPSearchBackend.WANDB
    trainer._hp_search_setup(dict(trial))
    trainer.hp_search_backend = None


def test_a_search_notes_the_loss_of_the_trial_in_the_model(tmp_path):
    trainer = RobustTrainer(
        model_init=MODELS["vit"], args=arguments(tmp_path, max_steps=1), train_dataset=samples("vit"),
        image_transform=ImageTransform([0.5] * 3, [0.25] * 3),
    )  # fmt: skip
    set_up(trainer, {"loss": "mae"})
    trainer.train()
    assert trainer.model.config.robust_loss["spec"] == "mae"


# --- Parameters in pieces


def test_deepspeed_is_refused_by_losses_with_a_norm_of_the_parameters(tmp_path):
    """Whether it is on is what accelerate says."""
    for loss, refused in (("anl_ce", True), ("ce", False)):
        trainer = make_trainer("vit", tmp_path, loss=loss, max_steps=1)
        trainer.is_deepspeed_enabled = refused
        if refused:
            with pytest.raises(ValueError, match="'anl_ce.*L1 norm.*DeepSpeed"):
                trainer.train()
        else:
            trainer.train()


CUT = """
import os, sys
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from tests.hf_robust.training.test_any_classifier import Net, RobustTrainer, cut_arguments, samples, ImageTransform

for number, (loss, accumulation) in enumerate((("anl_ce(delta=0.01)", 1), ("anl_ce(delta=0.01)", 2), ("elr", 1))):
    args = cut_arguments(sys.argv[1], loss=loss, ddp_backend="gloo", per_device_train_batch_size=8 // accumulation,
                         gradient_accumulation_steps=accumulation)
    model = Net()
    trainer = RobustTrainer(model=model, args=args, train_dataset=samples("vit"),
                            image_transform=ImageTransform([0.5] * 3, [0.25] * 3))
    assert args.world_size == 2
    fully_shard(model.body)
    fully_shard(model)
    # accelerate shards on accelerators alone: on CPUs it would wrap the sharded model once more.
    trainer.accelerator.prepare_model = lambda model, **options: model
    trainer.train()
    whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    memory = trainer.loss.state_dict()
    if args.process_index == 0:
        save_file({**whole, **memory, "loss": torch.tensor([trainer.state.log_history[0]["loss"]])},
                  f"{sys.argv[1]}/{number}.safetensors")
torch.distributed.barrier()
sys.stdout.flush()
os._exit(0)
"""


def cut_arguments(folder, **changes):
    return arguments(
        folder, train_sampling_strategy="random", weight_decay=0.0, max_grad_norm=0.0, num_train_epochs=2,
        logging_strategy="epoch", **changes,
    )  # fmt: skip


@pytest.mark.slow
def test_parameters_in_shards_have_the_norm_and_the_steps_of_whole_ones(tmp_path):
    done = run_process(CUT, tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, loss in enumerate(("anl_ce(delta=0.01)", "anl_ce(delta=0.01)", "elr")):
        expected = RobustTrainer(
            model=Net(), args=cut_arguments(tmp_path, loss=loss, per_device_train_batch_size=16),
            train_dataset=samples("vit"), image_transform=ImageTransform([0.5] * 3, [0.25] * 3),
        )  # fmt: skip
        expected.train()
        wanted = expected.model.state_dict() | expected.loss.state_dict()
        got = load_file(tmp_path / f"{number}.safetensors")
        assert got.pop("loss").item() == pytest.approx(expected.state.log_history[0]["loss"], abs=1e-5)
        assert got.keys() == wanted.keys()
        for name, tensor in got.items():
            torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=0)
        if loss != "elr":  # the norm is what moves the weights most: without it they end elsewhere
            changes = {"weight_decay": 0.0, "max_grad_norm": 0.0, "train_sampling_strategy": "random"}
            bare = fit(tmp_path, loss="anl_ce(delta=0)", num_train_epochs=2, per_device_train_batch_size=16, **changes)
            assert largest_difference(bare.model, expected.model) > 1e-3


def test_a_loss_set_later_is_scored_trained_and_noted(tmp_path):
    def make(loss):
        return make_trainer("vit", tmp_path, loss=loss, num_train_epochs=1)

    expected = make("gce").evaluate()["eval_loss"]
    named, given = make("ce"), make("ce")
    assert named.evaluate()["eval_loss"] != pytest.approx(expected)
    named.args.loss = "gce"
    given.loss = get_loss("gce")
    given.args.class_weights = [1.0] * 3  # of a loss that is no longer made
    for trainer in (named, given):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected)
        assert get_loss(trainer.model.config.robust_loss).spec == get_loss("gce").spec
    given.train()
    assert given.loss.spec == get_loss("gce").spec
