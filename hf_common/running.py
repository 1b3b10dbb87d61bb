"""How a command ends: a signal lets it keep what it can and says how to go on, a user's error is one line.

Status 128 + n after the signal n (SIGINT, SIGTERM), 2 after an error of the user.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from .arguments_file import with_file
from .commands import repeated_command
from .output import lasting_stdout
from .plugins import load_plugins
from .signals import CAUGHT, Stopped, caught

OWN_PACKAGES = ("__main__", "evaluate_metrics", "hf_common", "hf_dit", "hf_robust")
# How safetensors and PyTorch say that a file could not be written, in errors that are no OSError.
NOT_WRITTEN = ("Error while serializing: I/O error", "unexpected pos ", "iostream error")
STARTS_OVER = "nothing is written before the end; this starts over:"  # for `run_command`


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
    lasting_stdout()
    debug = _take_debug(sys.argv)
    with caught():
        try:
            sys.argv[1:] = with_file(sys.argv[1:])
            debug = _take_debug(sys.argv) or debug
            sys.argv[1:] = load_plugins(sys.argv[1:])
            main()
            sys.stdout.flush()  # what can't be written is an error, too
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
                print(
                    f"\nstopped by {signal.Signals(number).name}: {kept}\n{repeated_command(flags)}", file=sys.stderr
                )
            sys.stdout.flush()
            sys.stderr.flush()
            # Not sys.exit: threads of process groups and of data loaders could keep the interpreter, or abort it.
            os._exit(128 + number)


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
    if not isinstance(error, (TypeError, RuntimeError, FloatingPointError)) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] in OWN_PACKAGES


def _is_of_disk(error: Exception) -> bool:
    return not isinstance(error, OSError) and any(words in str(error) for words in NOT_WRITTEN)
