"""SIGINT and SIGTERM, which let a command keep what it can before it ends."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. No `Exception`, so that nothing goes on after it by mistake."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _State:
    number: int | None = None  # of the signal that came
    waiting: int = 0  # blocks of `deferred` that are under way


def requested() -> bool:
    """Whether a signal came: a loop inside [`deferred`] then saves and leaves the block."""
    return _State.number is not None


def requested_signal() -> int:
    """The number of the signal that [`requested`] tells of; 0 if none came."""
    return _State.number or 0


@contextmanager
def deferred() -> Iterator[None]:
    """A block that looks at [`requested`] itself; [`Stopped`] is raised at its end, and at once by a second signal."""
    _State.waiting += 1
    try:
        yield
    finally:
        _State.waiting -= 1
    if _State.number is not None and _State.waiting == 0:
        raise Stopped(_State.number)


def _handle(number: int, frame: FrameType | None) -> None:
    again = _State.number is not None
    _State.number = number
    if again or _State.waiting == 0:
        raise Stopped(number)


@contextmanager
def caught() -> Iterator[None]:
    """A block that [`Stopped`] ends where a signal comes; the handlers of before come back after it."""
    # One that is ignored stays so: a shell without job control starts its background jobs like that.
    numbers = [number for number in CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in numbers}
    _State.number = None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
