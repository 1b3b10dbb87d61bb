"""The arguments of an experiment from a command line: what is wrong with them is said before anything heavy loads."""

import ast
import re
import sys
from argparse import SUPPRESS
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from hf_common.flags import OtherFlags
from hf_common.foreign import short
from hf_common.names import did_you_mean

from ..noise.spec import check_noise_names
from ..training.flags import inherited_flags
from ..training.recipes import RecipeParser
from .flags import DataArguments, ExperimentFlags, ModelArguments, check_numbers

GIVEN = "given"  # in place of a noise: the labels as the data set has them, noisy or not
TABLE = Path(__file__).parents[1] / "losses" / "table.py"


def experiment_parser(
    description: str, *own: type, light: bool = False, hidden: Collection[str] = (), **defaults: Any
) -> RecipeParser:
    """The parser of a command that trains: `own` flags, those of data and model, and `ExperimentArguments`.

    Args:
        hidden: flags that the command refuses, which its help need not show.
        light: know those of `TrainingArguments` by name alone, and import nothing heavy.
        defaults: of flags, where the command has others.
    """
    if light:
        others = OtherFlags(
            "the flags of transformers' TrainingArguments",
            inherited_flags,
            lambda: experiment_parser(description, *own, hidden=hidden, **defaults),
        )
        classes = (*own, DataArguments, ModelArguments, ExperimentFlags)
    else:
        from .arguments import ExperimentArguments

        others = None
        classes = (*own, DataArguments, ModelArguments, ExperimentArguments)
    parser = RecipeParser(classes, description=description, others=others)
    parser.set_defaults(**defaults)
    for action in parser._actions:
        if action.dest in hidden:
            action.help = SUPPRESS
    return parser


def experiment_arguments(description: str, *own: type, **options: Any) -> tuple[RecipeParser, tuple]:
    """The parser that knows all flags, and what `sys.argv` says: objects of `own`, data, model and experiment.

    Raises:
        ValueError: a value that its flag does not take.
    """
    *mine, _, _, flags = experiment_parser(description, *own, light=True, **options).check()
    check_numbers(flags)
    check_loss_names([flags.loss or "nce+rce", *(loss for part in mine for loss in getattr(part, "losses", ()))])
    check_noise_names(
        "noises", [noise for part in mine for noise in getattr(part, "noises", ())], lambda noise: noise == GIVEN
    )
    parser = experiment_parser(description, *own, **options)
    return parser, parser.parse_args_into_dataclasses()


def check_loss_names(specs: Iterable[str]) -> None:
    """Raise a `ValueError` for a loss that the table has not; the rest of the specs is read with it, later."""
    table = sys.modules.get("hf_robust.losses.table")  # there where a plugin has added to it
    known = names_in_table() if table is None else list(table.LOSSES)
    for spec in specs:
        without_parameters = re.sub(r"\([^()]*\)", lambda match: " " * len(match[0]), spec)
        for match in re.finditer(r"(?<![\w.])[A-Za-z_]\w*", without_parameters):
            if match[0] not in known:
                raise ValueError(
                    f"loss spec {short(repr(spec), 120)}, position {match.start()}: unknown loss "
                    f"{short(repr(match[0]), 60)}; valid are {', '.join(known)}{did_you_mean(match[0], known)}"
                )


def names_in_table() -> list[str]:
    """The losses that `hf_robust.losses.table` lists, told from its text: importing it means torch."""
    calls = [node for node in ast.walk(ast.parse(TABLE.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    rows = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "LossInfo"]
    return [ast.literal_eval(row.args[0]) for row in sorted(rows, key=lambda row: row.lineno)]
