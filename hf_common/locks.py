"""Who may write into a folder: locks of files, which end with the process that holds them, killed or not."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .processes import from_first_process

LOCK = ".lock"  # in the folder that it is for
POLL_SECONDS = 0.5  # between two looks at locks that others have

Item = TypeVar("Item")


def try_lock(folder: str | Path) -> FileLock | None:
    """The lock of a folder, which is made, held by this process until `release()`; None if another process has it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(folder: str | Path, argument: str = "output_dir") -> Iterator[None]:
    """Hold the lock of a folder for the block; a `ValueError` that names `argument` if another process has it."""
    lock = try_lock(folder)
    if lock is None:
        raise ValueError(
            f"{argument} {str(folder)!r} is being written by another process; wait for it, or choose another"
        )
    try:
        yield
    finally:
        lock.release()


def claimed(
    items: Sequence[Item], folder_of: Callable[[Item], Path], process_index: int = 0, num_processes: int = 1
) -> Iterator[Item]:
    """The items one by one, each while the lock of its folder is held; those that others hold come when they are free.

    So that several workers share the items: each has to look whether another one has finished the item meanwhile. A
    lock ends with its process: the item of a worker that was killed comes again. Where a worker is several processes,
    each calls this and gets the same; the first one holds the locks.
    """
    waiting, told = list(range(len(items))), False
    while waiting:
        held: list[FileLock] = []

        def take(held: list[FileLock] = held) -> int | None:
            for position in waiting:
                lock = try_lock(folder_of(items[position]))
                if lock is not None:
                    held.append(lock)
                    return position
            return None

        position = from_first_process(take, process_index, num_processes)
        if position is None:
            if process_index == 0 and not told:
                names = ", ".join(str(folder_of(items[place])) for place in waiting[:3])
                more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
                tqdm.write(f"waiting for other processes, which are at {names}{more}", file=sys.stderr)
                told = True
            time.sleep(POLL_SECONDS)
            continue
        waiting.remove(position)
        try:
            yield items[position]
        finally:
            for lock in held:
                lock.release()
