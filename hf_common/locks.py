"""Who may write into a folder: locks of files, which end with the process that holds them, killed or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"  # in the folder that it is for


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
