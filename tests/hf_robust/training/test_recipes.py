import json
import runpy
import sys

import pytest

from hf_robust.commands.sweep import SweepArguments
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.training.arguments import RobustTrainingArguments
from hf_robust.training.recipes import (
    RECIPES,
    RecipeParser,
    auto_recipe,
    recipe_arguments,
    recipe_flags,
    recipe_loss,
)
from tests import ROOT
from tests.processes import run_process

SCRIPTS = ROOT / "scripts"
RECIPE = ["--recipe", "cifar10-cnn8"]
PAPERS = {
    "num_train_epochs": 120, "per_device_train_batch_size": 128, "gradient_accumulation_steps": 1, "optim": "sgd",
    "optim_args": "momentum=0.9", "learning_rate": 0.01, "lr_scheduler_type": "cosine", "weight_decay": 1e-4,
    "decay_bias_and_norm": True, "max_grad_norm": 5.0, "dataloader_drop_last": False, "fp16": False, "bf16": False,
}  # fmt: skip


def parse(*flags):
    parser = RecipeParser((DataArguments, ModelArguments, ExperimentArguments))
    return parser.parse_args_into_dataclasses([*flags, "--use_cpu"])


def parse_sweep(*flags):
    parser = RecipeParser((SweepArguments, DataArguments, ModelArguments, ExperimentArguments))
    return parser.parse_args_into_dataclasses([*flags, "--use_cpu"])


def test_flags_parse_to_the_papers_values():
    data, model, args = parse(*RECIPE, "--loss", "nce+agce")
    assert (data.dataset, data.augmentation, model.model) == ("uoft-cs/cifar10", "crop_flip", "cnn8")
    assert args.loss == "nce + 4*agce(a=6, q=1.5)"
    assert {name: getattr(args, name) for name in PAPERS} == PAPERS


def test_arguments_in_python_are_those_of_the_flags(tmp_path):
    args = RobustTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **recipe_arguments("cifar10-cnn8", "gce"))
    assert {name: getattr(args, name) for name in PAPERS} == PAPERS and args.loss == "gce"
    assert set(recipe_flags("cifar10-cnn8")) == {"dataset", "model", "augmentation"} | set(PAPERS)


def test_without_recipe_nothing_changes():
    data, model, args = parse("--loss", "nce+agce")
    assert (data.augmentation, model.model, args.loss) == ("none", "cnn_small", "nce+agce")


@pytest.mark.parametrize("order", [1, -1])
def test_explicit_flags_win_also_where_they_equal_the_ordinary_default(order):
    parts = [RECIPE, ["--model", "cnn_small"], ["--augmentation", "none"], ["--num_train_epochs", "3"],
             ["--weight_decay", "0.001"], ["--max_grad_norm", "1"], ["--bf16"]]  # fmt: skip
    data, model, args = parse(*(flag for part in parts[::order] for flag in part))
    assert (data.augmentation, model.model, args.num_train_epochs) == ("none", "cnn_small", 3)
    assert (args.weight_decay, args.max_grad_norm, args.bf16) == (0.001, 1.0, True)
    assert args.learning_rate == 0.01  # what was not given is the recipe's


@pytest.mark.parametrize("flags", [["--recip", "cifar10-cnn8"], ["--recipe=cifar10-cnn8"]])
def test_other_spellings_of_the_flag_do_the_same(flags):
    assert parse(*flags)[1].model == "cnn8"


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("nce+agce", "nce + 4*agce(a=6, q=1.5)"),
        ("ngce", "ngce(q=0.1)"),
        ("ce_eps+mae", "0.01*ce_eps + 10*mae"),
        # As given: nothing else was published, or there are weights or parameters, be they the ordinary defaults.
        ("nce+rce", "nce+rce"),
        ("nce + gce", "nce + gce"),
        ("anl_ce", "anl_ce"),
        ("ngce(q=0.7)", "ngce(q=0.7)"),
        ("logit_clip(tau=1)", "logit_clip(tau=1)"),
        ("1*nce + agce", "1*nce + agce"),
        ("nce + agce(a=0.6, q=0.6)", "nce + agce(a=0.6, q=0.6)"),
    ],
)
def test_losses_get_the_published_hyper_parameters(loss, expected):
    assert recipe_loss("cifar10-cnn8", loss) == expected
    assert recipe_arguments("cifar10-cnn8", loss=loss)["loss"] == expected
    assert parse(*RECIPE, "--loss", loss)[2].loss == expected


@pytest.mark.parametrize("loss, weight_decay", [("ce", 1e-4), ("anl_ce", 0.0), ("jal_ce + ce", 0.0)])
def test_weight_decay_is_the_losses_own(loss, weight_decay):
    assert parse(*RECIPE, "--loss", loss)[2].weight_decay == weight_decay


def test_a_loss_that_was_not_given_counts_as_not_given():
    # A trained network is then scored with its own loss.
    assert "loss" not in parse(*RECIPE)[2].not_default
    assert parse(*RECIPE)[2].not_default.keys() == parse()[2].not_default.keys()


def test_lists_of_a_sweep():
    sweep, data, _, args = parse_sweep(*RECIPE, "--losses", "nce+agce", "anl_ce", "gce(q=0.5)")
    assert sweep.losses == ["nce + 4*agce(a=6, q=1.5)", "anl_ce", "gce(q=0.5)"] and sweep.models == ["cnn8"]
    assert data.augmentation == "crop_flip" and "weight_decay" not in args.not_default
    assert parse_sweep(*RECIPE, "--models", "cnn_small")[0].models == ["cnn_small"]


def test_unknown_names_are_one_error_with_the_valid_ones(capsys):
    for flags, words in (
        (["--recipe", "cifar11"], ["--recipe", "cifar11", *RECIPES]),
        ([*RECIPE, "--loss", "nosuch"], ["nosuch", "nce"]),
        ([*RECIPE, "--loss", "gce(q=2)"], ["gce(q=2)", "(0, 1]"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse(*flags)
        message = capsys.readouterr().err
        assert stopped.value.code == 2 and all(word in message for word in words)
        assert message.count("error:") == 1
    with pytest.raises(ValueError, match="cifar10-cnn8.*cifar11"):
        recipe_arguments("cifar11", loss="ce")


def test_resnets_on_cifar_are_trained_as_in_the_released_codes():
    _, model, args = parse("--recipe", "cifar-resnet", "--dataset", "uoft-cs/cifar100")
    assert (model.model, args.optim, args.learning_rate, args.num_train_epochs) == ("resnet18_cifar", "sgd", 0.1, 200)
    assert (args.weight_decay, args.max_grad_norm, args.lr_scheduler_type) == (1e-5, 5.0, "cosine")
    assert args.optim_args == "momentum=0.9"
    assert parse("--recipe", "cifar-resnet")[0].dataset == "digits"  # a family says nothing of the data set


@pytest.mark.parametrize("recipe, rate, batch", [("finetune-text", 2e-5, 32), ("finetune-vision", 5e-5, 64)])
def test_fine_tuning_is_that_of_transformers_examples(recipe, rate, batch):
    _, model, args = parse("--recipe", recipe, "--model", "someone/model", "--loss", "nce+agce")
    assert (args.optim, args.learning_rate, args.per_device_train_batch_size) == ("adamw_torch", rate, batch)
    assert (args.lr_scheduler_type, args.num_train_epochs, args.max_grad_norm) == ("linear", 3, 1.0)
    assert (args.weight_decay, args.optim_args, args.get_warmup_steps(100)) == (0.0, None, 10)
    assert (args.loss, model.model) == ("nce+agce", "someone/model")  # as given: of no data set
    assert recipe_arguments(recipe, "gce")["learning_rate"] == rate


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_loss_with_a_norm_of_its_own_has_no_weight_decay(recipe, tmp_path):
    assert parse("--recipe", recipe, "--loss", "anl_ce")[2].weight_decay == 0.0
    assert parse("--recipe", recipe, "--loss", "anl_ce", "--weight_decay", "1e-5")[2].weight_decay == 1e-5
    args = RobustTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **recipe_arguments(recipe, "anl_ce"))
    assert args.weight_decay == 0.0


def test_a_sweep_of_losses_with_and_without_such_a_norm(capsys):
    assert parse_sweep("--recipe", "cifar-resnet", "--losses", "ce", "gce")[3].weight_decay == 1e-5
    assert "weight_decay" not in parse_sweep("--recipe", "cifar-resnet", "--losses", "anl_ce")[3].not_default
    with pytest.raises(SystemExit):
        parse_sweep("--recipe", "cifar-resnet", "--losses", "ce", "anl_ce")
    assert "sweep them one by one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, recipe, rate",
    [
        ([], "cifar10-cnn8", 0.01),
        (["--model", "cnn8"], "cifar10-cnn8", 0.01),
        (["--model", "resnet20_cifar"], "cifar-resnet", 0.1),
        (["--model", "google/vit-base-patch16-224"], "finetune-vision", 5e-5),
        (["--model", "bert-base-cased", "--dataset", "x.csv", "--text_column", "a", "b"], "finetune-text", 2e-5),
    ],
)
def test_auto_chooses_by_the_network_and_says_so(flags, recipe, rate, capsys):
    data, model, args = parse("--recipe", "auto", *flags, "--loss", "nce+agce")
    assert capsys.readouterr().out == f"--recipe auto: {recipe}\n"
    assert args.learning_rate == rate and args.loss == "nce+agce"
    plain = parse(*flags)
    assert (data, model) == (plain[0], plain[1])  # only the training is the recipe's
    assert parse("--recipe", "auto", *flags, "--learning_rate", "0.5")[2].learning_rate == 0.5


def test_auto_of_a_sweep_is_one_recipe(capsys):
    assert parse_sweep("--recipe", "auto", "--models", "resnet18_cifar", "resnet20_cifar")[3].learning_rate == 0.1
    with pytest.raises(SystemExit):
        parse_sweep("--recipe", "auto", "--models", "cnn8", "resnet20_cifar")
    assert "stands for cifar-resnet and cifar10-cnn8" in capsys.readouterr().err
    assert auto_recipe("cnn8", True) == "finetune-text"


@pytest.mark.slow
def test_a_sweep_trains_each_loss_with_its_own_parameters_and_weight_decay(tmp_path):
    small = "--models cnn_small --max_train_samples 60 --max_test_samples 20 --num_train_epochs 1 --use_cpu".split()
    losses = ["--dataset", "digits", "--losses", "nce+agce", "anl_ce", "ce"]
    done = run_process(SCRIPTS / "sweep_robust.py", *RECIPE, *losses, *small, "--output_dir", str(tmp_path / "sweep"))
    assert done.returncode == 0, done.stderr[-2000:]
    settings = [result["settings"] for result in json.loads((tmp_path / "sweep" / "sweep.json").read_text())]
    assert [(s["loss"], s["weight_decay"]) for s in settings] == [
        ("nce + 4*agce(a=6, q=1.5)", 1e-4), ("anl_ce", 0.0), ("ce", 1e-4),
    ]  # fmt: skip
    for found in settings:
        assert (found["model"], found["augmentation"], found["num_train_epochs"]) == ("cnn_small", "crop_flip", 1)
        assert (found["max_grad_norm"], found["optim_args"]) == (5.0, "momentum=0.9")
        assert not {"fp16", "bf16", "dataloader_drop_last"} & set(found["other_arguments"])


@pytest.mark.parametrize("script", ["train_robust.py", "sweep_robust.py"])
def test_help_names_the_recipes(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--recipe TEXT" in text and "One of cifar10-cnn8" in text
    assert f"scripts/{script} --recipe cifar10-cnn8" in text  # the example
