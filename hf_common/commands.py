"""The command lines that make results again, as a shell takes them."""

import json
import shlex
from collections.abc import Mapping, Sequence

from .tables import visible

WIDTH = 95  # of a line


def command_line(command: Sequence[str], flags: Mapping, *, width: int = WIDTH) -> str:
    """`command` and its `--name value ...` flags, in lines of at most `width` that end with a backslash.

    Args:
        command: the words before the flags.
        flags: values by name. None is left out, True is the flag alone, a list is several words, a dict is JSON;
            a float without a fraction is written as a whole number.
    """
    lines = [shlex.join(command)]
    for name, value in flags.items():
        if value is None:
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        words = shlex.join([f"--{name}", *map(_word, values)])
        if len(lines[-1]) + len(words) + 3 > width:
            lines.append("    " + words)
        else:
            lines[-1] += " " + words
    return " \\\n".join(lines)


def launch_command(script: str, processes: int, hardware: str) -> tuple[list[str], dict]:
    """How `script` is started in so many processes on hardware like that of a result: words, and flags it needs.

    `accelerate launch --cpu` starts one process alone, without MPI: on CPUs several are started by torchrun.
    """
    if processes > 1 and hardware.startswith("cpu"):
        return ["torchrun", "--nproc_per_node", str(processes), script], {"use_cpu": True}
    several = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else []
    return ["accelerate", "launch", *several, script], {}


def _word(value: object) -> str:
    if isinstance(value, (bool, dict)):
        return json.dumps(value)
    # A line end in a name would end the code block that the line is shown in.
    return str(int(value)) if type(value) is float and value.is_integer() else visible(str(value))
