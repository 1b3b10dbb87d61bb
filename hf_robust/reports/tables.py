"""Tables of the robust studies: results (see `results`) in, Markdown out."""

import math
from collections.abc import Iterable
from statistics import mean, stdev

from hf_common.tables import markdown_table

from .order import compact, grouped, noise_order
from .results import scored_on_given

DASH = "–"  # where nothing is known


def results_table(results: Iterable[dict]) -> str:
    """A Markdown table, a row a loss (and model, if there are several), a column a noise: test accuracy in percent.

    A cell is `last (best)`; over several seeds each is `mean ± sample standard deviation`. A dash stands where no
    result is.

    Raises:
        ValueError: there are no results.
    """
    results, first_heads = _with_heads(results)
    noises = sorted({r["settings"]["noise"] for r in results}, key=noise_order)
    rows, counts = [], set()
    for names, runs in _by_model_and_loss(results).items():
        cells = [*names[-len(first_heads) :]]
        for noise in noises:
            scored = [r["accuracy"] for r in runs if r["settings"]["noise"] == noise and r["accuracy"]]
            counts |= {len(scored)} - {0}
            last, best = (_mean_and_spread([accuracy[key] for accuracy in scored]) for key in ("last", "best"))
            cells.append(f"{last} ({best})" if scored else DASH)
        rows.append(cells)
    caption = f"Accuracy on {_scored_on(results)} in percent: last epoch (best epoch)"
    columns = ["given labels" if noise == "clean" and scored_on_given(results) else noise for noise in noises]
    return f"{caption}{_over_seeds(counts)}.\n\n{markdown_table([*first_heads, *columns], rows)}"


def details_table(results: Iterable[dict]) -> str:
    """Markdown, a heading and a table a noise: a row a loss (and model, if there are several), by last accuracy.

    Columns: test accuracy of the last epoch and of the best (with its epoch, or its earliest and latest over seeds),
    the share of wrongly labelled training images predicted as their wrong label, all in percent, and the AUC of the
    loss as a detector of wrong labels; the latter two of the last epoch. Over several seeds each is `mean ± sample
    standard deviation` of those that know it. A dash stands where none does; rows without an accuracy come last.

    Raises:
        ValueError: there are no results.
    """
    results, first_heads = _with_heads(results)
    heads = [*first_heads, "last", "best (epoch)", "memorised", "AUC"]
    caption = (
        f"Accuracy on {_scored_on(results)}, last epoch and best, and share of the wrongly labelled training images "
        "predicted as their wrong label (memorised), in percent. AUC: probability that a wrongly labelled training "
        "image has a larger loss than a correctly labelled one. Memorised and AUC are of the last epoch"
    )
    sections, counts = [], set()
    noises = grouped(results, lambda r: r["settings"]["noise"])
    for noise in sorted(noises, key=noise_order):
        placed = []
        for names, runs in _by_model_and_loss(noises[noise]).items():
            scored = [r["accuracy"] for r in runs if r["accuracy"]]
            counts |= {len(scored)} - {0}
            place = -mean(accuracy["last"] for accuracy in scored) if scored else math.inf
            placed.append((place, [*names[-len(first_heads) :], *_details(scored, runs)]))
        rows = [cells for _, cells in sorted(placed, key=lambda row: row[0])]
        sections.append(f"\n\n### {noise}\n\n{markdown_table(heads, rows)}")
    return f"{caption}{_over_seeds(counts)}.{''.join(sections)}"


def _scored_on(results: Iterable[dict]) -> str:
    return "held-out images by their given labels" if scored_on_given(results) else "the clean test set"


def _with_heads(results: Iterable[dict]) -> tuple[list[dict], list[str]]:
    """The results, and the heads of what names a row: the loss, and the model if there are several."""
    results = list(results)
    if not results:
        raise ValueError("results: there are none")
    several_models = len({r["settings"]["model"] for r in results}) > 1
    return results, ["model", "loss"] if several_models else ["loss"]


def _by_model_and_loss(results: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    return grouped(results, lambda r: (r["settings"]["model"], compact(r["settings"]["loss"])))


def _details(scored: list[dict], runs: list[dict]) -> list[str]:
    """The cells last, best, memorised and AUC of one row: the accuracies, and the runs that they are of."""
    best = _mean_and_spread([accuracy["best"] for accuracy in scored])
    if scored:
        epochs = [accuracy["best_epoch"] for accuracy in scored]
        between = "–".join(f"{epoch:g}" for epoch in sorted({min(epochs), max(epochs)}))
        best += f" ({between})"
    fits = [r.get("memorisation", {}) for r in runs]
    memorised, auc = (
        [fit[key] for fit in fits if fit.get(key) is not None] for key in ("train_memorised", "train_separation_auc")
    )
    last = _mean_and_spread([accuracy["last"] for accuracy in scored])
    return [last, best, _mean_and_spread(memorised), _mean_and_spread(auc, scale=1, digits=3)]


def _mean_and_spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    scaled = [scale * value for value in values]
    if not scaled:
        return DASH
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    return f"{mean(scaled):.{digits}f} ± {stdev(scaled):.{digits}f}"


def _over_seeds(counts: set[int]) -> str:
    # what a caption says of cells that are made of so many seeds
    if not counts - {1}:
        return ""
    seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f", mean ± standard deviation over {seeds} seeds"
