"""The page that `--help` shows: usage, the docstring's beginning, flags in groups with defaults and allowed values."""

import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from typing import Any

WIDTH = 119  # where no terminal says another one
LEFT = 34  # columns of the flags' names
LAST = "A first word FILE.json or FILE.yaml holds flags; --plugins MODULE adds your kinds; --debug traces errors."


def help_page(parser: Any, everything: bool = False) -> str:
    """The page of a `hf_common.flags.FlagParser`.

    Args:
        everything: also the rest of the docstring and the flags of other libraries.
    """
    width = _width()
    groups: dict[str, list[str]] = {}
    for action in _shown(parser):
        title, own = parser.group_of(action.dest)
        if own or everything:
            groups.setdefault(title, []).extend(_entry(action, width))
    lines = [_usage(parser), "", *_description(parser.description or "", everything)]
    for title, entries in groups.items():
        lines += ["", f"{title}:", *entries]
    return "\n".join([*lines, "", *_last_lines(parser, everything)]) + "\n"


def _width() -> int:
    return max(70, min(WIDTH, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else WIDTH


def _shown(parser: ArgumentParser) -> Iterator[Action]:
    for action in parser._actions:
        negation = action.option_strings and action.option_strings[0].startswith("--no_") and action.nargs == 0
        if action.help != SUPPRESS and action.dest != "help" and not negation:
            yield action


def _usage(parser: ArgumentParser) -> str:
    needed = [action for action in parser._actions if action.required]
    words = [f"{' '.join([*action.option_strings[:1], action.dest.upper()])}" for action in needed]
    return " ".join(["usage:", parser.prog, "[FILE]", *words, "[flags]"])


def _description(text: str, everything: bool) -> list[str]:
    """The lines of a docstring; of those without `everything`, up to the end of its first examples."""
    paragraphs = text.strip().split("\n\n")
    if not everything:
        examples = [place for place, paragraph in enumerate(paragraphs) if paragraph.startswith("    ")]
        paragraphs = paragraphs[: examples[0] + 1 if examples else 1]
    return "\n\n".join(paragraphs).splitlines()


def _entry(action: Action, width: int) -> list[str]:
    """One flag: its name and what it takes, and beside them its help, in lines of `width`."""
    name = f"  {_name(action)}"
    lines = textwrap.wrap(_said(action), width - LEFT, break_long_words=False, break_on_hyphens=False)
    if len(name) < LEFT and lines:
        name, lines = f"{name:<{LEFT}}{lines[0]}", lines[1:]
    return [name, *(" " * LEFT + line for line in lines)]


def _name(action: Action) -> str:
    if not action.option_strings:
        return action.dest
    name, takes = action.option_strings[0], getattr(action.type, "__name__", "")
    if action.nargs == "?":
        return name if not action.default else f"--[no_]{name[2:]}"
    kind = {"int": "N", "float": "X", "string_to_bool": "true|false"}.get(takes, "TEXT")
    return f"{name} {kind}{' ...' if action.nargs == '+' else ''}"


def _said(action: Action) -> str:
    """The help with the allowed values and the default, where it does not say them itself."""
    said = " ".join((action.help or "").split())
    if action.choices and not all(str(choice) in said for choice in action.choices):
        said += f" One of {', '.join(map(str, action.choices))}."
    if re.search(r"\b[Dd]efault", said) or not action.option_strings:
        return said
    if action.required:
        return f"{said} Required."
    if action.default is None:
        return f"{said} (default: none)"
    value = action.default
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{said} (default: {shown.lower() if isinstance(value, bool) else shown})"


def _last_lines(parser: Any, everything: bool) -> list[str]:
    if everything:
        return [LAST]
    others = "" if parser.others is None else f" and {parser.others.words}, which are taken too"
    return [LAST, f"--help-all shows all notes{others}."]
