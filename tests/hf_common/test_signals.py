import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_common.commands import repeated_command

SCRIPT = """
import sys, time
from hf_common.running import run_command
from hf_common.signals import deferred, requested

def at_once():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("cleaned up", flush=True)

def in_order():
    with deferred():
        print("ready", flush=True)
        while not requested():
            time.sleep(0.01)
        print("saved", flush=True)
    print("never", flush=True)

def stuck():
    with deferred():
        print("ready", flush=True)
        while not requested():
            time.sleep(0.01)
        print("saving", flush=True)
        time.sleep(600)

def whole():
    print("ready", flush=True)

def fails():
    raise ValueError("its own\\n error")

def bug():
    raise KeyError("a bug")

def diverges():
    raise FloatingPointError("not finite")

def goes_on():
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(3):
        print("x" * 100_000, flush=True)
    print("done", file=sys.stderr)

def says():
    print("ready \u00fc \U0001f389", flush=True)

def save_tensors():
    from safetensors.torch import save_file
    import torch
    save_file({"a": torch.zeros(3)}, "/dev/null/a")

def save_states():
    import torch
    torch.save({"a": torch.zeros(100_000)}, "/dev/full")

name = next(word for word in sys.argv if word in globals())
run_command(globals()[name], "two runs are kept", flags=("--resume=last",))
"""


def start(tmp_path, *words, **environment):
    script = tmp_path / "a script.py"
    script.write_text(SCRIPT)
    env = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    env |= {"PYTHONPATH": ":".join(sys.path)} | environment
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, str(script), *words], env=env, **pipes)
    if words[-1] != "fails" and words[0] not in ("fails", "bug", "diverges", "says", "save_tensors", "save_states"):
        assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("kind", "printed"), [("at_once", "cleaned up\n"), ("in_order", "saved\n")])
def test_a_signal_ends_a_command_in_order(kind, printed, number, tmp_path):
    process = start(tmp_path, kind, "--resume", "old", "--output_dir", "a b")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == printed
    name = signal.Signals(number).name
    script = f"'{tmp_path}/a script.py'"
    assert err.strip().splitlines() == [
        f"stopped by {name}: two runs are kept",
        f"python {script} {kind} --output_dir 'a b' --resume last",
    ]


def test_a_second_signal_ends_it_at_once(tmp_path):
    process = start(tmp_path, "stuck")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "python"),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "1"}, "python"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}, "torchrun --nproc_per_node 2"),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
            "torchrun --nnodes 2 --nproc_per_node 4",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "accelerate launch --num_processes 2 --mixed_precision bf16",
        ),
    ],
)
def test_the_command_has_as_many_processes(environment, launcher, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "1"])
    assert repeated_command(("--seed=2",)) == f"{launcher} train.py --seed 2"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a child has from its parent
    try:
        process = start(tmp_path, "in_order")
    finally:
        signal.signal(signal.SIGINT, before)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_without_a_signal_nothing_changes(tmp_path):
    process = start(tmp_path, "whole")
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
    process = start(tmp_path, "fails")
    assert process.communicate(timeout=60)[1] == "a script.py: error: its own error (--debug shows where)\n"
    assert process.returncode == 2
    process = start(tmp_path, "fails", "--debug")
    assert "ValueError: its own" in process.communicate(timeout=60)[1] and process.returncode == 1
    (tmp_path / "a.yaml").write_text("debug: true\nseed: 1")
    process = start(tmp_path, str(tmp_path / "a.yaml"), "fails")
    assert "ValueError: its own" in process.communicate(timeout=60)[1] and process.returncode == 1
    process = start(tmp_path, "diverges")
    assert process.communicate(timeout=60)[1] == "a script.py: error: not finite (--debug shows where)\n"
    process = start(tmp_path, "bug")
    assert "KeyError: 'a bug'" in process.communicate(timeout=60)[1] and process.returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("name", ["save_tensors", "save_states"])
def test_what_a_library_can_not_write_is_one_line(name, tmp_path):
    process = start(tmp_path, name)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(
        "a script.py: error: a file could not be written, the disk may be full:"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("count", [1, 100_000])  # what stays in the buffer to the end, and what does not
def test_standard_output_on_a_full_disk_is_one_line(count, tmp_path):
    script = tmp_path / "a script.py"
    script.write_text(
        f"from hf_common.running import run_command\nrun_command(lambda: print('x' * {count}), 'nothing is kept')"
    )
    with Path("/dev/full").open("w") as full:
        env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
        run = [sys.executable, str(script)]
        done = subprocess.run(run, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "a script.py: error: [Errno 28] No space left on device (--debug shows where)\n"


def test_a_command_goes_on_when_its_reader_leaves(tmp_path):
    process = start(tmp_path, "goes_on")
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "done\n" and process.wait(60) == 0


def test_what_a_terminal_can_not_show_is_printed_all_the_same(tmp_path):
    process = start(tmp_path, "says", PYTHONIOENCODING="ascii")
    assert process.communicate(timeout=60) == ("ready \\xfc \\U0001f389\n", "") and process.returncode == 0
