"""The flags of a command: dataclasses, read by `HfArgumentParser`, with short errors and a help in groups.

A command describes its flags in dataclasses that import nothing heavy, so that `--help` and wrong values are answered
before any library is loaded. Where the flags of another library are taken too, which cost seconds to ask for, a light
parser that knows their names alone looks at the words first: [`FlagParser.check`].
"""

import ast
import importlib.util
import inspect
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from transformers import HfArgumentParser

from .arguments_file import SUFFIXES
from .flag_help import help_page
from .foreign import short
from .names import did_you_mean


class OtherFlags(NamedTuple):
    """The flags that a parser leaves to another one.

    Attributes:
        words: whose they are, for the help.
        names: gives their names.
        whole: makes the parser that knows them too.
    """

    words: str
    names: Callable[[], Collection[str]]
    whole: "Callable[[], FlagParser]"


class _HelpAll(Action):
    """Print the help with everything in it, and end."""

    def __call__(self, parser, namespace, values, option_string=None):
        whole = parser if parser.others is None else parser.others.whole()
        print(help_page(whole, everything=True), end="")
        parser.exit()


class FlagParser(HfArgumentParser):
    """`HfArgumentParser` with a help in groups that shows defaults and allowed values, and errors of one line.

    A group is the dataclass that a flag stands in, by its `_argument_group_name`; those of a base that has none come
    from another library, and are shown by `--help-all` alone.

    Args:
        classes: dataclasses of flags.
        description: the docstring of the command: up to its first examples for `--help`, the rest for `--help-all`.
        others: flags that are none of these, and none of this parser's business; it takes no abbreviations then, for
            they may be meant.
    """

    def __init__(self, classes: Any = None, *, others: OtherFlags | None = None, **kwargs: Any):
        self.others = others
        super().__init__(classes, allow_abbrev=others is None, **kwargs)
        self.add_argument("--help-all", "--help_all", action=_HelpAll, nargs=0, default=SUPPRESS, help=SUPPRESS)

    def group_of(self, flag: str) -> tuple[str, bool]:
        """The title of the group of a flag, and whether it is the command's own."""
        for base in (base for cls in self.dataclass_types for base in cls.__mro__):
            if flag in inspect.get_annotations(base):
                title = vars(base).get("_argument_group_name")
                return title or base.__name__, title is not None
        return "general", True

    def format_help(self) -> str:
        return help_page(self)

    def error(self, message: str) -> None:
        """End with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def parse_args_into_dataclasses(self, *args: Any, return_remaining_strings: bool = False, **kwargs: Any) -> tuple:
        """As the parent's; a word that is no flag ends the program where these are not to be returned."""
        if not return_remaining_strings:  # first: what is missing may be behind it
            # The plain reading: a subclass's own may set defaults and speak, which is for once.
            _, rest = ArgumentParser.parse_known_args(self, args[0] if args else kwargs.get("args"))
            if rest:
                self._refuse(rest, self._own_names())
        *parsed, rest = super().parse_args_into_dataclasses(*args, return_remaining_strings=True, **kwargs)
        if return_remaining_strings:
            return *parsed, rest
        if rest:
            self._refuse(rest, self._own_names())
        return tuple(parsed)

    def check(self) -> tuple:
        """What the words say of this parser's dataclasses; an unknown flag, which is no other parser's, ends here."""
        *parsed, rest = self.parse_args_into_dataclasses(return_remaining_strings=True)
        known = {*self._own_names(), *(() if self.others is None else self.others.names())}
        words = [word.partition("=")[0][2:].replace("-", "_") for word in rest if word.startswith("--")]
        if any(not any(name.startswith(word) for name in known) for word in words):
            self._refuse(rest, known)
        return tuple(parsed)

    def _own_names(self) -> set[str]:
        options = {option for action in self._actions for option in action.option_strings}
        return {option[2:].replace("-", "_") for option in options if option.startswith("--")}

    def _refuse(self, rest: list[str], known: Collection[str]) -> None:
        """End with the first word that is no flag."""
        # Those that every command takes before its own, and no negation that was not meant.
        names = [f"--{other}" for other in (*known, "plugins", "debug") if not other.startswith("no_")]
        for word in rest:
            name = word.partition("=")[0]
            if word.startswith("-") and not any(other.startswith(name[2:].replace("-", "_")) for other in known):
                meant = names if not name.startswith("--no") else [f"--{other}" for other in known]
                near = did_you_mean(name.replace("-", "_").replace("__", "--", 1), meant)
                self.error(f"there is no flag {short(repr(name), 80)}{near}; --help-all shows all")
        place = "; a file of flags is the first word" if rest[0].endswith(SUFFIXES) else ""
        self.error(f"{short(repr(rest[0]), 80)} belongs to no flag{place}; --help shows them")


def dataclass_flags(module: str, name: str) -> set[str]:
    """The flags of a dataclass of another library, told from its source: the import would cost seconds.

    Args:
        module: `package.module`; the package itself is imported.
        name: of a dataclass without bases.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    targets = [node.target for node in definition.body if isinstance(node, ast.AnnAssign)]
    fields = {target.id for target in targets if isinstance(target, ast.Name)}
    return fields | {f"no_{field}" for field in fields}
