"""Processes that need not import PyTorch and what else trains: each is the fork of one that has done that and no more.

For what has to be a process of its own: it is killed, gets a signal, or is one of several. What is imported when, and
what libraries read of the environment as they are imported, is for `subprocess` and a new interpreter.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

from . import ROOT

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ["hf_robust.studies.label_errors", "hf_robust.studies.sweep", "hf_robust.commands.train"]
IMPORTED += ["hf_dit.training.run", "sklearn.datasets", "matplotlib.backends.backend_agg"]
FORKS.set_forkserver_preload(IMPORTED)


def _main(what, words, cwd, environment, paths):
    """In the child: `what` is code, or the path of a script."""
    for number, path in enumerate(paths, start=1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    gc.freeze()  # `Trainer` collects garbage after every run: what was imported need not be searched each time
    multiprocessing.set_start_method(None, force=True)  # workers of data loaders begin as they do elsewhere
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:
        import torch

        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if isinstance(what, Path):
        sys.argv = [str(what), *words]
        sys.path.insert(0, str(what.parent))
        runpy.run_path(str(what), run_name="__main__")
    else:
        sys.argv = ["-c", *words]
        sys.path.insert(0, "")
        exec(what, {"__name__": "__main__"})


class Process:
    """A script or code that is under way, its outputs in files; see `start_process`."""

    def __init__(self, what, words, cwd, environment):
        self._folder = tempfile.TemporaryDirectory(prefix="process-")
        self._paths = [Path(self._folder.name) / name for name in ("out", "err")]
        for path in self._paths:
            path.touch()
        self._read = self._paths[0].open(encoding="utf-8")
        arguments = (what, [str(word) for word in words], str(cwd), environment, [str(path) for path in self._paths])
        self._process = FORKS.Process(target=_main, args=arguments)
        self._process.start()
        self.pid, self.sentinel = self._process.pid, self._process.sentinel

    @property
    def returncode(self):
        """None as long as it runs."""
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def lines(self):
        """Of its output, each as soon as it is whole."""
        begun = ""
        while True:
            over = self.returncode is not None
            begun += self._read.readline()
            if begun.endswith("\n"):
                yield begun
                begun = ""
            elif over:
                return
            else:
                time.sleep(0.01)

    def wait(self, timeout=300):
        self._process.join(timeout)
        assert self.returncode is not None, f"not over after {timeout} s: {self._paths[1].read_text()}"
        return self.returncode

    def communicate(self, timeout=300):
        """What of the output `lines` has not given, and the errors, once it is over."""
        self.wait(timeout)
        rest, errors = self._read.read(), self._paths[1].read_text(encoding="utf-8")
        self._read.close()
        self._folder.cleanup()
        return rest, errors


def start_process(what, *words, cwd=ROOT, **environment) -> Process:
    """Begin a script, if `what` is a path, or else code, with `words` in `sys.argv`.

    It has one thread, unless `environment` says otherwise with OMP_NUM_THREADS, and sees no GPU.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    given |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return Process(what, words, cwd, given)


def run_process(what, *words, processes=1, timeout=300, **options) -> subprocess.CompletedProcess:
    """`start_process`, and wait; as so many processes of one group, where one that fails ends all."""
    if processes == 1:
        begun = [start_process(what, *words, **options)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        group |= {"LOCAL_WORLD_SIZE": str(processes)} | options
        ranks = map(str, range(processes))
        begun = [start_process(what, *words, **group, RANK=rank, LOCAL_RANK=rank) for rank in ranks]
    end = time.monotonic() + timeout
    running = {process.sentinel: process for process in begun}
    failed = []
    while running:
        over = wait(list(running), max(0, end - time.monotonic()))
        failed += [status for place in over if (status := running.pop(place).wait())]
        if failed or not over:
            for process in running.values():
                process.kill()
    out, errors = ("".join(texts) for texts in zip(*(process.communicate() for process in begun), strict=True))
    return subprocess.CompletedProcess([str(what), *words], failed[0] if failed else 0, out, errors)
