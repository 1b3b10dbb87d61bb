import os
import subprocess
import sys
import time

import pytest

from hf_common.locks import locked, try_lock
from hf_common.run_folder import begun

HOLD = """
import sys, time
from hf_common.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def other_process(folder):
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_holds_a_folder(tmp_path):
    folder = tmp_path / "run"
    process = other_process(folder)
    try:
        assert try_lock(folder) is None
        with (
            pytest.raises(ValueError, match=r"output_dir '.*run' is being written by another"),
            locked(folder),
        ):
            pass
        assert not begun(folder)
    finally:
        process.kill()  # SIGKILL: the lock goes with it
        process.wait()
    deadline = time.monotonic() + 30
    while (lock := try_lock(folder)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    lock.release()
    with locked(folder):
        other = subprocess.run(
            [sys.executable, "-c", HOLD, str(folder)],
            env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert other.returncode == 1 and "is being written by another process" in other.stderr


def test_a_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        assert begun(tmp_path) is False
