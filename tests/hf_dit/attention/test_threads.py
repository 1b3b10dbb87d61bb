"""Both ways to divide heads among threads give the same, leave PyTorch as it was, and the faster one is found."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from hf_dit.attention import threads
from hf_dit.attention.local import neighborhood_attention_2d, window_attention_1d
from hf_dit.attention.threads import PATIENCE, TRIALS, WayTimes, apart, share_pieces, together


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[together, apart], ids=["together", "apart"])
def way(request, two_threads, monkeypatch):
    monkeypatch.setattr(WayTimes, "choose", lambda self: request.param)
    return request.param


def with_gradients(attend, grid, heads, batch):
    draw = torch.Generator().manual_seed(grid[0] * heads)
    inputs = [torch.randn(batch, grid[0] * grid[1], heads, 5, generator=draw, requires_grad=True) for _ in range(3)]
    out = attend(*inputs)
    return out, *torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=draw))


@pytest.mark.parametrize(("grid", "heads", "batch"), [((31, 29), 3, 2), ((32, 32), 1, 2), ((23, 40), 5, 1)])
def test_threads_do_not_change_a_bit(way, grid, heads, batch):
    def attend(q, k, v):
        return neighborhood_attention_2d(q, k, v, grid, 5)

    found = with_gradients(attend, grid, heads, batch)
    torch.set_num_threads(1)
    for one, other in zip(found, with_gradients(attend, grid, heads, batch), strict=True):
        assert torch.equal(one, other)


def test_in_inference_mode_and_for_many_windows(way):
    x = torch.randn(2, 700, 2, 4)
    with torch.inference_mode():
        found = window_attention_1d(x, x, x, 9)
    assert found.is_inference() and torch.equal(found, window_attention_1d(x, x, x, 9))


def test_each_piece_is_seen_once_by_a_thread_that_is_alone(two_threads):
    seen, numbers, recorded = [], set(), set()

    def work(pieces):
        numbers.add((threading.current_thread().name, torch.get_num_threads()))
        recorded.add((torch.ones(1, requires_grad=True) * 2).requires_grad)
        seen.extend(pieces)
        torch.exp(torch.zeros(400, 400))  # an operation that PyTorch divides among what it takes for its threads
        numbers.add((threading.current_thread().name, torch.get_num_threads()))

    for _ in range(3):
        apart(range(50), work)
    assert sorted(seen) == sorted([*range(50)] * 3) and recorded == {False}
    assert {number for _, number in numbers} == {1}
    assert all(name.startswith("attention") for name, _ in numbers) and len(numbers) <= 2
    inside = []
    other = threading.Thread(target=lambda: inside.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert inside == [2] and torch.get_num_threads() == 2


def test_an_error_of_a_thread_is_that_of_the_call(two_threads):
    def work(pieces):
        for piece in pieces:
            if piece == 3:
                raise ArithmeticError("of piece 3")

    with pytest.raises(ArithmeticError, match="of piece 3"):
        apart(range(9), work)
    apart(range(3), work)  # the threads are there for the next


def test_a_mode_of_pytorch_sees_all_operations(way):
    x = torch.randn(1, 1024, 2, 8)
    counts = []
    for number in (2, 1):
        torch.set_num_threads(number)
        with FlopCounterMode(display=False) as counter:
            neighborhood_attention_2d(x, x, x, (32, 32), 3)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_mode_for_functions_sees_all_of_them(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "_times_of", None)

    class Seen(TorchFunctionMode):
        names: list[str] = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 1024, 2, 8)
    with Seen() as mode:
        neighborhood_attention_2d(x, x, x, (32, 32), 3)
    assert "baddbmm" in mode.names


def test_many_gradients_at_once_without_gradients_of_them(way):
    x, grads = torch.randn(1, 1024, 2, 8), torch.randn(3, 1, 1024, 2, 8)
    _, pull = torch.func.vjp(lambda *qkv: neighborhood_attention_2d(*qkv, (32, 32), 3), x, x, x)
    with torch.no_grad():
        found = torch.func.vmap(pull)(grads)
        expected = [torch.stack(of_one) for of_one in zip(*map(pull, grads), strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-5)


def test_after_an_interrupt_threads_are_free(two_threads):
    seen, interrupted = [], []

    def work(pieces):
        for piece in pieces:
            if piece == 4:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)
            seen.append(piece)

    try:
        apart(range(200), work)
    except KeyboardInterrupt:
        interrupted = list(seen)
    time.sleep(0.1)
    assert len(interrupted) < 200 and seen == interrupted


@pytest.mark.parametrize("fails", [RuntimeError, KeyboardInterrupt])
def test_without_enough_threads_none_is_left_behind(monkeypatch, two_threads, fails):
    threads._pool.cache_clear()
    start, started, found, before = threading.Thread.start, [], [], threading.active_count()

    def start_one(thread):
        if started:
            raise fails("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    if fails is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            apart(range(5), found.extend)
    else:
        apart(range(5), found.extend)
        assert found == [*range(5)]
    started[0].join(20)
    assert not started[0].is_alive() and threading.active_count() <= before + 1
    assert torch.get_num_threads() == 2


AT_THE_END = """
import atexit, threading, torch
from hf_dit.attention.threads import apart
torch.set_num_threads(2)
def attend():
    found = []
    apart(range(5), found.extend)
    print(sorted(found))
if {is_used}:
    apart(range(5), list)
threading.Thread(target=lambda: (threading.main_thread().join(), attend())).start()
atexit.register(attend)
"""


@pytest.mark.parametrize("is_used", [True, False])
def test_while_the_interpreter_ends(is_used):
    command = [sys.executable, "-c", AT_THE_END.format(is_used=is_used)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout.splitlines() == [str([*range(5)])] * 2 and "Error" not in ended.stderr


def _attend_in_a_child(x, results):
    torch.set_num_threads(2)
    results.put(float(neighborhood_attention_2d(x, x, x, (32, 32), 3).double().sum()))


def test_a_forked_process_has_threads_of_its_own(two_threads, monkeypatch):
    monkeypatch.setattr(WayTimes, "choose", lambda self: apart)
    x = torch.randn(1, 1024, 2, 8)
    expected = float(neighborhood_attention_2d(x, x, x, (32, 32), 3).double().sum())
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_attend_in_a_child, args=(x, results))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and results.get() == expected


def run(times, speeds, calls):
    """Ways that were chosen in some calls, where each takes its time of `speeds`."""
    chosen = []
    for _ in range(calls):
        chosen.append(times.choose())
        times.add(chosen[-1], speeds[chosen[-1]])
    return chosen


@pytest.mark.parametrize(("fast", "slow"), [(together, apart), (apart, together)])
def test_the_faster_way_is_found_and_found_again(fast, slow):
    times = WayTimes()
    assert sorted(run(times, {fast: 1.0, slow: 4.0}, 2 * TRIALS), key=id) == sorted([fast, slow] * TRIALS, key=id)
    chosen = run(times, {fast: 1.0, slow: 4.0}, 1000)
    tried = chosen.count(slow)
    assert 0 < tried * 4.0 <= 1000 / PATIENCE  # little of the time
    run(times, {fast: 40.0, slow: 4.0}, 40)  # another program takes a core
    assert run(times, {fast: 40.0, slow: 4.0}, 60).count(slow) > 50
    run(times, {fast: 1.0, slow: 4.0}, 2000)  # and is gone again
    assert run(times, {fast: 1.0, slow: 4.0}, 100).count(fast) > 80


def test_a_single_disturbance_decides_nothing():
    times = WayTimes()
    run(times, {together: 1.0, apart: 2.0}, 2 * TRIALS)
    times.add(together, 30.0)
    assert times.choose() is together


def test_ways_whose_times_are_not_known_yet_are_tried():
    times = WayTimes()
    at_once = [times.choose() for _ in range(4 * TRIALS)]  # of several threads, or of calls that raised
    assert set(at_once) == {together, apart}
    times.add(together, 1.0)
    assert times.choose() is apart


def test_one_thread_or_one_piece_is_not_divided(two_threads, monkeypatch):
    monkeypatch.setattr(threads, "_times_of", None)
    names = []

    def work(pieces):
        names.append((threading.current_thread().name, list(pieces)))

    share_pieces([7], work, "one")
    torch.set_num_threads(1)
    share_pieces([7, 8], work, "two")
    here = threading.current_thread().name
    assert names == [(here, [7]), (here, [7, 8])]
