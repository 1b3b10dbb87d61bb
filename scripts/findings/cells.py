"""Where the cells of the studies are kept: one JSON file each, committed, from which alone everything is rendered."""

from pathlib import Path

from hf_common.files import slug, write_json
from hf_common.foreign import read_json

CARDS = Path(__file__).resolve().parents[2] / "model_cards"
RESULTS = CARDS / "results" / "studies"


def cell_file(study: str, name: str, results: Path) -> Path:
    """The file of a cell; `name` is any text that tells it from the study's others."""
    return results / study / f"{slug(name)}.json"


def write_cell(study: str, name: str, content: dict, results: Path) -> None:
    """Keep a finished cell."""
    write_json(cell_file(study, name, results), content)


def read_cells(study: str, results: Path) -> dict[str, dict]:
    """All finished cells of a study by the names of their files, in alphabetical order."""
    return {path.stem: read_json(path) for path in sorted((results / study).glob("*.json"))}
