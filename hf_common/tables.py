"""Tables in Markdown, and text of others in them, around them, and in figures."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from .foreign import short


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a table, without a line end after the last; every row has as many cells as there are heads."""
    lines = [_line(heads), "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def cell(text: str) -> str:
    """`text` as one cell: a bar that ends no cell yet is escaped, line ends are blanks."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()) if "\n" in text or "\r" in text else text)


# What begins or ends something in Markdown, wherever it stands in a line; in HTML; and characters that are not seen.
SPECIAL = re.compile(r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))")  # between letters a low line does nothing
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
UNSEEN = ("Cc", "Cf", "Cs", "Co")


def escaped(text: str) -> str:
    """A name that comes from elsewhere, as plain text in Markdown: one line, shown as it is, that does nothing.

    Line ends are blanks, other characters that are not seen or that turn the direction of what follows are shown by
    their numbers. The name is no link, image, code, emphasis or HTML, and at the beginning of a line no heading, list,
    quotation or fence.
    """
    shown = "".join(ENTITIES.get(char, char) for char in SPECIAL.sub(r"\\\1", visible(text)))
    # A mark begins something where a blank, another mark or nothing follows: "1. a" is a list, "1.5" a number.
    shown = re.sub(r"^(\s*)([#+=-])(?=[\s#+=-]|$)", r"\1\\\2", shown)
    shown = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", shown)
    # Readers such as the Hub's make links of bare addresses.
    return re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1&#58;", re.sub(r"(?i)\bwww\.", "www&#46;", shown))


def visible(text: str) -> str:
    """`text` in one line, with `U+202E` and the like in place of characters that are not seen and are no blanks."""
    blanks = re.sub(r"[\n\r\t\v\f\x85\u2028\u2029]", " ", text)
    return "".join(f"U+{ord(char):04X}" if unicodedata.category(char) in UNSEEN else char for char in blanks)


def in_figure(text: object, longest: int = 100) -> str:
    """A name that comes from elsewhere, as text of a matplotlib figure: one line, cut, and no formula."""
    return short(visible(str(text)), longest).replace("$", r"\$")


def code(text: object) -> str:
    """A name that comes from elsewhere, as code in Markdown, also in a table: one line, shown as it is."""
    shown = visible(str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return cell(f"{fence}{pad}{shown}{pad}{fence}")
