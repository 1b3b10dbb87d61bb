import copy
import re
import shlex
from statistics import mean, stdev

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from hf_common.files import write_json
from hf_common.public import public_results
from hf_robust.losses import list_losses
from hf_robust.losses.papers import TITLES, loss_bibtex
from hf_robust.reports.card import FIGURES
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments, run_settings
from hf_robust.studies.publish import draw_figures, reproducing_command, run_card
from hf_robust.studies.run import run_experiment
from hf_robust.training.recipes import RecipeParser

REPO = "user/digits-sym40"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What a run of one epoch on 64 digits gives."""
    return run_experiment(
        DataArguments(noise="symmetric_40", max_train_samples=64, max_test_samples=50),
        ModelArguments(),
        ExperimentArguments(
            output_dir=str(tmp_path_factory.mktemp("run")), num_train_epochs=1, use_cpu=True, disable_tqdm=True
        ),
    )


@pytest.fixture
def result(ran):
    return copy.deepcopy(ran)


def seeded(result, seed, last, **settings):
    """The same run as if of another seed."""
    other = copy.deepcopy(result)
    other["settings"] |= {"seed": seed, "noise_seed": seed} | settings
    other["accuracy"] |= {"last": last, "best": last + 0.1}
    return other


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def table(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in [lines[0], *lines[2:]]}


def parse(words):
    parser = RecipeParser((DataArguments, ModelArguments, ExperimentArguments))
    return parser.parse_args_into_dataclasses(words)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--recipe cifar10-cnn8 --noise symmetric_40 --loss nce+agce",
        "--recipe cifar10-cnn8 --noise semantic_40 --noise_contaminated true --loss anl_ce --seed 3 --noise_seed 4",
        "--dataset USER/noisy-cifar10 --dataset_config human_worst --loss gce(q=0.5) --weight_decay 5e-4",
        "--dataset USER/noisy-cifar10 --dataset_config instance_40 --model USER/net --trust_remote_code true",
        "--dataset uoft-cs/cifar10 --dataset_config plain_text --image_column_name img --label_column_name fine",
        "--noise symmetric_12.5 --noise_sampling bernoulli --augmentation crop --max_train_samples 100",
        "--model resnet20_cifar --config_overrides depths=[2,2,2],shortcut='B' --class_weights 1 2 0.5",
        "--loss 10*nce+0.1*rce --optim adamw_torch --learning_rate 1e-3 --warmup_steps 10 --max_steps 50",
        "--optim adamw_torch --optim_args foreach=False --decay_bias_and_norm false --dataloader_drop_last true",
        "--lr_scheduler_type cosine_with_restarts --lr_scheduler_kwargs '{\"num_cycles\": 2}' --adam_beta1 0.8",
        "--loss forward --transition_matrix true --noise asymmetric_30 --num_train_epochs 0.5 --test_split_name train",
        "--gradient_accumulation_steps 4 --per_device_train_batch_size 32 --max_grad_norm 0 --data_seed 7",
        "--do_eval false --eval_strategy steps --eval_steps 5 --use_cpu --report_to none --logging_steps 3",
    ],
)
def test_the_command_gives_the_settings_that_it_was_made_of(words):
    settings = run_settings(*parse(shlex.split(words)))
    command = reproducing_command(settings, "runs/x y", "cpu (x86_64, 1 threads)")
    assert max(map(len, command.splitlines())) < 120
    launch, _, flags = command.replace("\\\n", " ").partition(" scripts/train_robust.py ")
    assert launch == "accelerate launch"
    parsed = parse(shlex.split(flags))
    assert run_settings(*parsed) == settings and parsed[2].output_dir == "runs/x y"


def test_a_short_command_says_no_defaults():
    settings = run_settings(*parse(["--noise", "symmetric_40"]))
    command = reproducing_command(settings, "runs/a", "cpu").replace("\\\n    ", "")
    assert command.split("train_robust.py ")[1] == "--noise symmetric_40 --loss nce+rce --output_dir runs/a"


@pytest.mark.parametrize(
    ("hardware", "launch"),
    [
        ("cpu (x86_64, 1 threads)", "torchrun --nproc_per_node 4"),
        ("NVIDIA H100", "accelerate launch --multi_gpu --num_processes 4"),
    ],
)
def test_the_command_starts_as_many_processes(hardware, launch):
    settings = run_settings(*parse([])) | {"processes": 4}
    command = reproducing_command(settings, "runs/a", hardware).replace("\\\n    ", "")
    assert command.startswith(f"{launch} scripts/train_robust.py")
    assert ("--use_cpu --ddp_backend gloo" in command) == hardware.startswith("cpu")


def test_a_card_of_one_run_shows_what_was_measured(result):
    card = run_card([result], REPO)
    shown = table(section(card, "How good"))
    assert shown["in percent"] == ["seed 42"]
    last = result["history"][-1]
    for title, value in {
        "test accuracy, last epoch": last["test_accuracy"],
        "test accuracy, best epoch": max(row["test_accuracy"] for row in result["history"]),
        "wrong labels memorised": last["train_memorised"],
        "wrong labels recovered": last["train_recovered"],
        "training labels that are wrong": result["noise"]["rate"],
    }.items():
        assert float(shown[title][0]) == pytest.approx(100 * value, abs=0.05001)
    accuracy = result["accuracy"]["last"]
    error = 100 * np.std(np.random.default_rng(0).binomial(50, accuracy, 200_000) / 50)
    assert float(re.search(r"standard error of (\d+\.\d)", card)[1]) == pytest.approx(error, abs=0.1)
    assert "One seed" in card and "545,322 parameters" in card and "trained from scratch" in card
    assert all(f'src="{file}"' in card for file in FIGURES.values())
    parameters = table(section(card, "How to reproduce"))
    for name in ("learning_rate", "num_train_epochs", "optim_args", "per_device_train_batch_size"):
        assert parameters[f"`{name}`"][0].removesuffix(".0") == str(result["settings"][name]).removesuffix(".0")
    assert result["versions"]["torch"] in card and result["hardware"] in card


@pytest.mark.parametrize("verdict", ["in sample", "cannot tell"])
def test_a_card_tells_an_estimate_where_one_can_be_made(result, verdict):
    result = copy.deepcopy(result)
    result["noise"]["estimate"]["verdict"] = verdict
    card = run_card([result], REPO)
    told = table(section(card, "How good")).get("the same, estimated")
    rate = 100 * result["noise"]["estimated_rate"]
    assert (told is None) == (verdict == "cannot tell") == ("can't tell that" in card)
    assert told is None or float(told[0]) == pytest.approx(rate, abs=0.05001)
    assert (f"estimates {rate:.2f} %" in card) == (verdict == "in sample")


def test_a_card_of_several_seeds_shows_mean_and_spread_beside_a_baseline(result):
    runs = [seeded(result, seed, last) for seed, last in ((0, 0.5), (1, 0.56), (2, 0.59))]
    baseline = [seeded(result, seed, last, loss="ce") for seed, last in ((0, 0.2), (1, 0.3))]
    shown = table(section(run_card(runs, REPO, baseline=baseline), "How good"))
    assert shown["in percent"] == ["mean ± s.d.", "seeds 0, 1, 2", "with `ce`"]
    assert shown["test accuracy, last epoch"] == ["55.0 ± 4.6", "50.0, 56.0, 59.0", "25.0 ± 7.1"]
    card = run_card(runs, REPO)
    assert "--seed 1 --noise_seed 1`, `--seed 2 --noise_seed 2`" in card and "One seed" not in card


def test_the_metadata_is_a_model_index_with_the_noise_as_config(result):
    runs = [seeded(result, seed, last) for seed, last in ((3, 0.5), (4, 0.56))]
    for run in runs:
        run["settings"]["dataset"] = "uoft-cs/cifar10"
    data = ModelCard(run_card(runs, REPO)).data
    assert data.datasets == "uoft-cs/cifar10" and data.pipeline_tag == "image-classification"
    assert {"noisy-labels", "symmetric_40"} <= set(data.tags)
    last, best = data.eval_results
    assert [last.metric_name, best.metric_name] == ["accuracy (last epoch)", "accuracy (best epoch)"]
    for entry, values in ((last, [0.5, 0.56]), (best, [0.6, 0.66])):
        assert (entry.dataset_type, entry.dataset_config, entry.dataset_split) == (
            "uoft-cs/cifar10", "symmetric_40", "test",
        )  # fmt: skip
        assert entry.metric_type == "accuracy" and entry.metric_value == pytest.approx(mean(values))
        assert entry.metric_args == {
            "n": 50, "seed": [3, 4], "epoch": 1, "standard_deviation": pytest.approx(stdev(values), abs=1e-6),
        }  # fmt: skip
    index = yaml.safe_load(run_card(runs[:1], REPO).split("---")[1])["model-index"]
    assert index[0]["results"][0]["metrics"][0]["args"] == {"n": 50, "seed": 3, "epoch": 1}


@pytest.mark.parametrize("info", list_losses(), ids=lambda info: info.name)
def test_each_loss_has_formula_parameters_and_citation(result, info):
    result["settings"]["loss"] = f"2*{info.name}"
    if "transition_matrix" in info.needs:
        result["settings"]["other_arguments"] = {"transition_matrix": "true"}
    card = run_card([result], REPO)
    weight, name, formula, parameters, paper = re.split(
        r" (?<!\\)\| ", next(line for line in section(card, "Loss").splitlines() if "| 2 |" in line).strip("| ")
    )
    assert (weight, name, paper) == ("2", f"`{info.name}`", info.paper)
    assert formula.strip("`").replace("\\|", "|") == info.formula
    assert all(f"{key}=" in parameters for key in info.params)
    if info.paper == "maximum likelihood":
        assert "## Citation" not in card
    else:
        assert TITLES[info.paper] in section(card, "Citation")
        entry = loss_bibtex(info)
        assert entry.count("{") == entry.count("}") and re.match(r"@misc\{[a-z]+\d{4}\w+,\n", entry)
        assert all(part in entry for part in re.findall(r"\d{4}\.\d{5}|\b\d{4}(?=,)", info.paper))


@pytest.mark.parametrize(
    ("noise", "says"),
    [
        ("asymmetric_30", "of each class 30 % go to the next class"),
        ("semantic_12.5", "12.5 % of the trucks"),
        ("contaminated_semantic_40", "40 % of the trucks.*flip earlier flips back"),
        ("instance_20", "depends on its pixels"),
        ("human_worst", "people gave"),
        ("clean", "no wrong labels were added"),
    ],
)
def test_the_noise_is_told_in_words(result, noise, says):
    result["settings"] |= {"noise": noise, "noise_contaminated": "contaminated" in noise, "dataset_config": None}
    card = run_card([result], REPO)
    text = section(card, "Training data and noise")
    assert f"`{noise}`" in text and re.search(says, text)
    assert ("drawn with seed 0" in text) == (noise not in ("human_worst", "clean"))
    assert ("exactly that share of each class" in text) == (noise in ("asymmetric_30", "semantic_12.5", "instance_20"))
    assert ("drawn by a rule" in section(card, "Limits")) == (noise not in ("human_worst", "clean"))


def test_who_drew_the_noise_of_a_data_set_is_not_claimed(result):
    result["settings"] |= {"noise": "symmetric_40", "dataset_config": "symmetric_40", "dataset": "user/noisy-cifar10"}
    others = [seeded(result, 1, 0.5), seeded(result, 2, 0.6)]
    card = run_card([result, *others], REPO)
    text = section(card, "Training data and noise")
    assert "of each class 40 % go" in text and "drawn" not in text and "that share" not in text
    assert "and the noise" not in section(card, "How good")


def test_what_is_not_known_is_left_out(result):
    result["noise"] |= {"rate": None, "matrix": None}
    result["memorisation"], result["accuracy"], result["history"] = {}, {}, []
    card = run_card([result], REPO)
    assert "It was not measured." in card and "<img" not in card and ModelCard(card).data.eval_results is None
    assert "None" not in card and "nan" not in card and "Scored" not in card


def test_results_of_different_settings_make_no_card(result):
    with pytest.raises(ValueError, match=r"seeds alone.*num_train_epochs=2.0 \(it has 1"):
        run_card([result, seeded(result, 1, 0.5, num_train_epochs=2.0)], REPO)
    with pytest.raises(ValueError, match=r"seeds alone.*augmentation='crop'"):
        run_card([result], REPO, baseline=[seeded(result, 0, 0.5, loss="ce", augmentation="crop")])
    with pytest.raises(ValueError, match="there is none"):
        run_card([], REPO)


def test_published_results_hold_no_path_and_are_otherwise_the_same(result, tmp_path, monkeypatch):
    (tmp_path / "cifar10").mkdir()
    result["settings"]["dataset"] = str(tmp_path / "cifar10")
    result["settings"]["other_arguments"] = {"deepspeed": str(tmp_path / "zero.json"), "bf16": True}
    public = public_results(result)
    assert public["settings"]["dataset"] == "cifar10"
    assert public["settings"]["other_arguments"] == {"deepspeed": "zero.json", "bf16": True}
    assert result["settings"]["dataset"] == str(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path / "cifar10")
    for here in (".", "./", "../cifar10/"):
        assert public_results({"settings": {"dataset": here}}) == {"settings": {"dataset": "cifar10"}}
    assert {key: value for key, value in public.items() if key != "settings"} == {
        key: value for key, value in result.items() if key != "settings"
    }
    write_json(tmp_path / "results.json", public)
    card = run_card([public], REPO)
    assert str(tmp_path) not in (tmp_path / "results.json").read_text() + card
    assert "The dataset `cifar10` was a folder" in card and ModelCard(card).data.datasets is None


def test_the_figures_of_a_card_are_those_that_it_shows(result):
    figures = draw_figures([result, seeded(result, 1, 0.5)], [seeded(result, 0, 0.4, loss="ce")])
    assert list(figures) == list(FIGURES)
    labels = {line.get_label() for axes in figures["curves"].axes for line in axes.lines}
    assert {"nce+rce", "ce"} <= labels
    paths = {name: f"figures/{name}.png" for name in figures}
    card = run_card([result], REPO, figures=paths)
    assert re.findall(r'<img src="(.*?)"', card) == list(paths.values())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("bi_tempered", "The loss takes the tempered softmax exp_t2(z - lambda) for the model's probabilities."),
        ("logit_clip(tau=0.4, delta=2.5)", "The loss takes the softmax of the clipped logits for the model's"),
        ("nce + rce", None),
    ],
)
def test_where_softmax_is_not_the_link_the_example_asks_the_loss(result, loss, says):
    result["settings"]["loss"] = loss
    use = section(run_card([result], REPO), "How to use")
    code = use.split("```python\n")[1].split("```")[0]
    compile(code, "snippet", "exec")
    assert ("softmax(-1)" in code) == (says is None) == ("get_loss" not in code)
    softmax = '`pipeline("image-classification")` takes the softmax of the logits'
    assert says is None or (says in use and softmax in use)
    if says is None:
        assert "pipeline" not in use


def test_the_noise_of_a_plugin_that_is_not_imported_is_no_card_without_words(result):
    result["settings"] |= {"noise": "swap_40", "noise_seed": 0}
    result["plugins"] = ["own_kinds"]
    with pytest.raises(ValueError, match="noise 'swap_40' needs --plugins own_kinds, which registers it"):
        run_card([result], REPO)
