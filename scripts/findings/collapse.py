"""Why NCE+RCE collapses at 80 % noise on a bare small network: one factor at a time."""

from statistics import mean
from typing import NamedTuple

from matplotlib.figure import Figure

from hf_common.tables import markdown_table
from hf_robust.reports.style import dress

from .claims import CONFIRMED, OPEN, REFUTED, Claim, missing
from .robust_runs import Plan

LOSS, NOISE = "nce+rce", "symmetric_80"
CHANCE = 10.0  # percent, of ten classes
COLLAPSED = 15.0  # below it, less than a twentieth above chance is learned


class Variant(NamedTuple):
    """What is changed of the bare network's training: flags of a run."""

    title: str
    model: str = "cnn_small"
    config: str | None = "batch_norm=false"
    flags: dict = {}
    seeds: tuple[int, ...] = (0, 1)


# Of the bare network: learning rate 0.01, 12 epochs, no clipping.
BARE = {"num_train_epochs": 12.0, "learning_rate": 0.01, "max_grad_norm": 0.0}
VARIANTS = {
    "bare": Variant("bare network"),
    "batch_norm": Variant("batch normalisation", config=None),
    "lr_0.005": Variant("learning rate 0.005", flags={"learning_rate": 0.005}, seeds=(0,)),
    "lr_0.001": Variant("learning rate 0.001", flags={"learning_rate": 0.001}, seeds=(0,)),
    "epochs_40": Variant("40 epochs", flags={"num_train_epochs": 40.0}, seeds=(0,)),
    "clip_5": Variant("gradient norm clipped at 5", flags={"max_grad_norm": 5.0}),
    "width_2": Variant("width x 2", config="batch_norm=false,width=2", seeds=(0,)),
    "width_4": Variant("width x 4", config="batch_norm=false,width=4"),
    "resnet20": Variant("resnet20_cifar", model="resnet20_cifar", config=None, seeds=(0,)),
    "cnn8": Variant("cnn8", model="cnn8", config=None, seeds=(0,)),
}


PLANS = [
    Plan(
        LOSS,
        NOISE,
        seed,
        variant=name,
        model=variant.model,
        overrides=variant.config,
        images=None,
        flags=BARE | variant.flags,
    )
    for name, variant in VARIANTS.items()
    for seed in variant.seeds
]


def variant_of(cell: dict) -> str:
    """The key of `VARIANTS` that a cell is one of."""
    settings = cell["settings"]
    for name, variant in VARIANTS.items():
        wanted = {**BARE, **variant.flags, "model": variant.model, "config_overrides": variant.config}
        if all(settings[key] == value for key, value in wanted.items()):
            return name
    raise ValueError(f"no variant of the study: {settings}")


def scores(cells: list[dict]) -> dict[str, list[float]]:
    """Accuracy of the last epoch in percent, all seeds, by variant, in the order of `VARIANTS`."""
    found: dict[str, list[float]] = {}
    for cell in sorted(cells, key=lambda cell: cell["settings"]["seed"]):
        found.setdefault(variant_of(cell), []).append(100 * cell["accuracy"]["last"])
    return {name: found[name] for name in VARIANTS if name in found}


def figures(cells: list[dict]) -> dict[str, Figure]:
    """A point a run, a row a variant."""
    found = scores(cells)
    figure = Figure(figsize=(7.2, 0.9 + 0.38 * len(found)), layout="constrained")
    axes = figure.subplots()
    dress(axes, title=f"{LOSS} on {NOISE}, last epoch", xlabel="Test accuracy (%)", ylabel="")
    for row, values in enumerate(found.values()):
        axes.plot(values, [row] * len(values), color="#0072B2", marker="s", linestyle="none", fillstyle="none")
        axes.plot(mean(values), row, color="#0072B2", marker="|", markersize=14, linestyle="none")
    axes.axvline(CHANCE, color="0.3", linestyle="--")
    axes.text(CHANCE + 0.4, -0.75, "chance", color="0.3", fontsize="small")
    axes.set_yticks(range(len(found)), [VARIANTS[name].title for name in found])
    axes.set_ylim(len(found) - 0.5, -1)
    axes.set_xlim(0, max(60, 5 + max(map(max, found.values()))))
    return {"collapse": figure}


def paragraph(cells: list[dict]) -> str:
    """Table and text."""
    found = scores(cells)
    images = {cell["train_images"] for cell in cells}
    rows = [
        [VARIANTS[name].title, ", ".join(f"{value:.1f}" for value in values), _parameters(cells, name)]
        for name, values in found.items()
    ]
    heals = [name for name, values in found.items() if name != "bare" and min(values) > COLLAPSED]
    text = (
        f"{LOSS} on {NOISE}, {' and '.join(f'{count:,}' for count in sorted(images))} images of CIFAR-10, without "
        "augmentation. The bare network (two convolutions, two linear layers, no normalisation; learning rate 0.01, "
        "12 epochs, no clipping), and it with one thing changed; the two larger networks are trained as it is. "
        "Accuracy of the last epoch, a number a seed."
    )
    words = ", ".join(VARIANTS[name].title for name in heals) or "none of them"
    return f"{text}\n\n{markdown_table(['changed', 'accuracy (%)', 'parameters'], rows)}\n\nLearns: {words}."


def _parameters(cells: list[dict], name: str) -> str:
    return f"{next(cell['parameters'] for cell in cells if variant_of(cell) == name):,}"


def claims(cells: list[dict]) -> list[Claim]:
    """What the report said of 80 % noise."""
    found = scores(cells)
    return [_collapse(found), _larger(found)]


def _collapse(found: dict[str, list[float]]) -> Claim:
    said = "At 80 % symmetric noise NCE+RCE collapses on the small network (10 %)."
    if "bare" not in found:
        return missing(said, "the bare network")
    low, high = min(found["bare"]), max(found["bare"])
    verdict = CONFIRMED if high < COLLAPSED else REFUTED if low > COLLAPSED else OPEN
    return Claim(said, verdict, f"{_numbers(found['bare'])}; collapsed is below {COLLAPSED:g} %, chance {CHANCE:g} %.")


def _larger(found: dict[str, list[float]]) -> Claim:
    said = "A larger network heals the collapse (39 %)."
    larger = [name for name in ("width_2", "width_4", "resnet20", "cnn8") if name in found]
    if "bare" not in found or not larger:
        return missing(said, "larger networks")
    if max(found["bare"]) >= COLLAPSED:
        return Claim(said, OPEN, f"The small one did not collapse: {_numbers(found['bare'])}.")
    healed = [name for name in larger if min(found[name]) > COLLAPSED]
    verdict = CONFIRMED if len(healed) == len(larger) else REFUTED
    return Claim(said, verdict, "; ".join(f"{VARIANTS[name].title}: {_numbers(found[name])}" for name in larger) + ".")


def _numbers(values: list[float]) -> str:
    return f"{' and '.join(f'{value:.1f}' for value in values)} % ({len(values)} seed{'s' * (len(values) > 1)})"
