"""Accuracy against the noise rate: five losses, two kinds of noise, and what training learns by heart."""

from collections.abc import Iterable
from statistics import mean

from matplotlib.figure import Figure

from hf_robust.reports.plots import plot_accuracy_vs_noise, plot_runs

from .accuracy import accuracy_table, by_noise_and_loss, spread_of
from .claims import Claim, decide, difference, missing
from .robust_runs import Plan

LOSSES = ["ce", "fl", "nce", "nfl", "nce+rce"]
SYMMETRIC = ["clean", "symmetric_20", "symmetric_40", "symmetric_60", "symmetric_80"]
ASYMMETRIC = ["asymmetric_10", "asymmetric_20", "asymmetric_30", "asymmetric_40"]
REPEATED = ["symmetric_40", "symmetric_80"]  # with three seeds: they tell the spread
FULL_SIZE = ["ce", "nce+rce"]
IMAGES = 10_000


PLANS = [
    *(Plan(loss, noise) for noise in (*SYMMETRIC, *ASYMMETRIC) for loss in LOSSES),
    *(Plan(loss, noise, seed) for noise in REPEATED for seed in (1, 2) for loss in LOSSES),
    *(Plan(loss, "symmetric_40", images=None, augmentation="crop_flip") for loss in FULL_SIZE),
]


def small(cells: list[dict]) -> list[dict]:
    """The cells on the first `IMAGES` images."""
    return [cell for cell in cells if cell["settings"]["max_train_samples"] == IMAGES]


def full(cells: list[dict]) -> list[dict]:
    """The check on all images."""
    return [cell for cell in cells if cell["settings"]["max_train_samples"] is None]


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Accuracy by rate, and curves by epoch of the noises at which losses part."""
    shown = [cell for cell in small(cells) if cell["settings"]["noise"] in (*REPEATED, "asymmetric_40")]
    return {"accuracy_vs_noise": plot_accuracy_vs_noise(small(cells)), "training_curves": plot_runs(shown)}


def paragraph(cells: list[dict]) -> str:
    """Table and text."""
    cells, whole = small(cells), full(cells)
    spread = spread_of(cells)
    text = (
        f"`cnn_small` on the first {IMAGES:,} images of CIFAR-10, 12 epochs without augmentation; accuracy on the "
        f"10,000 clean test images in percent, last epoch (best epoch). {len(cells)} runs; ± is the standard "
        "deviation over three seeds"
    )
    text += f", pooled {spread:.1f} points." if spread is not None else "."
    parts = [text, accuracy_table(cells, SYMMETRIC, LOSSES), accuracy_table(cells, ASYMMETRIC, LOSSES)]
    if memory := _memorised(cells):
        parts.append(memory)
    if whole:
        parts.append(
            "At full size (50,000 images, 12 epochs, crop and flip):\n\n"
            + accuracy_table(whole, ["symmetric_40"], FULL_SIZE)
        )
    return "\n\n".join(parts)


def _memorised(cells: list[dict]) -> str:
    shares = {
        loss: [
            100 * cell["memorisation"]["train_memorised"]
            for cell in cells
            if cell["settings"]["noise"] == "symmetric_40" and cell["settings"]["loss"].replace(" ", "") == loss
        ]
        for loss in LOSSES
    }
    known = [f"{loss} {mean(values):.0f} %" for loss, values in shares.items() if values]
    return f"Wrong labels of symmetric_40 that the network repeats at the end: {', '.join(known)}." if known else ""


def claims(cells: list[dict]) -> list[Claim]:
    """What the report said of its first figures."""
    cells = small(cells)
    accuracy, spread = by_noise_and_loss(cells), spread_of(cells)
    return [
        _lower_when_clean(accuracy, spread),
        _flatter(accuracy, spread),
        _best_in_the_middle(accuracy, spread),
        _erratic(accuracy, spread),
    ]


def _lacking(accuracy: dict, spread: float | None, noises: Iterable[str], losses: Iterable[str]) -> str:
    """What of the cells of a claim is not there, in words; nothing if all are."""
    absent = [f"{loss} on {noise}" for noise in noises for loss in losses if (noise, loss) not in accuracy]
    if absent:
        return f"{', '.join(absent[:3])}{f' and {len(absent) - 3} more' if len(absent) > 3 else ''}"
    return "a second seed of any loss and noise, for a spread" if spread is None else ""


def _lower_when_clean(accuracy: dict, spread: float | None) -> Claim:
    said = "Without noise, NCE and NFL score lower than CE and FL."
    if lack := _lacking(accuracy, spread, ["clean"], LOSSES):
        return missing(said, lack)
    clean = {loss: accuracy["clean", loss] for loss in LOSSES}
    pairs = [difference(clean[plain], clean[normal], spread) for plain in ("ce", "fl") for normal in ("nce", "nfl")]
    numbers = ", ".join(f"{loss} {mean(clean[loss]):.1f}" for loss in ("ce", "fl", "nce", "nfl"))
    return Claim(said, decide(pairs), f"{numbers} %; {_sure(spread)}.")


def _flatter(accuracy: dict, spread: float | None) -> Claim:
    said = "NCE and NFL are flatter over the noise rate than CE and FL."
    ends = "clean", "symmetric_80"
    if lack := _lacking(accuracy, spread, ends, LOSSES):
        return missing(said, lack)
    drops = {loss: difference(*(accuracy[noise, loss] for noise in ends), spread) for loss in LOSSES}
    pairs = [
        (drops[plain][0] - drops[normal][0], (drops[plain][1] ** 2 + drops[normal][1] ** 2) ** 0.5)
        for plain in ("ce", "fl")
        for normal in ("nce", "nfl")
    ]
    numbers = ", ".join(f"{loss} {drops[loss][0]:.1f}" for loss in LOSSES)
    return Claim(
        said, decide(pairs), f"Points lost from clean labels to 80 % symmetric noise: {numbers}; {_sure(spread)}."
    )


def _best_in_the_middle(accuracy: dict, spread: float | None) -> Claim:
    said = "NCE+RCE is the best from 20 to 60 % symmetric noise."
    noises = ["symmetric_20", "symmetric_40", "symmetric_60"]
    if lack := _lacking(accuracy, spread, noises, LOSSES):
        return missing(said, lack)
    leads, words = [], []
    for noise in noises:
        second = max((loss for loss in LOSSES if loss != "nce+rce"), key=lambda loss: mean(accuracy[noise, loss]))
        leads.append(difference(accuracy[noise, "nce+rce"], accuracy[noise, second], spread))
        words.append(f"{noise.rpartition('_')[2]} %: {leads[-1][0]:+.1f} against {second}")
    return Claim(said, decide(leads), f"Points before the best of the others: {', '.join(words)}; {_sure(spread)}.")


def _erratic(accuracy: dict, spread: float | None) -> Claim:
    said = "Under asymmetric noise CE and FL are erratic, NCE+RCE is steady."
    noises, losses = ["clean", *ASYMMETRIC], ("ce", "fl", "nce+rce")
    if lack := _lacking(accuracy, spread, noises, losses):
        return missing(said, lack)
    off = {loss: _off_a_line([mean(accuracy[noise, loss]) for noise in noises]) for loss in losses}
    # Deviations that seeds alone make: of five points about a line that takes two of their degrees of freedom.
    by_chance = spread * (3 / 5) ** 0.5
    pairs = [(off[loss] - off["nce+rce"], by_chance) for loss in ("ce", "fl")]
    numbers = ", ".join(f"{loss} {off[loss]:.1f}" for loss in losses)
    return Claim(
        said,
        decide(pairs),
        f"Erratic taken as the mean square deviation of the accuracies at 0 to 40 % from a straight line, in points: "
        f"{numbers}; seeds alone make {by_chance:.1f}.",
    )


def _off_a_line(values: list[float]) -> float:
    middle = (len(values) - 1) / 2
    slope = sum((x - middle) * y for x, y in enumerate(values)) / sum((x - middle) ** 2 for x in range(len(values)))
    rest = [y - mean(values) - slope * (x - middle) for x, y in enumerate(values)]
    return (sum(part**2 for part in rest) / len(rest)) ** 0.5


def _sure(spread: float) -> str:
    return (
        f"one run's standard deviation over seeds is {spread:.1f} points, a difference counts from two standard errors"
    )
