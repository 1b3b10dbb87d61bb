"""Real processes: several of them, killed and stopped ones, and equal bytes of every form."""

import json
import signal
import socket

import pytest
import torch

from evaluate_metrics.core.moments import Moments
from hf_dit.generation.run import generate_images
from tests import ROOT
from tests.processes import run_process, start_process

from .small import CMMD, arguments, contents, flags

FORMS = ("png", "parquet", "samples.npz")
SCRIPT = ROOT / "scripts" / "generate_dit.py"
# The script as it is, but that it kills itself at a place, or says where it is and waits for a signal.
KILLED = """
import os, signal, sys, time
import hf_dit.generation.parts as parts_module
import hf_dit.generation.run as run_module
import hf_dit.generation.forms as forms

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

write = parts_module.Parts.write
PLACE, COUNT = sys.argv.pop(1), int(sys.argv.pop(1))
written = []

def counted(self, start, part):
    if PLACE == "between" and len(written) == COUNT:
        die()
    if PLACE == "unnamed" and len(written) == COUNT:
        parts_module.np.savez = lambda file, **_: (file.write(b"half"), file.flush(), die())
    write(self, start, part)
    written.append(start)
    if PLACE == "signal" and len(written) == COUNT:
        print("waiting", flush=True)
        while not run_module.requested():
            time.sleep(0.01)

parts_module.Parts.write = counted
if PLACE == "png":
    forms.publish_folder = die
if PLACE == "results":
    run_module.shutil.rmtree = die
sys.argv[0] = "scripts/generate_dit.py"
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""
THREADS = {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def changed(**changes):
    return {"format": ["png", "parquet", "npz"], "scheduler": "ddpm", "class_sampling": "drawn", **changes}


def killed(model, folder, place, count, **changes):
    done = run_process(KILLED, place, str(count), *flags(model, folder, **changes), **THREADS)
    assert done.returncode == -signal.SIGKILL, done.stderr


def stopped(model, folder, count, number, **changes):
    process = start_process(KILLED, "signal", str(count), *flags(model, folder, **changes), **THREADS)
    assert any(line.strip() == "waiting" for line in process.lines())
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    *_, last, command = errors.strip().splitlines()
    assert last == (
        f"stopped by {signal.Signals(number).name}: the finished batches are kept in --output_dir; the same command "
        "samples the rest:"
    )
    assert command.startswith("python scripts/generate_dit.py --model_name_or_path")


@pytest.mark.parametrize("kind", ["model", "unconditional"])
def test_processes_change_no_byte(kind, request, tmp_path):
    model, changes = request.getfixturevalue(kind), changed(num_images=22)
    one = generate_images(arguments(model, tmp_path / "one", **changes))
    done = run_process(SCRIPT, *flags(model, tmp_path / "two", **changes), processes=2, **THREADS)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two", *FORMS) == contents(tmp_path / "one", *FORMS)
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2) and two["settings"] == one["settings"]
    assert two["sampled"] == 22 and two["images_per_class"] == one["images_per_class"]
    assert not (tmp_path / "two" / "parts").exists()


def test_fewer_images_than_processes(model, tmp_path):
    changes = changed(num_images=1)
    generate_images(arguments(model, tmp_path / "one", **changes))
    done = run_process(SCRIPT, *flags(model, tmp_path / "three", **changes), processes=3, **THREADS)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "three", *FORMS) == contents(tmp_path / "one", *FORMS)


def test_a_kill_at_any_place_changes_no_byte(model, tmp_path):
    changes = changed(num_images=18)
    generate_images(arguments(model, tmp_path / "whole", **changes))
    run = tmp_path / "run"
    killed(model, run, "unnamed", 1, **changes)
    assert [path.name for path in (run / "parts").glob("0*")] == ["00000000.npz"]
    killed(model, run, "between", 1, **changes)
    stopped(model, run, 1, signal.SIGTERM, **changes)
    assert len(list((run / "parts").glob("0*"))) == 3 and not (run / "results.json").exists()
    killed(model, run, "png", 99, **changes)
    assert not any((run / form).exists() for form in FORMS) and (run / ".png.tmp").is_dir()
    with pytest.raises(ValueError, match=r"holds another run: seed=1 \(it has 0\)"):
        generate_images(arguments(model, run, **changes, seed=1))
    (run / "parts" / "00000008.npz").write_bytes(b"damaged")
    results = generate_images(arguments(model, run, **changes))
    assert results["sampled"] == 4
    assert contents(run, *FORMS) == contents(tmp_path / "whole", *FORMS)
    assert not list(run.glob(".*.tmp")) and not (run / "parts").exists()


def test_a_kill_after_the_results_leaves_a_finished_run(model, tmp_path):
    changes = changed(format=["npz"])
    killed(model, tmp_path, "results", 99, **changes)
    assert (tmp_path / "results.json").exists() and (tmp_path / "parts").is_dir()
    before = contents(tmp_path, "samples.npz", "results.json")
    generate_images(arguments(model, tmp_path, **changes))
    assert contents(tmp_path, "samples.npz", "results.json") == before and not (tmp_path / "parts").exists()


def test_an_interrupt_lets_the_batch_end_and_two_processes_go_on(model, tmp_path):
    changes = changed(num_images=23)
    generate_images(arguments(model, tmp_path / "whole", **changes))
    stopped(model, tmp_path / "run", 2, signal.SIGINT, **changes)
    assert len(list((tmp_path / "run" / "parts").glob("0*"))) == 2
    done = run_process(SCRIPT, *flags(model, tmp_path / "run", **changes), processes=2, **THREADS)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sampled"] == 15
    assert contents(tmp_path / "run", *FORMS) == contents(tmp_path / "whole", *FORMS)


def test_a_signal_ends_all_processes_and_keeps_their_batches(model, tmp_path):
    changes = changed(num_images=40)
    generate_images(arguments(model, tmp_path / "whole", **changes))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    words = flags(model, tmp_path / "run", **changes)
    # The first waits in its second batch; the other one goes through all of its own.
    begun = [
        start_process(KILLED, "signal", count, *words, **THREADS, **group, RANK=rank, LOCAL_RANK=rank)
        for rank, count in (("0", "2"), ("1", "99"))
    ]
    assert any(line.strip() == "waiting" for line in begun[0].lines())
    for process in begun:
        process.send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in begun]
    assert begun[0].returncode == 128 + signal.SIGTERM, errors
    assert begun[1].returncode != 0
    assert "torchrun --nproc_per_node 2" in errors[0].splitlines()[-1]
    there = len(list((tmp_path / "run" / "parts").glob("0*")))
    assert 2 <= there < 10
    results = generate_images(arguments(model, tmp_path / "run", **changes))
    assert results["sampled"] == 40 - 4 * there
    assert contents(tmp_path / "run", *FORMS) == contents(tmp_path / "whole", *FORMS)


@pytest.mark.slow
def test_a_thousand_images(model, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "own_kinds.py").write_text((ROOT / "tests/fixtures/own_kinds.py").read_text())
    generate_images(arguments(model, tmp_path / "real", num_images=300, batch_size=50, seed=1, num_inference_steps=9))
    changes = changed(num_images=1000, batch_size=32, num_inference_steps=4)
    changes |= {
        "score_metric": CMMD,
        "score_arguments": "encoder=mean-colour",
        "score_references": str(tmp_path / "real" / "png"),
    }

    def words(folder):
        moments = str(tmp_path / f"{folder.name}.safetensors")
        return [*flags(model, folder, **changes, save_moments=moments), "--plugins", str(work / "own_kinds.py")]

    folders = [tmp_path / name for name in ("one", "two", "killed")]
    for processes, folder in enumerate(folders[:2], 1):
        done = run_process(SCRIPT, *words(folder), processes=processes, **THREADS)
        assert done.returncode == 0, done.stderr
    done = run_process(KILLED, "between", "9", *words(folders[2]), **THREADS)
    assert done.returncode == -signal.SIGKILL
    process = start_process(KILLED, "signal", "5", *words(folders[2]), **THREADS)
    assert any(line.strip() == "waiting" for line in process.lines())
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert len(list((folders[2] / "parts").glob("0*"))) == 14
    done = run_process(SCRIPT, *words(folders[2]), processes=2, **THREADS)
    assert done.returncode == 0, done.stderr
    one = contents(folders[0], *FORMS)
    assert len([name for name in one if name.endswith(".png")]) == 1000
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    for folder, result in zip(folders[1:], results[1:], strict=True):
        assert contents(folder, *FORMS) == one and result["scores"] == results[0]["scores"]
        (moments, metadata), (expected, own) = (Moments.load(f"{each}.safetensors") for each in (folder, folders[0]))
        # The order of the metadata in the file is another each time.
        assert moments.n == 1000 and metadata == own
        assert torch.equal(moments.sum, expected.sum) and torch.equal(moments.outer, expected.outer)
    assert results[0]["scores"]["n_predictions"] == 1000 and results[2]["sampled"] == 1000 - 14 * 32
