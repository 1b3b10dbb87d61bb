"""The command lines that make results again, as a shell takes them."""

import json
import os
import shlex
import sys
import unicodedata
from collections.abc import Mapping, Sequence

from .plugins import FLAG, loaded_plugins
from .tables import UNSEEN

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
        words = " ".join([shlex.quote(f"--{name}"), *(shell_word(_word(value)) for value in values)])
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


def _word(value: object) -> str:
    if isinstance(value, (bool, dict)):
        return json.dumps(value)
    return str(int(value)) if type(value) is float and value.is_integer() else str(value)


def shell_word(text: str) -> str:
    """`text` as one word of bash in one line: line ends, and other characters that are not seen, by their numbers.

    A line end in a name would end the code block that the line is shown in.
    """
    hidden = [char for char in text if unicodedata.category(char) in (*UNSEEN, "Zl", "Zp")]
    if not hidden:
        return shlex.quote(text)
    shown = "".join(
        f"\\U{ord(char):08x}" if char in hidden else {"\\": "\\\\", "'": "\\'"}.get(char, char) for char in text
    )
    return f"$'{shown}'"
