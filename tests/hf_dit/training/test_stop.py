"""A training that is stopped: what is kept, what it says, who may have its folder."""

import json
import signal

import pytest
import torch
from accelerate.state import AcceleratorState

import hf_dit.training.loop as loop
from hf_common.locks import locked
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training.figures import plot_loss
from hf_dit.training.run import train_dit
from tests.processes import start_process

from .small import arguments
from .test_run import flags, losses, weights


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


# The script as it is, but for a line that a test waits for and a place where it waits for the signal.
SCRIPT = """
import sys, time
import hf_dit.training.loop as loop
import hf_dit.training.run as run

class Slow(loop.DiTTrainer):
    def _log(self, learning_rate):
        super()._log(learning_rate)
        if self.step == 3:
            print("step 3", flush=True)
            while PLACE == "loop" and not loop.requested_signal():
                time.sleep(0.01)

    def save_samples(self):
        if PLACE == "end":
            print("drawing", flush=True)
            time.sleep(600)
        super().save_samples()

run.DiTTrainer = Slow
sys.argv[0] = "scripts/train_dit.py"
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def start(place, line):
    return start_process(SCRIPT.replace("PLACE", repr(place)), *line, OMP_NUM_THREADS=str(torch.get_num_threads()))


def stopped(process, word, number):
    assert any(line.strip() == word for line in process.lines())
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    *_, last, command = error.strip().splitlines()
    assert last.startswith(f"stopped by {signal.Signals(number).name}: the newest checkpoint")
    assert command.startswith("python scripts/train_dit.py") and "--resume_from_checkpoint last" in command
    return command


def test_a_signal_writes_a_checkpoint_from_which_the_run_ends_the_same(colours, tmp_path):
    train_dit(*arguments(colours, tmp_path / "whole"))
    process = start("loop", flags(colours, tmp_path / "run", checkpointing_minutes=0))
    stopped(process, "step 3", signal.SIGINT)
    assert (tmp_path / "run" / "checkpoint-3").is_dir() and not (tmp_path / "run" / "results.json").exists()
    train_dit(*arguments(colours, tmp_path / "run", resume_from_checkpoint="latest"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "run")[key], value)


def test_the_pipeline_is_there_before_the_pictures_are_drawn(colours, tmp_path):
    process = start("end", flags(colours, tmp_path, checkpointing_steps=3))
    stopped(process, "drawing", signal.SIGTERM)
    assert not (tmp_path / "samples").exists() and not (tmp_path / "results.json").exists()
    kept = weights(tmp_path)
    DiTImagePipeline.from_pretrained(tmp_path)
    train_dit(*arguments(colours, tmp_path, checkpointing_steps=3, resume_from_checkpoint="latest"))
    assert all(torch.equal(kept[key], value) for key, value in weights(tmp_path).items())
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 6


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "scheduler.bin", "random_states_0.pkl", "transformer_ema/config.json"]
)
def test_a_checkpoint_of_other_files_than_were_written_is_named(name, colours, tmp_path):
    train_dit(*arguments(colours, tmp_path, checkpointing_steps=3, checkpoints_total_limit=0))
    (tmp_path / "results.json").unlink()
    path = tmp_path / "checkpoint-3" / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), None):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(ValueError, match=f"checkpoint-3' can't be resumed: it (has other|lacks) {name}"):
            train_dit(*arguments(colours, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-3")))


def test_a_folder_is_one_trainings_at_a_time(colours, tmp_path):
    process = start("loop", flags(colours, tmp_path))
    try:
        assert any(line.strip() == "step 3" for line in process.lines())
        with pytest.raises(ValueError, match="output_dir .* is being written by another process"):
            train_dit(*arguments(colours, tmp_path))
    finally:
        process.kill()
        process.communicate()
    # A process that is dead holds nothing.
    with pytest.raises(ValueError, match="was trained on|another run|is a run|begun|finished") as caught:
        train_dit(*arguments(colours, tmp_path, seed=1))
    assert "another process" not in str(caught.value)


def test_a_held_folder_is_refused_before_the_images_are_looked_at(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_dit.training.run.open_rows", lambda data: pytest.fail("looked at"))
    with locked(tmp_path), pytest.raises(ValueError, match="another process"):
        train_dit(*arguments(colours, tmp_path))


def test_time_asks_for_a_checkpoint_that_changes_nothing(colours, tmp_path, monkeypatch):
    train_dit(*arguments(colours, tmp_path / "whole", checkpointing_steps=3, checkpoints_total_limit=0))
    clock = iter(range(0, 10**6, 60))  # a minute between any two looks
    monkeypatch.setattr("hf_dit.training.loop.time.monotonic", lambda: next(clock))
    seen = []
    publish = loop.publish_checkpoint
    monkeypatch.setattr(loop, "publish_checkpoint", lambda *given: seen.append(given[1]) or publish(*given))
    changes = {"checkpointing_steps": 3, "checkpoints_total_limit": 0, "checkpointing_minutes": 2}
    train_dit(*arguments(colours, tmp_path / "timed", **changes))
    assert len(seen) > 2 and {3, 6} < set(seen)
    for run in ("timed", "whole"):
        assert sorted(path.name for path in (tmp_path / run).glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    assert losses(tmp_path / "timed") == losses(tmp_path / "whole")
    assert all(
        torch.equal(value, weights(tmp_path / "whole")[key]) for key, value in weights(tmp_path / "timed").items()
    )


@pytest.mark.parametrize("rows", [1, 2])
def test_a_curve_of_one_point_is_seen(rows):
    history = [{"step": 30 * i, "loss": 1.0, "vb": 0.1, "smoothed": 1.0} for i in range(1, rows + 1)]
    for axes in plot_loss(history).axes:
        for line in axes.get_lines():
            assert (line.get_marker() == "o") == (rows == 1)


def test_a_curve_of_few_steps_has_ticks_at_whole_ones():
    history = [{"step": step, "loss": 1.0, "smoothed": 1.0} for step in (19, 20)]
    (axes,) = plot_loss(history).axes
    assert all(tick == round(tick) for tick in axes.get_xticks())
