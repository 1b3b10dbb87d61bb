"""What a study is, and where its runs, its results and its data lie."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from .claims import Claim

Cells = dict[str, list[dict]]  # by study


class Sources(NamedTuple):
    """The data sets and the encoder of images, as this machine has them."""

    cifar10: str
    noisy_cifar10: str
    landscapes: str
    encoder: str


class Place(NamedTuple):
    """Where a study works."""

    work: Path  # runs, samples, embeddings: large, kept, not committed
    results: Path  # the cells
    sources: Sources


class Study(NamedTuple):
    """One question, its cells, and what is made of them."""

    title: str
    cells: list[str]  # the names of all
    run: Callable[[Place], None]  # makes those that are missing; workers share them
    paragraph: Callable[[Cells], str]
    figures: Callable[[list[dict]], dict[str, Figure]]
    claims: Callable[[list[dict]], list[Claim]]  # also without a cell
    collect: Callable[[Place], None] = lambda place: None  # takes what finished runs left, and runs nothing
