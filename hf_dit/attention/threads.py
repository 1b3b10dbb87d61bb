"""Two ways to divide pieces of work among the threads of a CPU, and which of them is the faster one here and now.

*Together*: one piece after the other; PyTorch divides every operation among its threads, which meet at the end of it.
Where other programs hold cores, each of many small operations waits for the thread that has none: ten times the time
and more. *Apart*: each thread takes the next piece that is left and computes it alone, and they meet once; but threads
of PyTorch that wait for their next operation do so busily, for some milliseconds, and take a part of the cores. So
both are timed where they run. Which one it is changes no bit of the result.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from statistics import median_low
from threading import Barrier, BrokenBarrierError, Lock
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Work = Callable[[Iterator[Piece]], None]
Way = Callable[[Sequence, Work], None]

TRIALS = 3  # in a row, whose median counts: the first one finds neither caches nor memory in place
PATIENCE = 30  # the slower way is tried again after this many times what that takes: it costs 3 % at most


def share_pieces(pieces: Sequence[Piece], work: Work, kind: Hashable) -> None:
    """`work(iterator)` in this thread or in several, which have one iterator over `pieces`: each is seen once.

    Gradients are not recorded in other threads, nor are there tracers and other modes of PyTorch: under one of these,
    and with one thread or piece, it is called in this thread.

    Args:
        kind: pieces of one kind take the same time.

    Raises:
        what `work` raises, once all threads have ended.
    """
    threads = torch.get_num_threads()
    modes = torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack()
    if min(threads, len(pieces)) < 2 or modes:
        work(iter(pieces))
        return
    times = _times_of(threads, len(pieces), kind)
    way = times.choose()
    begin = time.perf_counter()
    way(pieces, work)
    times.add(way, time.perf_counter() - begin)


def together(pieces: Sequence[Piece], work: Work) -> None:
    """In this thread, see the text of this module."""
    work(iter(pieces))


def apart(pieces: Sequence[Piece], work: Work) -> None:
    """In threads of their own, see the text of this module."""
    iterator, threads = iter(pieces), torch.get_num_threads()

    def run() -> None:
        with torch.inference_mode():  # no derivatives of any mode, as in the function that this is a part of
            work(iterator)

    running: list[Future] = []
    try:
        try:
            pool = _pool(threads, os.getpid())
            while len(running) < min(threads, len(pieces)):
                running.append(pool.submit(run))
        except RuntimeError:  # there is no thread to be had: the interpreter ends, or the system has no more of them
            work(iterator)
        wait(running, return_when=FIRST_EXCEPTION)
    finally:
        deque(iterator, maxlen=0)  # after an error or an interrupt, threads end with the piece that they are at
        wait(running)
    for ended in running:
        ended.result()


class WayTimes:
    """How long each way took the last times, and which one is next."""

    def __init__(self) -> None:
        self._last: dict[Way, deque[float]] = {way: deque(maxlen=TRIALS) for way in (together, apart)}
        self._next = deque([way for way in self._last for _ in range(TRIALS)])
        self._since = dict.fromkeys(self._last, 0.0)  # seconds in the other way since a way was tried
        self._lock = Lock()

    def choose(self) -> Way:
        """The one that takes less time; at first, and now and then, the other."""
        with self._lock:
            if not self._next:
                # A way without times is still at work in other threads, or has raised: it is tried.
                fast, slow = sorted(self._last, key=lambda way: median_low(self._last[way] or [0.0]))
                is_due = self._since[slow] > PATIENCE * sum(self._last[slow])
                self._next.extend([slow] * TRIALS if is_due else [fast])
            return self._next.popleft()

    def add(self, way: Way, seconds: float) -> None:
        """It took so long."""
        with self._lock:
            self._last[way].append(seconds)
            for other in self._since:
                self._since[other] = 0.0 if other is way else self._since[other] + seconds


@lru_cache(maxsize=256)
def _times_of(threads: int, pieces: int, kind: Hashable) -> WayTimes:
    return WayTimes()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads, each of which PyTorch divides nothing among; of one process, for a forked one has none of them."""
    begun = Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # makes a new thread what others are, once
        torch.set_num_threads(1)
        with suppress(BrokenBarrierError):
            begun.wait()

    pool = ThreadPoolExecutor(threads, "attention", begin)
    try:
        for _ in range(threads):
            pool.submit(int)
        begun.wait()
    except BaseException:  # an interrupt, or there are not so many threads: those that wait would do so for ever
        begun.abort()
        pool.shutdown()
        raise
    finally:
        torch.set_num_threads(threads)  # which other new threads begin with: those of the pool have just changed it
    return pool
