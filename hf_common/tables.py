"""Tables in Markdown."""

import re
from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a table, without a line end after the last; every row has as many cells as there are heads."""
    lines = [_line(heads), "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def cell(text: str) -> str:
    """`text` as one cell: a bar that ends no cell yet is escaped, line ends are blanks."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()) if "\n" in text or "\r" in text else text)
