"""Commands that are stopped, killed, or started twice: what is kept, what they say, who does the work."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from hf_common.locks import locked, try_lock
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.folds import out_of_fold_probabilities
from hf_robust.studies.run import run_experiment
from hf_robust.studies.sweep import run_sweep
from hf_robust.training.checkpoints import complete_checkpoints
from tests import ROOT
from tests.processes import Process, start_process

SMALL = {"max_train_samples": 96, "max_test_samples": 30}
RECIPE = {"num_train_epochs": 3, "per_device_train_batch_size": 16, "save_steps": 4, "save_strategy": "steps"}
LINE = [str(word) for name, value in (SMALL | RECIPE).items() for word in (f"--{name}", value)] + ["--use_cpu"]
# Of a script: each step, and each run of a sweep, says so and can be held up by a file.
HELD_UP = """
import os, sys, time
from transformers import TrainerCallback
import hf_robust.studies.prepare as prepare
from hf_common.signals import requested
from hf_robust.training.trainer import RobustTrainer

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        # In one piece: two unbuffered processes write to one pipe, and would mix the words of their lines.
        print(f"step {state.global_step} {args.output_dir} {os.getpid()}\\n", end="", flush=True)
        told = False
        while os.path.exists(os.environ["HOLD"]) and state.global_step == int(os.environ["AT"]):
            time.sleep(0.02)
            if requested() and not told:
                print("requested\\n", end="", flush=True)
                told = True

class SlowTrainer(RobustTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Slow())

prepare.RobustTrainer = SlowTrainer
sys.argv[0] = os.environ["SCRIPT"]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def start(script, *line, at=-1, hold="/nowhere"):
    environment = {"SCRIPT": f"scripts/{script}", "AT": str(at), "HOLD": str(hold)}
    return start_process(HELD_UP, *line, OMP_NUM_THREADS=str(torch.get_num_threads()), **environment)


def launch(script, processes, *line, at, hold):
    """As several processes, by PyTorch's own launcher."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"SCRIPT": "scripts/train_robust.py", "AT": str(at), "HOLD": str(hold), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    return subprocess.Popen([*command, str(script), *map(str, line)], cwd=ROOT, env=environment, **pipes)


def wait_for(process, text):
    for line in process.lines() if isinstance(process, Process) else process.stdout:
        if text in line:
            return line
    raise AssertionError(process.communicate()[1])


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_results(one, other):
    def kept(folder):
        content = json.loads((folder / "results.json").read_text())
        return {k: v for k, v in content.items() if k not in ("images_per_second", "finished")}

    assert kept(one) == kept(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def small_run(folder, **changes):
    data = DataArguments(noise="symmetric_40", **SMALL)
    args = ExperimentArguments(output_dir=str(folder), loss="elr", use_cpu=True, disable_tqdm=True, **RECIPE | changes)
    return run_experiment(data, ModelArguments(), args)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(tmp_path, number):
    hold, folder = tmp_path / "hold", tmp_path / "run"
    hold.touch()
    line = ["--noise", "symmetric_40", "--loss", "elr", *LINE, "--output_dir", folder]
    process = start("train_robust.py", *line, at=9, hold=hold)  # in the middle of the second epoch
    wait_for(process, "step 9")
    second = start("train_robust.py", *line)  # meanwhile
    _, error = second.communicate(timeout=120)
    assert second.returncode != 0 and f"output_dir '{folder}' is being written by another process" in error
    process.send_signal(number)
    wait_for(process, "requested")
    hold.unlink()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    *_, said, command = error.strip().splitlines()
    assert said.startswith(f"stopped by {signal.Signals(number).name}: the newest checkpoint")
    assert command.startswith("python scripts/train_robust.py") and command.endswith("--resume_from_checkpoint last")
    assert complete_checkpoints(folder)[0].name == "checkpoint-10" and not (folder / "results.json").exists()
    small_run(folder, resume_from_checkpoint="last")
    small_run(tmp_path / "whole")
    same_results(folder, tmp_path / "whole")


def test_a_signal_to_one_of_two_processes_ends_both_with_a_checkpoint(tmp_path):
    hold, folder, script = tmp_path / "hold", tmp_path / "run", tmp_path / "script.py"
    hold.touch()
    script.write_text(HELD_UP)
    line = ["--noise", "symmetric_40", "--loss", "ce", *LINE, "--output_dir", folder]
    process = launch(script, 2, *line, at=4, hold=hold)
    one = int(wait_for(process, "step 4").split()[-1])
    os.kill(one, signal.SIGTERM)
    wait_for(process, "requested")
    hold.unlink()
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0 and f"exitcode  : {128 + signal.SIGTERM}" in error
    assert complete_checkpoints(folder)[0].name == "checkpoint-5"
    assert not (folder / "results.json").exists()


def test_a_folder_in_use_is_refused_before_the_images_are_read(tmp_path, monkeypatch):
    def nothing_is_read(*args, **kwargs):
        raise AssertionError("read")

    for module in ("run", "folds"):
        monkeypatch.setattr(f"hf_robust.studies.{module}.load_splits", nothing_is_read)
    with locked(tmp_path / "run"):
        with pytest.raises(ValueError, match="output_dir .* is being written by another process"):
            small_run(tmp_path / "run")
        args = ExperimentArguments(output_dir=str(tmp_path / "run"), loss="ce", use_cpu=True)
        with pytest.raises(ValueError, match="output_dir .* is being written by another process"):
            out_of_fold_probabilities(DataArguments(**SMALL), ModelArguments(), args)


@pytest.mark.slow
def test_three_workers_share_a_sweep_and_take_over_from_one_that_is_killed(tmp_path):
    hold, folder = tmp_path / "hold", tmp_path / "sweep"
    hold.touch()
    line = ["--losses", "ce", "mae", "gce", "elr", "--noises", "symmetric_40", "--seeds", "0", *LINE]
    line += ["--output_dir", folder]
    first = start("sweep_robust.py", *line, at=9, hold=hold)
    wait_for(first, "step 9")
    others = [start("sweep_robust.py", *line) for _ in range(2)]
    steps = [wait_for(worker, "step 0") for worker in others]
    first.kill()
    first.wait()
    outputs = [worker.communicate(timeout=300) for worker in others]
    assert [worker.returncode for worker in others] == [0, 0], outputs
    begun = [
        text.split() for text in (*steps, *"".join(out for out, _ in outputs).splitlines()) if text.startswith("step")
    ]
    runs = folder / "symmetric_40" / "cnn_small"
    starts = sorted(place for _, step, place, _ in begun if step == "0")
    assert starts == sorted(str(runs / loss / "seed0") for loss in ("elr", "gce", "mae"))  # each once
    taken = {place for _, step, place, _ in begun if step == "8"} - set(starts)
    assert taken == {str(runs / "ce" / "seed0")} and str(runs / "ce" / "seed0") not in starts  # from its checkpoint
    assert len(json.loads((folder / "sweep.json").read_text())) == 4
    assert len({out.split("Accuracy on the clean")[1] for out, _ in outputs}) == 1  # both saw all


@pytest.mark.slow
def test_a_worker_with_other_settings_is_refused_before_it_trains(tmp_path):
    hold, folder = tmp_path / "hold", tmp_path / "sweep"
    hold.touch()
    line = ["--losses", "ce", "mae", "--noises", "symmetric_40", "--seeds", "0", *LINE, "--output_dir", folder]
    first = start("sweep_robust.py", *line, at=1, hold=hold)
    wait_for(first, "step 1")
    other = start("sweep_robust.py", *line, "--learning_rate", "0.5")
    out, error = other.communicate(timeout=120)
    assert other.returncode != 0 and "step" not in out
    assert "holds another run: learning_rate=0.5 (it has 0.01); choose another" in error
    hold.unlink()
    _, error = first.communicate(timeout=120)
    assert first.returncode == 0, error
    assert len(json.loads((folder / "sweep.json").read_text())) == 2


def test_a_damaged_result_of_a_sweep_is_made_again(tmp_path):
    def sweep():
        args = ExperimentArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=1)
        return run_sweep(["ce"], ["symmetric_40"], ["cnn_small"], [0], DataArguments(**SMALL), ModelArguments(), args)

    (whole,) = sweep()
    path = tmp_path / "symmetric_40" / "cnn_small" / "ce" / "seed0" / "results.json"
    for damage in (b"", b"{", b"\0\0", b"[1]", b'{"settings": 3}'):
        path.write_bytes(damage)
        (again,) = sweep()
        assert again["history"] == whole["history"] and json.loads(path.read_text()) == again
    path.write_bytes(b"{")
    (path.parent / "settings.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="settings.json: is no JSON"):
        sweep()


def test_a_run_of_another_worker_is_waited_for(tmp_path, capfd, monkeypatch):
    runs = tmp_path / "symmetric_40" / "cnn_small" / "ce" / "seed0"
    code = "import sys; from hf_common.locks import locked\nwith locked(sys.argv[1]): print(1, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code, str(runs)], cwd=ROOT, **pipes)
    other.stdout.readline()
    assert try_lock(runs) is None

    def sleep(seconds):  # the other one dies while this one waits
        other.kill()
        other.wait()

    monkeypatch.setattr("hf_common.locks.time", SimpleNamespace(sleep=sleep))
    args = ExperimentArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=1)
    run_sweep(["ce"], ["symmetric_40"], ["cnn_small"], [0], DataArguments(**SMALL), ModelArguments(), args)
    assert f"waiting for other processes, which are at {runs}" in capfd.readouterr().err
    assert (runs / "results.json").exists()
    other.stdin.close()
    other.stdout.close()
