"""The front door of a package: one command, whose first word says what is done."""

import importlib
import signal
import sys
from collections.abc import Mapping

from . import __version__
from .names import did_you_mean
from .output import lasting_stdout


def enter(program: str, package: str, commands: Mapping[str, str]) -> None:
    """Run the command that `sys.argv[1]` names; nothing heavy is imported before.

    Args:
        program: what a shell calls it.
        package: `package.commands.NAME` has `run()`, with low lines for hyphens.
        commands: what each does, in a line, by its name.
    """
    lasting_stdout()
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"{program} {__version__}")
        return
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(program, package, commands))
        return
    name = words[0]
    if name not in commands:
        allowed = ", ".join(commands)
        print(
            f"{program}: error: no command {name!r:.80}; there are {allowed}{did_you_mean(name, commands)}",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = [f"{program} {name}", *words[1:]]
    try:
        importlib.import_module(f"{package}.commands.{name.replace('-', '_')}").run()
    except KeyboardInterrupt:  # before the command catches it itself
        print(f"\nstopped by SIGINT: {program} {name} had not begun", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _help(program: str, package: str, commands: Mapping[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"usage: {program} COMMAND [--help | flags]", ""]
    lines += [f"  {name:<{width}}  {what}" for name, what in commands.items()]
    lines += ["", f"On several processes: accelerate launch -m {package} COMMAND ..."]
    return "\n".join(lines)
