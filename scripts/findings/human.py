"""Human labels: does the order of the losses under synthetic noise hold?"""

from statistics import mean

from matplotlib.figure import Figure

from hf_robust.reports.plots import plot_runs

from .accuracy import accuracy_table, by_noise_and_loss
from .noise import LOSSES as SYNTHETIC_LOSSES
from .robust_runs import Plan

LOSSES = [*SYNTHETIC_LOSSES, "gce", "ogc_gce", "anl_ce"]
NOISES = ["human_aggregate", "human_worst", "semantic_40"]


PLANS = [Plan(loss, noise, config=noise if noise.startswith("human") else None) for noise in NOISES for loss in LOSSES]


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Curves by epoch."""
    return {"human_curves": plot_runs(cells)}


def paragraph(cells: list[dict], synthetic: list[dict]) -> str:
    """Table and text; `synthetic` are the cells of the study of noise rates."""
    text = (
        "The same network, images and epochs under the labels that people gave (CIFAR-10N: aggregate 9 %, worst 40 % "
        "wrong) and under flips between alike classes; one seed."
    )
    accuracy, parts = by_noise_and_loss([*cells, *synthetic]), []
    for noise, rival in (
        ("human_worst", "symmetric_40"),
        ("semantic_40", "symmetric_40"),
        ("human_worst", "semantic_40"),
    ):
        both = [loss for loss in LOSSES if (noise, loss) in accuracy and (rival, loss) in accuracy]
        if len(both) > 2:
            value = rank_correlation(*([mean(accuracy[name, loss]) for loss in both] for name in (noise, rival)))
            parts.append(f"{noise} and {rival} {value:+.2f} ({len(both)} losses)")
    order = f"Spearman's rank correlation of the losses' accuracies: {'; '.join(parts)}." if parts else ""
    return "\n\n".join([text, accuracy_table(cells, NOISES, LOSSES), order])


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)
