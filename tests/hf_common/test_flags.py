"""The front doors: what is said before anything heavy loads."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest
from diffusers.optimization import SchedulerType
from transformers import HfArgumentParser, TrainingArguments

from hf_common.flag_help import LAST
from hf_common.flags import FlagParser, OtherFlags
from hf_dit.training.arguments import LR_SCHEDULERS
from hf_robust.commands.find_label_errors import UNUSED_FLAGS
from hf_robust.losses import list_losses
from hf_robust.models import MODELS
from hf_robust.networks import NETWORKS
from hf_robust.studies.arguments import ExperimentArguments
from hf_robust.studies.flags import REPLACED_FLAGS, ExperimentFlags
from hf_robust.studies.front import names_in_table
from hf_robust.training.flags import RobustFlags, inherited_flags
from tests import ROOT

HEAVY = ("torch", "accelerate", "datasets", "diffusers", "evaluate", "matplotlib", "scipy", "sklearn", "pandas")
ROBUST = ["scripts/train_robust.py", "scripts/sweep_robust.py", "scripts/find_label_errors.py"]
RUN = """
import atexit, json, runpy, sys
loaded = lambda: json.dumps([name for name in {heavy} if name in sys.modules])
atexit.register(lambda: print("LOADED", loaded(), file=sys.stderr))
sys.argv = {argv}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def started(*argv, cwd=ROOT):
    """Status, output, errors without the last line, and the heavy libraries that a script has loaded at its end."""
    code = RUN.format(heavy=HEAVY, argv=[str(ROOT / argv[0]), *argv[1:]])
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)
    errors, _, loaded = done.stderr.rpartition("LOADED ")
    return done.returncode, done.stdout, errors, json.loads(loaded)


@pytest.mark.parametrize("script", ROBUST)
def test_help_shows_own_flags_in_groups_and_loads_nothing(script):
    status, shown, _, loaded = started(script, "--help")
    assert (status, loaded) == (0, [])
    lines = shown.splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 119
    for title in ("images and labels:", "network:", "loss:", "training:", "run:", "general:"):
        assert title in lines
    hidden = {"scripts/sweep_robust.py": REPLACED_FLAGS, "scripts/find_label_errors.py": UNUSED_FLAGS}.get(script, ())
    for flag in fields(ExperimentFlags):
        assert (f"--{flag.name} " in shown or f"--[no_]{flag.name} " in shown) != (flag.name in hidden)
    assert "(default: 0.01)" in shown and "One of no, steps, epoch, best." in shown
    assert "--eval_steps" not in shown and "--help-all" in lines[-1] and "TrainingArguments" in lines[-1]


def test_help_all_shows_the_flags_of_training_arguments_too():
    status, shown, _, _ = started("scripts/train_robust.py", "--help-all")
    assert status == 0 and "TrainingArguments:" in shown.splitlines()
    for flag in fields(TrainingArguments):
        assert f"--{flag.name}" in shown or f"--[no_]{flag.name}" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learning_rate", "abc"], "argument --learning_rate/--learning-rate: invalid float value: 'abc'"),
        (["--eval_strategy", "never"], "invalid choice: 'never'"),
        (["--noise", "symetric_40"], "unknown noise 'symetric_40'"),
        (["--noise_seed", "-1"], "noise_seed must be 0 or more; got -1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be 1 or more; got 0"),
        (["--loss", "nce + rse(q=1)"], "position 6: unknown loss 'rse'; valid are ce, fl"),
        (["--recipe", "nosuch"], "argument --recipe: invalid choice: 'nosuch'"),
        (["--lerning_rate", "1"], "there is no flag '--lerning_rate'; did you mean '--learning_rate'"),
        (["--datset", "digits"], "there is no flag '--datset'; did you mean '--dataset'?"),
        (["--eval_stepz", "3"], "there is no flag '--eval_stepz'; did you mean '--eval_steps'"),
    ],
)
def test_errors_in_own_flags_and_unknown_flags_are_one_line_before_anything_loads(words, said):
    status, shown, errors, loaded = started("scripts/train_robust.py", *words)
    assert (status, shown, loaded, errors.count("\n")) == (2, "", [], 1), errors
    assert errors.startswith("train_robust.py: error: ") and said in errors


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("train_dit", ["--dataset_name", "x", "--seed", "-1"], "seed must be 0 or more; got -1"),
        ("train_dit", ["--dataset_name", "x", "--lr_scheduler", "no"], "lr_scheduler must be one of ['linear'"),
        ("train_dit", ["--nosuch", "1"], "there is no flag '--nosuch'"),
        (
            "make_noisy_dataset",
            ["--source", "x", "--output_dir", "y", "--configs", "clean", "symmm_40"],
            "configs: unknown noise 'symmm_40'; allowed are",
        ),
        ("make_noisy_cifar10", ["--output_dir", "y", "--configs", "symmm_40"], "configs: unknown noise 'symmm_40'"),
        ("sweep_robust", ["--noises", "clean", "symm_4"], "noises: unknown noise 'symm_4'; allowed are"),
        ("train_dit", ["--dataset_name", "x", "--atention", "na7"], "did you mean '--attention'?"),
        ("sample_dit", ["--model_name_or_path", "x", "--schedulers", "plms"], "or classes of diffusers; got 'plms'"),
        ("sample_dit", ["--model_name_or_path", "x", "--seed", "-1"], "--seed must be 0 or more; got -1"),
        ("generate_dit", ["--model_name_or_path", "x", "--scheduler", "plms"], "or classes of diffusers; got 'plms'"),
        ("generate_dit", ["--model_name_or_path", "x", "--seed", "-1"], "--seed must be 0 or more; got -1"),
        ("generate_dit", ["--model_name_or_path", "x", "--format", "none"], "leaves nothing without a --score_metric"),
        ("benchmark_attention", ["--tokens", "7"], "--tokens must be squares"),
        ("evaluate_images", ["--predictions", "x"], "the following arguments are required: --references"),
        ("evaluate_images", ["--predictions", "x", "--references", "y", "--seed", "-1"], "seed must be 0 or more"),
        ("make_noisy_cifar10", [], "the following arguments are required: --output_dir"),
        ("plot_losses", ["--losses", "ce", "nosuch"], "unknown loss 'nosuch'"),
        ("publish_metric", [], "the following arguments are required: folder, repo_id"),
    ],
)
def test_so_are_those_of_the_other_commands(script, words, said):
    status, shown, errors, loaded = started(f"scripts/{script}.py", *words)
    assert (status, shown, loaded, errors.count("\n")) == (2, "", [], 1), errors
    assert errors.startswith(f"{script}.py: error: ") and said in errors


OTHERS = (
    "train_dit compare_dit sample_dit generate_dit benchmark_attention evaluate_images make_noisy_cifar10 plot_losses"
)
OTHERS += " publish_metric"


@pytest.mark.parametrize("script", OTHERS.split())
def test_help_of_the_other_commands_loads_nothing(script):
    status, shown, _, loaded = started(f"scripts/{script}.py", "--help")
    assert (status, loaded) == (0, []) and "(default: " in shown and "--help-all" in shown.splitlines()[-1]
    assert len(shown.splitlines()) < {"train_dit": 150, "compare_dit": 165}.get(script, 80)  # some 80 flags


def test_what_a_file_of_arguments_says_is_checked_as_early(tmp_path):
    (tmp_path / "a.json").write_text('{"noise": "symmetric_40", "loss": "nosuch"}')
    status, _, errors, loaded = started(
        "scripts/sweep_robust.py", str(tmp_path / "a.json"), "--losses", "ce", "nosuch"
    )
    assert (status, loaded) == (2, []) and "unknown loss 'nosuch'" in errors


def test_values_of_inherited_flags_are_checked_before_the_trainer_loads():
    status, _, errors, loaded = started("scripts/train_robust.py", "--warmup_steps", "abc")
    assert status == 2 and errors.count("\n") == 1 and "invalid float value: 'abc'" in errors
    assert not {"matplotlib", "sklearn", "diffusers", "evaluate"} & set(loaded)


def test_what_is_known_without_the_libraries_agrees_with_them():
    assert inherited_flags() >= {flag.name for flag in fields(TrainingArguments)}
    assert names_in_table() == [info.name for info in list_losses()]
    assert list(MODELS) == list(NETWORKS)
    assert set(LR_SCHEDULERS) == {kind.value for kind in SchedulerType} - {"piecewise_constant"}


def test_the_light_flags_are_those_of_the_arguments():
    known, light = (
        {action.option_strings[0]: vars(action) for action in FlagParser(cls)._actions}
        for cls in (ExperimentArguments, ExperimentFlags)
    )
    for name, action in light.items():
        for part in ("dest", "default", "help", "choices", "nargs", "type"):
            assert known[name][part] == action[part], name
    added = {flag.name for flag in fields(ExperimentArguments)} - {flag.name for flag in fields(TrainingArguments)}
    assert added == {"loss", "class_weights", "decay_bias_and_norm", "transition_matrix"}
    assert added < {flag.name for flag in fields(ExperimentFlags)} > {flag.name for flag in fields(RobustFlags)}


@dataclass
class Some:
    _argument_group_name = "some"

    needed: str = field(metadata={"help": "What."})
    number: int = field(default=3, metadata={"help": "How many."})
    words: list[str] = field(default_factory=lambda: ["a", "b"], metadata={"help": "Which.", "choices": ["a", "b"]})
    on: bool = field(default=True, metadata={"help": "Whether."})
    maybe: bool | None = field(default=None, metadata={"help": "Perhaps."})


def ended(capsys, call):
    with pytest.raises(SystemExit) as stopped:
        call()
    return stopped.value.code, capsys.readouterr()


def test_the_page_of_a_parser(capsys):
    parser = FlagParser(Some, prog="x", description="Does it.\n\n    x --needed a\n\nAnd notes.\n")
    status, printed = ended(capsys, lambda: parser.parse_args_into_dataclasses(["--help"]))
    assert status == 0 and printed.out.splitlines() == [
        "usage: x [FILE] --needed NEEDED [flags]", "", "Does it.", "", "    x --needed a", "", "some:",
        "  --needed TEXT                   What. Required.",
        "  --number N                      How many. (default: 3)",
        "  --words TEXT ...                Which. One of a, b. (default: a b)",
        "  --[no_]on                       Whether. (default: true)",
        "  --maybe true|false              Perhaps. (default: none)", "",
        *LAST.splitlines(),
        "--help-all shows all notes.",
    ]  # fmt: skip
    _, printed = ended(capsys, lambda: parser.parse_args_into_dataclasses(["--help-all"]))
    assert "And notes." in printed.out


def test_a_parser_reads_as_the_one_of_transformers(capsys):
    for words in (["--needed", "a"], ["--need", "a", "--no_on", "--words", "b", "--maybe", "true", "--number=5"]):
        assert FlagParser(Some).parse_args_into_dataclasses(words) == HfArgumentParser(
            Some
        ).parse_args_into_dataclasses(words)
    parser = FlagParser(Some, prog="x")
    for words, said in (
        (["--needed", "a", "--numbr", "3"], "there is no flag '--numbr'; did you mean '--number'?"),
        (["--plugin", "a"], "the following arguments are required: --needed"),
        (["--needed", "a", "--plugin", "a"], "there is no flag '--plugin'; did you mean '--plugins'?"),
        (["--needed", "a", "--oon"], "there is no flag '--oon'; did you mean '--on'?"),
        (["--needed", "a", "--noon"], "there is no flag '--noon'; did you mean '--no_on' or '--on'?"),
        (["--needed", "a", "b"], "'b' belongs to no flag; --help"),
        (["--needed", "a", "b", "c.yaml"], "'b' belongs to no flag; --help"),
        (["--on", "c.yaml"], "argument --on: "),
        (["--needed", "a", "c.yaml"], "'c.yaml' belongs to no flag; a file of flags is the first word; --help"),
        ([], "the following arguments are required: --needed"),
    ):
        status, printed = ended(capsys, lambda words=words: parser.parse_args_into_dataclasses(words))
        assert status == 2 and printed.err.startswith(f"x: error: {said}") and printed.err.count("\n") == 1


def test_a_parser_leaves_others_flags_alone(capsys, monkeypatch):
    parser = FlagParser(Some, prog="x", others=OtherFlags("others", lambda: {"num", "other_one"}, lambda: parser))
    monkeypatch.setattr(sys, "argv", ["x", "--needed", "a", "--num", "7", "--other", "b", "--other_one"])
    assert parser.check() == (Some(needed="a"),)  # --num is no --number here
    monkeypatch.setattr(sys, "argv", ["x", "--needed", "a", "--num", "7", "--odder_one", "b"])
    status, printed = ended(capsys, parser.check)
    assert status == 2 and "there is no flag '--odder_one'; did you mean '--other_one'?" in printed.err
