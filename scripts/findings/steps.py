"""How many steps a sample needs: DDPM, DDIM and DPM-Solver++ at guidance 1 and 10."""

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from hf_common.tables import markdown_table

from . import dit_runs, guidance
from .cells import cell_file
from .claims import CONFIRMED, OPEN, REFUTED, SURE, Claim, decide, missing
from .dit_runs import Photographs
from .study import Place

STUDY, IMAGES_PER_CLASS = "steps", 63
SCALES = [1.0, 10.0]
STEPS = {"ddpm": [10, 20, 50, 250, 500], "ddim": [10, 20, 50, 250, 500], "dpmsolver++": [10, 20, 50]}
STYLES = {
    "ddpm": ("DDPM", "#0072B2", "o"),
    "ddim": ("DDIM", "#D55E00", "s"),
    "dpmsolver++": ("DPM-Solver++", "#009E73", "^"),
}
REPORTED = "ddpm"  # what the report's notebook ran
Key = tuple[str, float, int]  # scheduler, guidance scale, steps


def cell_name(scheduler: str, scale: float, steps: int) -> str:
    return f"{scheduler.replace('+', 'p')}_guidance{scale:g}_steps{steps}"


CELLS = [cell_name(name, scale, count) for name, counts in STEPS.items() for scale in SCALES for count in counts]


def run(place: Place) -> None:
    """Sample with the model of the study of guidance, and score what is missing."""
    if all(cell_file(STUDY, name, place.results).exists() for name in CELLS):
        return
    photographs = Photographs(place, guidance.SIDE)
    cells = {
        cell_name(scheduler, scale, count): (scheduler, scale, count)
        for scheduler, counts in STEPS.items()
        for count in counts  # the short ones first
        for scale in SCALES
    }
    dit_runs.sample_missing(STUDY, photographs, guidance.model(photographs), cells, IMAGES_PER_CLASS)


def by_key(cells: list[dict]) -> dict[Key, dict]:
    """Cells by what they vary, in the order of the study."""
    keys = ("scheduler", "guidance_scale", "num_inference_steps")
    found = {tuple(cell["settings"][key] for key in keys): cell for cell in cells}
    return dict(sorted(found.items(), key=lambda item: (list(STEPS).index(item[0][0]), *item[0][1:])))


def figures(cells: list[dict]) -> dict[str, Figure]:
    """CMMD over the steps, a panel a guidance scale; and the pictures, guidance x steps."""
    found = by_key(cells)
    scales = sorted({scale for _, scale, _ in found})
    if len({steps for *_, steps in found}) < 2:
        return {}
    figure = Figure(figsize=(0.6 + 4.2 * len(scales), 3.9), layout="constrained")
    panels = figure.subplots(1, len(scales), squeeze=False)[0]
    for axes, scale in zip(panels, scales, strict=True):
        for scheduler, (name, colour, marker) in STYLES.items():
            line = {
                steps: cell["scores"]
                for (which, at, steps), cell in found.items()
                if (which, at) == (scheduler, scale)
            }
            if line:
                axes.errorbar(
                    list(line),
                    [scores["cmmd"] for scores in line.values()],
                    yerr=[2 * scores["cmmd_error"] for scores in line.values()],
                    color=colour,
                    marker=marker,
                    capsize=3,
                    label=name,
                )
        counts = sorted({steps for *_, steps in found})
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"guidance {scale:g}", fontsize="medium")
        axes.set(xlabel="Steps", ylabel="CMMD, unbiased; two standard errors" if scale == scales[0] else "")
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    samples = pictures(found)
    return {"steps": figure} | ({} if samples is None else {"guidance_x_steps": samples})


def pictures(found: dict[Key, dict]) -> Figure | None:
    """The same noise everywhere: a row a guidance scale and sampler, a column a number of steps.

    Of the samplers that were run at as many steps as any, with one model; None while none is whole.
    """
    counts = sorted({steps for *_, steps in found})
    rows = sorted({key[:2] for key in found}, key=lambda row: (row[1], list(STEPS).index(row[0])))
    rows = [row for row in rows if _of_one_model([found.get((*row, count)) for count in counts])]
    if not rows:
        return None
    figure = Figure(figsize=(1.5 + 1.55 * len(counts), 0.5 + 1.55 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(counts), squeeze=False)
    for line, (scheduler, scale) in zip(panels, rows, strict=True):
        for axes, count in zip(line, counts, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.imshow(_two_by_two(found[scheduler, scale, count]["thumbnails"]), interpolation="nearest")
        line[0].set_ylabel(f"{STYLES[scheduler][0]}\nguidance {scale:g}", fontsize="small")
    for axes, count in zip(panels[0], counts, strict=True):
        axes.set_title(f"{count} steps", fontsize="medium")
    return figure


def _of_one_model(cells: list[dict | None]) -> bool:
    """Whether all are there, and samples of the same weights: of others, noise becomes other images."""
    return None not in cells and len({cell["settings"]["weights"] for cell in cells if cell is not None}) == 1


def _two_by_two(thumbnails: list[str]):
    """The first sample of each of four classes in a square."""
    import numpy as np

    first = [np.asarray(dit_runs.decoded(text)) for text in thumbnails[::2][:4]]
    return np.concatenate([np.concatenate(first[:2], 1), np.concatenate(first[2:], 1)], 0)


def paragraph(cells: dict[str, list[dict]]) -> str:
    """Table and text."""
    found = by_key(cells[STUDY])
    first = next(iter(found.values()))
    counts = sorted({cell["scores"]["images"] for cell in found.values()})
    rows = [
        [
            STYLES[scheduler][0],
            f"{scale:g}",
            str(steps),
            f"{cell['scores']['cmmd']:.3f} ± {cell['scores']['cmmd_error']:.3f}",
            f"{cell['scores']['fd']:.3f} ± {cell['scores']['fd_error']:.3f}",
            f"{100 * cell['scores']['adherence']:.0f}",
            f"{cell['seconds']:.0f}",
        ]
        for (scheduler, scale, steps), cell in found.items()
    ]
    heads = ["sampler", "guidance", "steps", "CMMD", "Fréchet distance", "adherence (%)", "seconds"]
    models = {cell["settings"]["weights"] for cell in found.values()}
    same = models == {cell["settings"].get("weights") for cell in cells[guidance.STUDY] if "thumbnails" in cell}
    text = (
        f"{_models(len(models), same)}, {' to '.join(map(str, counts))} samples a row from the same noise, against "
        f"the training photographs in features of `{first['settings']['encoder']}`; ± is a standard error."
    )
    return f"{text}\n\n{markdown_table(heads, rows)}\n\n{_gain(found)}"


def _models(count: int, same: bool) -> str:
    if same:
        return "The model of the study before"
    how = "A model" if count == 1 else f"{count} models, of which none is compared with another"
    return f"{how}, trained as that of the study before, with the same seed"


def _gain(found: dict[Key, dict]) -> str:
    """Whether DDPM gains from steps where DDIM does not."""
    said = []
    for scheduler in ("ddpm", "ddim"):
        for scale in SCALES:
            pair = [found.get((scheduler, scale, steps)) for steps in (50, 500)]
            if _of_one_model(pair):
                change, error = _difference(*pair)
                said.append(f"{STYLES[scheduler][0]} at guidance {scale:g} {change:+.3f} ± {error:.3f}")
    return f"CMMD at 50 steps less that at 500: {'; '.join(said)}." if said else ""


def _difference(one: dict, other: dict) -> tuple[float, float]:
    """Of two cells' CMMD, and its standard error as if they were independent."""
    a, b = one["scores"], other["scores"]
    return a["cmmd"] - b["cmmd"], (a["cmmd_error"] ** 2 + b["cmmd_error"] ** 2) ** 0.5


def _hardly(gains: list[tuple[float, float]], before: list[float]) -> str:
    """The verdict on "each of these gains is less than a tenth of what there was before"."""
    if any(value > SURE * error for value, error in gains):
        return REFUTED
    small = [value + SURE * error < 0.1 * score for (value, error), score in zip(gains, before, strict=True)]
    return CONFIRMED if all(small) else OPEN


def claims(cells: list[dict]) -> list[Claim]:
    """What the report said of steps, of its sampler."""
    found = by_key(cells)
    worse, hardly = "50 steps are worse than 250.", "500 steps are hardly better than 250."
    pairs = {said: [[found.get((REPORTED, scale, a)), found.get((REPORTED, scale, b))] for scale in SCALES]
             for said, (a, b) in ((worse, (50, 250)), (hardly, (250, 500)))}  # fmt: skip
    made = []
    for said, both in pairs.items():
        if not all(map(_of_one_model, both)):
            made.append(missing(said, f"{REPORTED.upper()} at guidance {' and '.join(f'{s:g}' for s in SCALES)}"))
            continue
        differences = [_difference(*pair) for pair in both]
        if said == worse:
            verdict = decide(differences)
        else:
            verdict = _hardly(differences, [one["scores"]["cmmd"] for one, _ in both])
        shown = "; ".join(
            f"guidance {scale:g}: {value:+.3f} ± {error:.3f}"
            for scale, (value, error) in zip(SCALES, differences, strict=True)
        )
        images = both[0][0]["scores"]["images"]
        made.append(
            Claim(said, verdict, f"CMMD that {said.split()[-1][:-1]} steps gain with DDPM, {images} samples: {shown}.")
        )
    return made
