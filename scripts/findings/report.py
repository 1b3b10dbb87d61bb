"""`model_cards/RESULTS.md`: every study's text, figures and verdicts, from the cells and from nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from hf_common.files import replace_text, save_figure
from hf_common.tables import escaped, markdown_table

from . import collapse, human, noise
from .cells import CARDS, RESULTS, read_cells
from .claims import Claim, verdict_words
from .robust_runs import Plan

FIGURES = "figures/studies"


class Study(NamedTuple):
    """One question, its runs, and what is made of their cells."""

    title: str
    plans: list[Plan]
    paragraph: Callable[[dict[str, list[dict]]], str]  # of the cells of all studies, by study
    figures: Callable[[list[dict]], dict[str, Figure]]
    claims: Callable[[list[dict]], list[Claim]] = lambda cells: []


STUDIES = {
    "noise": Study(
        "Accuracy against noise", noise.PLANS, lambda all_: noise.paragraph(all_["noise"]), noise.figures, noise.claims
    ),
    "collapse": Study(
        "Collapse at 80 % noise",
        collapse.PLANS,
        lambda all_: collapse.paragraph(all_["collapse"]),
        collapse.figures,
        collapse.claims,
    ),
    "human": Study(
        "Human labels",
        human.PLANS,
        lambda all_: human.paragraph(all_["human"], noise.small(all_["noise"])),
        human.figures,
    ),
}


def write_report(cards: Path = CARDS, results: Path = RESULTS) -> None:
    """Write `RESULTS.md` and its figures into `cards`."""
    cells = {name: list(read_cells(name, results).values()) for name in STUDIES}
    for name, study in STUDIES.items():
        if cells[name]:
            for figure_name, figure in study.figures(cells[name]).items():
                save_figure(figure, cards / FIGURES / f"{figure_name}.png")
    replace_text(cards / "RESULTS.md", render_report(cells))


def render_report(cells: dict[str, list[dict]]) -> str:
    """The text, of the cells by study."""
    verdicts = [claim for name, study in STUDIES.items() for claim in study.claims(cells[name])]
    rows = [[claim.said, verdict_words(claim.verdict), claim.evidence] for claim in verdicts]
    parts = [
        "# Results",
        "Everything here is rendered by `python scripts/studies.py --report` from the JSON under `results/studies`, a "
        "file a run; `python scripts/studies.py --run NAME` makes what is missing.",
        "## What an earlier report claimed",
        markdown_table(["claim", "verdict", "measured"], rows),
        *(_section(name, study, cells) for name, study in STUDIES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _section(name: str, study: Study, cells: dict[str, list[dict]]) -> str:
    if not cells[name]:
        return f"## {study.title}\n\nNot run yet: `python scripts/studies.py --run {name}`."
    parts = [f"## {study.title}", study.paragraph(cells)]
    parts += [f"![{study.title}]({FIGURES}/{figure}.png)" for figure in study.figures(cells[name])]
    return "\n\n".join([*parts, _made_by(name, cells[name], len(study.plans))])


def _made_by(name: str, cells: list[dict], wanted: int) -> str:
    """Where and how the cells of a study were made."""
    machines = ", ".join(dict.fromkeys(escaped(cell["hardware"]) for cell in cells))
    libraries = ("torch", "transformers", "datasets")
    used = dict.fromkeys(", ".join(f"{lib} {cell['versions'].get(lib, '?')}" for lib in libraries) for cell in cells)
    seeds = sorted({cell["settings"]["seed"] for cell in cells})
    return (
        f"{len(cells)} of {wanted} runs, seeds {', '.join(map(str, seeds))}; {machines}; {'; '.join(used)}; "
        f"`python scripts/studies.py --run {name}`."
    )
