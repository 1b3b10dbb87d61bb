"""Names that a user gave: what was meant, and whether it is a local path or one of the Hub."""

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .foreign import first_line, short


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'symmetric_40'?"` where a known name is close to `name`, else nothing."""
    spellings = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name[:200].lower(), spellings, n=2, cutoff=0.75)
    return f"; did you mean {' or '.join(repr(spellings[match]) for match in close)}?" if close else ""


def looks_local(name: str) -> bool:
    """Whether a name can be a path alone: the Hub's are `name` or `user/name`."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.rstrip("/").count("/") > 1


@contextmanager
def data_source(name: str, argument: str, known: Collection[str] = ()) -> Iterator[None]:
    """A block that opens a data set, a folder or one of the Hub, that came by `argument`.

    Args:
        known: names of others that may have been meant.

    Raises:
        FileNotFoundError: before the block, for a path where nothing is.
        FileNotFoundError, ConnectionError: instead of those of the block, which tell of the Hub alone, where there is
            no such folder either.
    """
    if os.path.exists(name):
        yield
        return
    near = _near(name) or did_you_mean(name, known)
    if looks_local(name) or name.endswith("/"):  # which no id does
        raise FileNotFoundError(f"{argument}: there is no folder {short(repr(name), 120)}{near}")
    try:
        yield
    except (ConnectionError, FileNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(
            f"{argument}: there is no folder {short(repr(name), 120)} here{near}; as a data set of the Hub: "
            f"{short(first_line(error), 160)}"
        ) from error


def _near(name: str) -> str:
    """[`did_you_mean`] of the paths beside it."""
    path = Path(name).expanduser()
    try:
        beside = [str(Path(name).with_name(entry.name)) for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    return did_you_mean(str(Path(name)), beside)
