"""The folder of one run: whose it is, whether it is finished, and where a killed run goes on."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from .foreign import read_json, short
from .locks import LOCK, locked
from .processes import from_first_process

SETTINGS, RESULTS = "settings.json", "results.json"


def settings_difference(wanted: dict, found: dict) -> str:
    """`"seed=1 (it has 0)"` and so on for every setting in which two runs differ, cut; empty if they are one."""
    different = [key for key in sorted(wanted | found) if wanted.get(key) != found.get(key)]
    values = {key: [short(repr(run.get(key)), 60) for run in (wanted, found)] for key in different}
    return short(", ".join(f"{short(key, 40)}={here} (it has {there})" for key, (here, there) in values.items()), 180)


def begun(output_dir: Path) -> bool:
    """Whether the folder holds anything; a `ValueError` if it is a file."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {str(output_dir)!r} is a file")
    if not output_dir.exists():
        return False
    # A kill while the first file was being written leaves its temporary name alone.
    return any(not path.match(".*.tmp") and path.name != LOCK for path in output_dir.iterdir())


class HeldFolder:
    """A context in which this run alone may write into its folder; of several processes, the first one holds it.

    A folder that was held before is taken at once, so that a second process is refused before it does any work; any
    other by [`take`], when all that may be refused was looked at: a refusal leaves no file. Look at the folder again
    after that: another process may have been there meanwhile.

    Args:
        check: raises a `ValueError` for a folder that is not for such a run, which is then left alone.

    Raises:
        ValueError: another process has it, or what `check` raises.
    """

    def __init__(
        self,
        output_dir: str | Path,
        process_index: int = 0,
        num_processes: int = 1,
        check: Callable[[Path], object] | None = None,
    ):
        self._folder, self._processes = Path(output_dir), (process_index, num_processes)
        self._check = _check_is_run if check is None else check
        self._held, self._taken = ExitStack(), False

    def __enter__(self) -> "HeldFolder":
        if from_first_process(lambda: (self._folder / LOCK).exists(), *self._processes):
            self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def take(self) -> None:
        """Take it, unless it was taken."""
        if not self._taken:
            from_first_process(self._take, *self._processes)
            self._taken = True

    def _take(self) -> None:
        self._check(self._folder)
        self._held.enter_context(locked(self._folder))


def _check_is_run(output_dir: Path) -> None:
    if begun(output_dir) and not (output_dir / SETTINGS).exists():
        check_same_run(output_dir, {})  # says so


def check_same_run(output_dir: Path, settings: dict) -> None:
    """A `ValueError` if the folder, which holds something, does not hold a run of these very settings."""
    name, path = repr(str(output_dir)), output_dir / SETTINGS
    if not path.exists():
        raise ValueError(f"output_dir {name} holds files that are no run of this script; choose another")
    if difference := settings_difference(settings, read_json(path)):
        raise ValueError(f"output_dir {name} holds another run: {difference}; choose another")


def resume_choice(value: str | bool | None) -> str | None:
    """What `--resume_from_checkpoint` asks for: `"last"` (also latest, true), None (also false), or a folder."""
    word = "false" if value is None else str(value)
    return {"last": "last", "latest": "last", "true": "last", "false": None}.get(word.lower(), word)


def chosen_checkpoint(output_dir: Path, checkpoints: Sequence[Path], resume: str | None) -> Path | None:
    """The checkpoint to go on from; None for a start, also where the newest is asked for and none is there.

    Args:
        checkpoints: those of this run in `output_dir`, newest first.
        resume: what [`resume_choice`] reads; needed where checkpoints are.

    Raises:
        ValueError: checkpoints and no `resume`, or a folder that is none of them.
    """
    resume = resume_choice(resume)
    if resume is None and checkpoints:
        name = repr(str(output_dir))
        raise ValueError(f"output_dir {name} holds this run, begun; go on with --resume_from_checkpoint last")
    if resume is None:
        return None
    if resume == "last":
        return checkpoints[0] if checkpoints else None
    if Path(resume).resolve() not in [path.resolve() for path in checkpoints]:
        known = f" or one of {short([str(path) for path in checkpoints])}" if checkpoints else ""
        raise ValueError(
            f"resume_from_checkpoint must be 'last'{known}; got {short(repr(resume), 80)}"
            + ("" if checkpoints else f", but {str(output_dir)!r:.120} holds no complete checkpoint of this run")
        )
    return Path(resume)
