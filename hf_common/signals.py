"""How a command ends: a signal lets it keep what it can and says how to go on, a user's error is one line.

Status 128 + n after the signal n (SIGINT, SIGTERM), 2 after an error of the user.
"""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .arguments_file import with_file
from .plugins import FLAG, load_plugins, loaded_plugins

CAUGHT = (signal.SIGINT, signal.SIGTERM)
OWN_PACKAGES = ("__main__", "evaluate_metrics", "hf_common", "hf_dit", "hf_robust")
# How safetensors and PyTorch say that a file could not be written, in errors that are no OSError.
NOT_WRITTEN = ("Error while serializing: I/O error", "unexpected pos ", "iostream error")
STARTS_OVER = "nothing is written before the end; this starts over:"  # for `run_command`


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


def run_command(main: Callable[[], None], kept: str, flags: tuple[str, ...] = ()) -> None:
    """Call `main()`, the body of a script, so that a signal ends it as the module says.

    An error of the user ends it with one line and status 2: a `ValueError`, `OSError` or `ImportError`, any other that
    these packages raise themselves, or a library's own where it can't write a file. `--debug` alone, without a value,
    shows where it comes from instead. A first word that names a JSON or YAML file is read, see [`with_file`];
    `--plugins` are imported, see [`load_plugins`].

    Args:
        kept: what remains, and what the same command makes of it, as the end of a sentence.
        flags: what the command needs besides, to go on.
    """
    # One that is ignored stays so: a shell without job control starts its background jobs like that.
    caught = [number for number in CAUGHT if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _handle) for number in caught}
    _State.number = None
    debug = _take_debug(sys.argv)
    try:
        sys.argv[1:] = load_plugins(with_file(sys.argv[1:]))
        main()
    except Exception as error:
        if debug or not _is_of_user(error):
            raise
        sys.stdout.flush()
        line = " ".join(str(error).split()) or type(error).__name__
        if _is_of_disk(error):
            line = f"a file could not be written, the disk may be full: {line}"
        print(f"{Path(sys.argv[0]).name}: error: {line} (--debug shows where)", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        for other in CAUGHT:
            signal.signal(other, signal.SIG_IGN)  # nothing interrupts the last line
        if os.environ.get("RANK", "0") == "0":
            print(f"\nstopped by {signal.Signals(number).name}: {kept}\n{repeated_command(flags)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: threads of process groups and of data loaders could keep the interpreter, or abort it.
        os._exit(128 + number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take_debug(words: list[str]) -> bool:
    """Whether `--debug` stands among the words without a value, which then goes: Trainer has a flag of that name."""
    for place, word in enumerate(words):
        if word == "--debug" and (place + 1 == len(words) or words[place + 1].startswith("-")):
            del words[place]
            return True
    return False


def _is_of_user(error: Exception) -> bool:
    if isinstance(error, (ValueError, OSError, ImportError)) or _is_of_disk(error):
        return True
    if not isinstance(error, (TypeError, RuntimeError)) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in OWN_PACKAGES


def _is_of_disk(error: Exception) -> bool:
    return not isinstance(error, OSError) and any(words in str(error) for words in NOT_WRITTEN)


def repeated_command(flags: tuple[str, ...] = ()) -> str:
    """The command that started this process, by as many processes, with `flags` in place of what they had there."""
    words = list(sys.argv[1:])
    for name, value in (flag.partition("=")[::2] for flag in flags):
        if name in words:
            place = words.index(name)
            del words[place : place + (2 if value else 1)]
        words += [name, value] if value else [name]
    words += [FLAG, *loaded_plugins()] if loaded_plugins() else []
    launcher, script = _launcher(os.environ), [sys.argv[0]]
    if script[0].startswith("hf-"):  # `hf-robust train`, which launchers start as a module
        program, command = script[0].split(" ")
        several = launcher != ["python"]
        launcher, script = (
            (launcher, ["-m", program.replace("-", "_"), command]) if several else ([], [program, command])
        )
    return shlex.join([*launcher, *script, *words])


def _launcher(environment: Mapping[str, str]) -> list[str]:
    """What starts a script as this process was started, as far as its environment tells."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    processes, here, nodes = (int(environment.get(name) or 1) for name in names)
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if precision is not None:  # else it was not accelerate
        several = ["--num_processes", str(processes)] if processes > 1 else []
        several += ["--num_machines", str(nodes)] if nodes > 1 else []
        several += ["--mixed_precision", precision] if precision != "no" else []
        for flag in ("use_fsdp", "use_deepspeed"):  # their own options are not in the environment
            several += [f"--{flag}"] if environment.get(f"ACCELERATE_{flag.upper()}", "").lower() == "true" else []
        return ["accelerate", "launch", *several]
    if processes > 1 and "LOCAL_WORLD_SIZE" in environment:  # else it was another launcher
        return ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), "--nproc_per_node", str(here)]
    return ["python"]
