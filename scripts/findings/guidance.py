"""What guidance does to the samples of a class-conditional DiT: adherence, diversity, colours, distances."""

from matplotlib.figure import Figure

from hf_common.run_folder import RESULTS
from hf_common.tables import markdown_table
from hf_robust.reports.results import read_results

from . import dit_runs
from .cells import cell_file, write_cell
from .claims import CONFIRMED, REFUTED, SURE, Claim, decide, missing
from .dit_runs import Photographs
from .study import Place

STUDY, SIDE, MODEL, IMAGES_SEEN = "guidance", 32, "dit-tiny-4", 400_000
SCALES, STEPS, IMAGES_PER_CLASS = [0.0, 1.0, 1.5, 2.0, 4.0, 10.0], 50, 250
REAL = "photographs"  # the cell of the test photographs
MEASURES = {  # key -> title with unit, factor
    "adherence": ("Assigned to the asked class (%)", 100),
    "diversity": ("Distance within a class", 1),
    "saturation": ("Saturation (%)", 100),
    "clipped": ("Values at 0 or 255 (%)", 100),
    "cmmd": ("CMMD, unbiased", 1),
    "fd": ("Fréchet distance", 1),
    "precision": ("Precision (%)", 100),
    "recall": ("Recall (%)", 100),
    "density": ("Density", 1),
    "coverage": ("Coverage (%)", 100),
}


def cell_name(scale: float) -> str:
    return f"guidance_{scale:g}"


CELLS = [REAL, *map(cell_name, SCALES)]


def model(photographs: Photographs):
    """The folder of the pipeline of this study, and of the next."""
    return dit_runs.trained(photographs, f"{STUDY}/train", IMAGES_SEEN, MODEL)


def run(place: Place) -> None:
    """Train, sample and measure what is missing."""
    if all(cell_file(STUDY, name, place.results).exists() for name in CELLS):
        return
    photographs = Photographs(place, SIDE)
    if not cell_file(STUDY, REAL, place.results).exists():
        judge = read_results(photographs.classifier() / RESULTS)["accuracy"]["last"]
        settings = {"seed": 0, "encoder": place.sources.encoder, "side": SIDE, "guidance_scale": None}
        images, labels = photographs.images("test")
        scores = photographs.measure(f"photographs-{SIDE}-test", images, labels)
        content = {"settings": settings, "classifier_accuracy": judge, "scores": scores}
        write_cell(STUDY, REAL, content | dit_runs.facts(), place.results)
    cells = {cell_name(scale): ("ddim", scale, STEPS) for scale in SCALES}
    dit_runs.sample_missing(STUDY, photographs, model(photographs), cells, IMAGES_PER_CLASS)


def by_scale(cells: list[dict]) -> dict[float, dict]:
    """Scores of the samples by guidance scale, rising."""
    samples = [cell for cell in cells if cell["settings"]["guidance_scale"] is not None]
    return {
        cell["settings"]["guidance_scale"]: cell["scores"]
        for cell in sorted(samples, key=lambda cell: cell["settings"]["guidance_scale"])
    }


def _of_photographs(cells: list[dict]) -> dict | None:
    return next((cell for cell in cells if cell["settings"]["guidance_scale"] is None), None)


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Panels over the guidance scale with standard errors, the photographs as a line; and a picture of samples."""
    found, real = by_scale(cells), _of_photographs(cells)
    if len(found) < 2:
        return {}
    figure = Figure(figsize=(10.2, 8.2), layout="constrained")
    drawn = {key: measure for key, measure in MEASURES.items() if key != "clipped"}  # the colours say it already
    for axes, (key, (title, factor)) in zip(figure.subplots(3, 3).flat, drawn.items(), strict=True):
        places = range(len(found))
        axes.errorbar(
            places,
            [factor * scores[key] for scores in found.values()],
            yerr=[2 * factor * scores[f"{key}_error"] for scores in found.values()],
            color="#0072B2",
            marker="o",
            capsize=3,
            label="samples, two standard errors",
        )
        if real is not None:
            axes.axhline(factor * real["scores"][key], color="#D55E00", linestyle="--", label="test photographs")
        axes.set_xticks(places, [f"{scale:g}" for scale in found])
        axes.set(xlabel="Guidance scale", ylabel=title)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return {"guidance": figure, "guidance_samples": samples_figure([c for c in cells if "thumbnails" in c])}


def samples_figure(cells: list[dict]) -> Figure:
    """A row a guidance scale, the same noise in a column."""
    rows = sorted(cells, key=lambda cell: cell["settings"]["guidance_scale"])
    pictures = [[dit_runs.decoded(text) for text in cell["thumbnails"]] for cell in rows]
    columns = max(map(len, pictures))
    figure = Figure(figsize=(0.9 + 0.95 * columns, 0.2 + 0.95 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, cell, images in zip(panels, rows, pictures, strict=True):
        for axes in line:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, interpolation="nearest")
        line[0].set_ylabel(f"{cell['settings']['guidance_scale']:g}", rotation=0, ha="right", va="center")
    figure.supylabel("Guidance scale", fontsize="medium")
    return figure


def paragraph(cells: dict[str, list[dict]]) -> str:
    """Table and text."""
    found, real = by_scale(cells[STUDY]), _of_photographs(cells[STUDY])
    rows = [] if real is None else [_row("test photographs", real["scores"])]
    rows += [_row(f"{scale:g}", scores) for scale, scores in found.items()]
    text = [] if not found else [_of_model(cells[STUDY], found)]
    if real is not None:
        text.append(
            "Adherence is judged by a ResNet-20 that was trained on the photographs and is right on "
            f"{100 * real['classifier_accuracy']:.1f} % of the test ones; diversity is the mean cosine distance of "
            "two images of a class in the encoder's features."
        )
    heads = ["guidance", *(title for title, _ in MEASURES.values())]
    return f"{' '.join(text)} ± is a standard error.\n\n{markdown_table(heads, rows)}"


def _of_model(cells: list[dict], found: dict) -> str:
    first = next(cell for cell in cells if cell["settings"]["guidance_scale"] is not None)["settings"]
    counts = sorted({scores["images"] for scores in found.values()})
    return (
        f"`{first['model']}` ({first['parameters'] / 1e6:.1f} million parameters), trained on landscape photographs "
        f"of {SIDE} x {SIDE} pixels and four classes for {first['images_seen']:,} images; "
        f"{' to '.join(f'{count:,}' for count in counts)} samples a row, {first['num_inference_steps']} steps of "
        f"{first['scheduler'].upper()}, scored against the training photographs in features of `{first['encoder']}`."
    )


def _row(name: str, scores: dict) -> list[str]:
    digits = dict.fromkeys((key for key, (_, factor) in MEASURES.items() if factor == 100), 1)
    return [
        name,
        *(
            f"{factor * scores[key]:.{digits.get(key, 3)}f} ± {factor * scores[f'{key}_error']:.{digits.get(key, 3)}f}"
            for key, (_, factor) in MEASURES.items()
        ),
    ]


def claims(cells: list[dict]) -> list[Claim]:
    """What the report said of guidance."""
    found = by_scale(cells)
    return [_ignores(found), _exaggerates(found)]


def _ignores(found: dict[float, dict]) -> Claim:
    said = "Guidance 0 ignores the label."
    if 0.0 not in found:
        return missing(said, "guidance 0")
    scores, chance = found[0.0], 0.25  # of four classes, asked for equally often
    distance, error = abs(scores["adherence"] - chance), scores["adherence_error"]
    verdict = CONFIRMED if distance <= SURE * error else REFUTED
    return Claim(
        said,
        verdict,
        f"{100 * scores['adherence']:.1f} ± {100 * error:.1f} % of {scores['images']:,} samples are of the class "
        f"asked for, chance is {100 * chance:.0f} %.",
    )


def _exaggerates(found: dict[float, dict]) -> Claim:
    said = "Guidance 10 exaggerates and loses diversity."
    if not {1.0, 10.0} <= found.keys():
        return missing(said, "guidance 1 and 10")
    one, ten = found[1.0], found[10.0]
    signs = {"adherence": 1, "saturation": 1, "diversity": -1}
    differences = [
        (sign * (ten[key] - one[key]), (ten[f"{key}_error"] ** 2 + one[f"{key}_error"] ** 2) ** 0.5)
        for key, sign in signs.items()
    ]
    shown = "; ".join(
        f"{key} {factor * one[key]:.3g} to {factor * ten[key]:.3g}{' %' * (factor == 100)}"
        for key, factor in ((key, MEASURES[key][1]) for key in signs)
    )
    least = min(found, key=lambda scale: found[scale]["diversity"])
    if least != 10:
        shown += f"; diversity is least at guidance {least:g}, {found[least]['diversity']:.3g}"
    verdict = decide(differences)
    return Claim(said, verdict, f"From guidance 1 to 10: {shown} ({one['images']:,} samples each).")
