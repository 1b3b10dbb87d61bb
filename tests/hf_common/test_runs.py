"""What belongs to a run: its folder, its arguments, what its processes decide, what may be seen of it."""

import json
import os
import subprocess
import sys

import pytest

from hf_common.arguments import parse_overrides
from hf_common.processes import from_first_process
from hf_common.public import last_part, public_results, without_paths
from hf_common.run_folder import (
    SETTINGS,
    begun,
    check_same_run,
    chosen_checkpoint,
    settings_difference,
)


def test_settings_difference():
    assert settings_difference({"a": 1, "b": None}, {"a": 1}) == ""
    assert settings_difference({"seed": 1, "loss": "ce"}, {"seed": 0, "new": 2}) == (
        "loss='ce' (it has None), new=None (it has 2), seed=1 (it has 0)"
    )


def test_whose_a_folder_is(tmp_path):
    folder = tmp_path / "run"
    assert not begun(folder)
    folder.mkdir()
    (folder / f".{SETTINGS}.17.tmp").write_text("{")  # a kill at the first file
    assert not begun(folder)
    (folder / "photo.png").write_text("")
    assert begun(folder)
    with pytest.raises(ValueError, match="holds files that are no run of this script"):
        check_same_run(folder, {})
    (folder / SETTINGS).write_text(json.dumps({"seed": 0}))
    check_same_run(folder, {"seed": 0})
    with pytest.raises(ValueError, match=r"holds another run: seed=1 \(it has 0\)"):
        check_same_run(folder, {"seed": 1})
    with pytest.raises(ValueError, match="is a file"):
        begun(folder / "photo.png")


def test_the_checkpoint_to_go_on_from(tmp_path):
    newest, oldest = found = [tmp_path / "checkpoint-20", tmp_path / "checkpoint-9"]
    assert chosen_checkpoint(tmp_path, found, "last") == newest
    for word in ("latest", "True", "true"):
        assert chosen_checkpoint(tmp_path, found, word) == newest
    assert chosen_checkpoint(tmp_path, found, f"{oldest}/") == oldest
    assert chosen_checkpoint(tmp_path, [], None) is None
    assert chosen_checkpoint(tmp_path, [], "last") is None
    for word in (None, "false"):
        with pytest.raises(ValueError, match="begun; go on with --resume_from_checkpoint last"):
            chosen_checkpoint(tmp_path, found, word)
    with pytest.raises(ValueError, match=r"must be 'last' or one of .*checkpoint-20.*; got 'checkpoint-7'"):
        chosen_checkpoint(tmp_path, found, "checkpoint-7")


def test_overrides():
    text = ' batch_norm=False, depths=[2, 2] ,name=a b,rate=1e-3,none=null, quoted="1,2",'
    with pytest.raises(ValueError, match="name=value,...; got '2\"'"):
        parse_overrides(text)
    assert parse_overrides(text.replace("1,2", "12")) == {
        "batch_norm": False, "depths": [2, 2], "name": "a b", "rate": 1e-3, "none": None, "quoted": "12",
    }  # fmt: skip
    assert parse_overrides(None) == parse_overrides(" ") == {}
    assert parse_overrides("a=1", ["a", "b"], strings=False) == {"a": 1}
    for bad, message in {
        "a": "name=value,...; got 'a'",
        "a=b": "name=value,...; got 'a=b'",
        "c=1": "may set .*'b'",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_overrides(bad, ["a", "b"], strings=False)


def test_one_process_decides_by_itself():
    assert from_first_process(lambda: 3, 0, 1) == 3
    with pytest.raises(ValueError, match="mine"):
        from_first_process(lambda: (_ for _ in ()).throw(ValueError("mine")), 0, 1)


def test_the_first_of_two_processes_decides():
    code = """
import sys, torch
from accelerate import PartialState
from hf_common.processes import from_first_process
state = PartialState(cpu=True)
me = state.process_index
assert from_first_process(lambda: {"answer": me}, me, 2) == {"answer": 0}
for error in (ValueError, FileNotFoundError):
    def fail(error=error):
        raise error("of the first")
    try:
        from_first_process(fail, me, 2)
    except error as found:
        assert str(found) == "of the first"
    else:
        sys.exit(1)
state.destroy_process_group()
"""
    env = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    done = subprocess.run([*launch, sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_path_is_public(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    value = {"a": ["/secret/data", "USER/name", 3], "b": "photos", "c": "~/x/", "d": "./e", "f": None}
    assert without_paths(value) == {"a": ["data", "USER/name", 3], "b": "photos", "c": "x", "d": "e", "f": None}
    results = {"settings": {"data": "my/photos", "vae": None, "model": "USER/net", "run": "/home/me/run"}, "steps": 3}
    assert public_results(results, ["data", "vae"]) == {
        "settings": {"data": "photos", "vae": None, "model": "USER/net", "run": "run"},
        "steps": 3,
    }
    assert results["settings"]["data"] == "my/photos"
    assert last_part(".") == tmp_path.name
