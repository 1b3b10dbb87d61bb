"""What the studies of noisy labels share: runs as cells, their accuracies, and how sure a difference is."""

from collections.abc import Iterable
from statistics import mean

from hf_common.tables import markdown_table

from .claims import pooled_spread

DATASET = "cifar10"  # in the cells, for the folder or Hub id that a machine takes it from
NOT_KEPT = ("loss_histogram",)  # of a history: large, and drawn by no figure of the report


def cell_of_run(results: dict) -> dict:
    """What is kept of a run's `results.json`: the same names, without what is large or of one machine's folders."""
    kept = {key: value for key, value in results.items() if key not in ("remote_code", "label_names")}
    kept["settings"] = {**results["settings"], "dataset": DATASET}
    kept["noise"] = {"rate": results["noise"]["rate"]}
    kept["history"] = [{k: v for k, v in row.items() if k not in NOT_KEPT} for row in results["history"]]
    return kept


def loss_of(cell: dict) -> str:
    return cell["settings"]["loss"].replace(" ", "")


def by_noise_and_loss(cells: Iterable[dict], score: str = "last") -> dict[tuple[str, str], list[float]]:
    """Test accuracies in percent of all seeds by noise and loss; `score` is `last` or `best`."""
    groups: dict[tuple[str, str], list[float]] = {}
    for cell in sorted(cells, key=lambda cell: cell["settings"]["seed"]):
        key = cell["settings"]["noise"], loss_of(cell)
        groups.setdefault(key, []).append(100 * cell["accuracy"][score])
    return groups


def spread_of(cells: Iterable[dict], score: str = "last") -> float | None:
    """The standard deviation of an accuracy over seeds, in points, pooled over everything that has several."""
    return pooled_spread(by_noise_and_loss(cells, score).values())


def accuracy_table(cells: Iterable[dict], noises: list[str], losses: list[str]) -> str:
    """Markdown: a row a loss, a column a noise, `last (best)` in percent, `±` over seeds where there are several."""
    last, best = by_noise_and_loss(cells), by_noise_and_loss(cells, "best")

    def shown(key: tuple[str, str]) -> str:
        if key not in last:
            return "–"
        spread = pooled_spread([last[key]])
        return f"{mean(last[key]):.1f}{'' if spread is None else f' ± {spread:.1f}'} ({mean(best[key]):.1f})"

    return markdown_table(["loss", *noises], [[loss, *(shown((noise, loss)) for noise in noises)] for loss in losses])
