import subprocess
import sys

import pytest

from hf_common import __version__, commands
from tests import ROOT

PROGRAMS = {"hf_robust": "hf-robust", "hf_dit": "hf-dit"}


def entered(monkeypatch, capsys, package, *words):
    """Exit status and what is printed by a command in this process."""
    main = __import__(f"{package}.__main__", fromlist=["main"]).main
    monkeypatch.setattr(sys, "argv", ["anything", *words])
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


@pytest.mark.parametrize("package", PROGRAMS)
@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_door_says_what_is_behind_it_and_loads_nothing_heavy(package, words):
    code = f"""import sys
sys.argv = {["x", *words]}
from {package}.__main__ import main
main()
print(sorted({{"torch", "transformers", "diffusers", "matplotlib", "datasets"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {PROGRAMS[package]} COMMAND") and done.stdout.endswith("[]\n")


@pytest.mark.parametrize("package", PROGRAMS)
def test_every_command_is_there(package, monkeypatch, capsys):
    commands = __import__(f"{package}.__main__", fromlist=["COMMANDS"]).COMMANDS
    files = {path.stem for path in (ROOT / package / "commands").glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in commands} == files
    for name in commands:
        status, printed = entered(monkeypatch, capsys, package, name, "--help")
        assert status == 0 and printed.out.startswith(f"usage: {PROGRAMS[package]} {name} ")


def test_another_word_is_answered(monkeypatch, capsys):
    status, printed = entered(monkeypatch, capsys, "hf_robust", "trian")
    assert status == 2 and printed.err.count("\n") == 1
    assert "no command 'trian'; there are train, sweep" in printed.err and "did you mean 'train'?" in printed.err


def test_an_interrupt_before_a_command_begins_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    status, printed = entered(monkeypatch, capsys, "hf_robust", "train")
    assert status == 130 and printed.err == "\nstopped by SIGINT: hf-robust train had not begun\n"


@pytest.mark.parametrize("package", PROGRAMS)
def test_the_version(package, monkeypatch, capsys):
    assert entered(monkeypatch, capsys, package, "--version") == (0, (f"{PROGRAMS[package]} {__version__}\n", ""))


@pytest.mark.parametrize("module", ["hf_robust", "hf_robust train", "hf_robust.losses"])
@pytest.mark.parametrize("ending", [">&-", "| true"])
def test_nobody_need_read_what_is_printed(module, ending):
    words = f"{module} --help" if module != "hf_robust.losses" else module
    script = f"set -o pipefail; {sys.executable} -m {words} {ending}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "hf-robust train --seed 1"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch -m hf_robust train --seed 1"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun --nproc_per_node 2 -m hf_robust train --seed 1"),
    ],
)
def test_a_command_that_is_stopped_is_told_as_it_was_typed(environment, command, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["hf-robust train", "--seed", "1"])
    assert commands.repeated_command() == command


def test_what_a_command_raises_is_one_line(monkeypatch, capsys, tmp_path):
    status, printed = entered(
        monkeypatch, capsys, "hf_robust", "train", "--dataset", "./nowhere", "--output_dir", str(tmp_path / "run")
    )
    assert status == 2 and "Traceback" not in printed.err
    assert printed.err.splitlines()[-1].startswith("hf-robust train: error: dataset: there is no folder './nowhere'")
