"""`model_cards/RESULTS.md`: every study's text, figures and verdicts, from the cells and from nothing else."""

from pathlib import Path

from hf_common.files import replace_text, save_figure
from hf_common.tables import escaped, markdown_table

from . import collapse, guidance, human, kernels, metrics, noise, scores, steps
from .cells import CARDS, RESULTS, read_cells
from .claims import verdict_words
from .conditionings import CONDITIONINGS
from .local import LOCAL
from .objectives import OBJECTIVES
from .robust_runs import robust_study
from .study import Study
from .trainings import Comparison

FIGURES = "figures/studies"


def dit_trainings(title: str, comparison: Comparison) -> Study:
    """The study of trainings that differ in one thing."""
    return Study(title, comparison.cells, comparison.run, comparison.paragraph, comparison.figures, lambda cells: [])


STUDIES = {
    "noise": robust_study(
        "noise",
        "Accuracy against noise",
        noise.PLANS,
        lambda all_: noise.paragraph(all_["noise"]),
        noise.figures,
        noise.claims,
    ),
    "collapse": robust_study(
        "collapse",
        "Collapse at 80 % noise",
        collapse.PLANS,
        lambda all_: collapse.paragraph(all_["collapse"]),
        collapse.figures,
        collapse.claims,
    ),
    "human": robust_study(
        "human",
        "Human labels",
        human.PLANS,
        lambda all_: human.paragraph(all_["human"], noise.small(all_["noise"])),
        human.figures,
    ),
    "guidance": Study("Guidance", guidance.CELLS, guidance.run, guidance.paragraph, guidance.figures, guidance.claims),
    "steps": Study("Steps", steps.CELLS, steps.run, steps.paragraph, steps.figures, steps.claims),
    "local": dit_trainings("Full against local attention", LOCAL),
    "objectives": dit_trainings("Objectives of a Diffusion Transformer", OBJECTIVES),
    "conditionings": dit_trainings("Conditioning of a Diffusion Transformer", CONDITIONINGS),
    "kernels": Study(
        "Kernels of attention", kernels.CELLS, kernels.run, kernels.paragraph, kernels.figures, kernels.claims
    ),
    "metrics": Study(
        "What the metrics see", metrics.CELLS, metrics.run, metrics.paragraph, metrics.figures, lambda cells: []
    ),
    "scores": Study(
        "Which score sees what", scores.CELLS, scores.run, scores.paragraph, scores.figures, lambda cells: []
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
    return "\n\n".join([*parts, _made_by(name, cells[name], len(study.cells))])


def _made_by(name: str, cells: list[dict], wanted: int) -> str:
    """Where and how the cells of a study were made."""
    machines = ", ".join(dict.fromkeys(escaped(cell["hardware"]) for cell in cells))
    libraries = ("torch", "transformers", "diffusers", "datasets")
    used = dict.fromkeys(
        ", ".join(f"{lib} {cell['versions'][lib]}" for lib in libraries if lib in cell["versions"]) for cell in cells
    )
    seeds = sorted({cell["settings"]["seed"] for cell in cells})
    return (
        f"{len(cells)} of {wanted} cells, seeds {', '.join(map(str, seeds))}; {machines}; {'; '.join(used)}; "
        f"`python scripts/studies.py --run {name}`."
    )
