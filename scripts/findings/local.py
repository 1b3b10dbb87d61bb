"""Full against local attention, trained from scratch on photographs: loss, samples, distances, time."""

from statistics import mean

from matplotlib.figure import Figure

from hf_common.foreign import read_json
from hf_common.run_folder import RESULTS
from hf_common.tables import markdown_table

from . import dit_runs
from .cells import cell_file, write_cell
from .claims import pooled_spread
from .dit_runs import Photographs
from .study import Place

STUDY, SIDE, MODEL, IMAGES_SEEN = "local", 64, "dit-tiny-4", 100_000  # 16 x 16 tokens
RUNS = [("full", 0), ("na7", 0), ("full", 1), ("na7", 1), ("na7,full", 0)]  # two seeds each are the yardstick
GUIDANCE, STEPS, IMAGES_PER_CLASS = 1.5, 50, 125
STYLES = {"full": ("#D55E00", "o"), "na7": ("#0072B2", "s"), "na7,full": ("#009E73", "^")}


def cell_name(attention: str, seed: int) -> str:
    return f"{attention.replace(',', '-')}_seed{seed}"


CELLS = [cell_name(attention, seed) for attention, seed in RUNS]


def run(place: Place) -> None:
    """Train, sample and score what is missing; a seed is the same order and noise for every attention."""
    missing = [pair for pair in RUNS if not cell_file(STUDY, cell_name(*pair), place.results).exists()]
    if not missing:
        return
    photographs = Photographs(place, SIDE)
    for attention, seed in missing:
        name = cell_name(attention, seed)
        folder = dit_runs.trained(photographs, f"{STUDY}/{name}", IMAGES_SEEN, MODEL, seed, attention=attention)
        axes = {"guidance_scales": [GUIDANCE], "steps": [STEPS], "schedulers": ["ddim"]}
        (cell,) = dit_runs.sampled(folder, place.work / STUDY / f"{name}-samples", axes, IMAGES_PER_CLASS)
        images, labels = dit_runs.images_of(cell)
        training = read_json(folder / RESULTS)
        content = {
            "settings": {
                "attention": attention, "seed": seed, "side": SIDE, "encoder": place.sources.encoder,
                "guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "scheduler": cell["scheduler"],
                **dit_runs.training_facts(folder),
            },
            "history": [[row["step"], row["smoothed"]] for row in training["history"]],
            "images_per_second": training["images_per_second"],
            "seconds": cell["seconds"],
            "peak_memory_bytes": cell["peak_memory_bytes"],
            "peak_memory_kind": cell["peak_memory_kind"],
            "scores": photographs.measure(f"{STUDY}-{name}", images, labels),
            "thumbnails": dit_runs.thumbnails(images, labels, each=2),
            "hardware": training["hardware"],
            "versions": training["versions"],
        }  # fmt: skip
        write_cell(STUDY, name, content, place.results)


def _attention(cell: dict) -> str:
    return cell["settings"]["attention"]


def _groups(cells: list[dict]) -> dict[str, list[dict]]:
    """Cells by attention, in the order of `STYLES`, seeds rising."""
    found: dict[str, list[dict]] = {}
    for cell in sorted(cells, key=lambda cell: cell["settings"]["seed"]):
        found.setdefault(_attention(cell), []).append(cell)
    return {name: found[name] for name in STYLES if name in found}


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Loss curves, scores with errors; and samples, the same noise in a column."""
    groups = _groups(cells)
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    curve, *panels = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    for name, runs in groups.items():
        colour, marker = STYLES[name]
        for position, cell in enumerate(runs):
            steps, losses = zip(*cell["history"], strict=True)
            style = {"label": name} if position == 0 else {"linestyle": "--"}
            curve.plot(steps, losses, color=colour, linewidth=1.3, **style)
        for axes, key in zip(panels, ("cmmd", "fd"), strict=True):
            for position, cell in enumerate(runs):
                place = list(groups).index(name) + 0.15 * (position - (len(runs) - 1) / 2)
                scores = cell["scores"]
                axes.errorbar(
                    place, scores[key], yerr=2 * scores[f"{key}_error"], color=colour, marker=marker, capsize=3
                )
    curve.set(xlabel="Optimizer step", ylabel="Loss, smoothed", yscale="log")
    curve.legend(
        frameon=False, title="dashed: second seed" if any(len(runs) > 1 for runs in groups.values()) else None
    )
    for axes, title in zip(panels, ("CMMD, unbiased", "Fréchet distance"), strict=True):
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.set(ylabel=f"{title}; two standard errors")
        axes.set_ylim(bottom=0)
    for axes in (curve, *panels):
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    return {"full_against_local": figure, "full_against_local_samples": _pictures(cells)}


def _pictures(cells: list[dict]) -> Figure:
    ordered = [cell for runs in _groups(cells).values() for cell in runs]
    pictures = [[dit_runs.decoded(text) for text in cell["thumbnails"]] for cell in ordered]
    columns = max(map(len, pictures))
    figure = Figure(figsize=(1.4 + 1.0 * columns, 0.2 + 1.05 * len(ordered)), layout="constrained")
    for line, cell, images in zip(
        figure.subplots(len(ordered), columns, squeeze=False), ordered, pictures, strict=True
    ):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        name = f"{_attention(cell)}\nseed {cell['settings']['seed']}"
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    return figure


def paragraph(cells: dict[str, list[dict]]) -> str:
    """Table and text."""
    groups = _groups(cells[STUDY])
    first = next(iter(groups.values()))[0]["settings"]
    rows = [
        [
            f"`{name}`",
            str(cell["settings"]["seed"]),
            f"{cell['settings']['loss']:.4f}",
            f"{cell['scores']['cmmd']:.3f} ± {cell['scores']['cmmd_error']:.3f}",
            f"{cell['scores']['fd']:.3f} ± {cell['scores']['fd_error']:.3f}",
            f"{100 * cell['scores']['adherence']:.0f}",
            "–" if cell["images_per_second"] is None else f"{cell['images_per_second']:.0f}",
            "–" if cell["peak_memory_bytes"] is None else f"{cell['peak_memory_bytes'] / 2**20:,.0f}",
        ]
        for name, runs in groups.items()
        for cell in runs
    ]
    heads = [
        "attention",
        "seed",
        "loss",
        "CMMD",
        "Fréchet distance",
        "adherence (%)",
        "trained images/s",
        "MiB, sampling",
    ]
    text = (
        f"`{first['model']}` ({first['parameters'] / 1e6:.1f} million parameters) from scratch on landscape "
        f"photographs of {SIDE} x {SIDE} pixels, 256 tokens, {first['images_seen']:,} images seen; a seed is the same "
        f"weights, order and noise for every attention. Samples of guidance {first['guidance_scale']:g}, "
        f"{first['num_inference_steps']} steps, against the training photographs in features of "
        f"`{first['encoder']}`; ± is a standard error."
    )
    return f"{text}\n\n{markdown_table(heads, rows)}\n\n{_verdict(groups)}"


def _verdict(groups: dict[str, list[dict]]) -> str:
    """What differs by more than two seeds of one attention do."""
    said = []
    for key, title in (("loss", "loss"), ("cmmd", "CMMD")):
        values = {
            name: [cell["settings"]["loss"] if key == "loss" else cell["scores"][key] for cell in runs]
            for name, runs in groups.items()
        }
        spread = pooled_spread(values.values())
        if spread is None or "full" not in values:
            continue
        others = [
            f"`{name}` less `full` {mean(found) - mean(values['full']):+.4f}"
            for name, found in values.items()
            if name != "full"
        ]
        said.append(f"{title}: {', '.join(others)}, seeds scatter by {spread:.4f}")
    return f"{'; '.join(said)}." if said else ""
