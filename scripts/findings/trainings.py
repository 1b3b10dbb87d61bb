"""Trainings that differ in one thing, from the same weights, order and noise: loss, samples, distances, time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from hf_common.foreign import read_json
from hf_common.locks import claimed
from hf_common.run_folder import RESULTS
from hf_common.tables import markdown_table

from . import dit_runs
from .cells import cell_file, write_cell
from .claims import SURE, difference, pooled_spread
from .dit_runs import Photographs
from .study import Cells, Place

GUIDANCE, STEPS, IMAGES_PER_CLASS = 1.5, 50, 125


class Variant(NamedTuple):
    """One way to train."""

    flags: Mapping[str, Any]
    seeds: Sequence[int]
    colour: str
    marker: str


class Comparison(NamedTuple):
    """Trainings on the landscape photographs; a seed is the same weights, order and noise for every variant.

    Attributes:
        study: name of the study, and of its figures.
        axis: what the variants are, as the table's head and the cells' settings have it.
        variants: by name; the first is what the others are held against. Several seeds of one are the yardstick.
        side, model, images_seen: of all trainings.
    """

    study: str
    axis: str
    variants: Mapping[str, Variant]
    side: int
    model: str
    images_seen: int

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Variants and seeds, the first seeds first."""
        pairs = [(name, seed) for name, variant in self.variants.items() for seed in variant.seeds]
        return sorted(pairs, key=lambda pair: self.variants[pair[0]].seeds.index(pair[1]))

    @property
    def cells(self) -> list[str]:
        """The names of all cells."""
        return [cell_name(*pair) for pair in self.runs]

    def run(self, place: Place) -> None:
        """Train, sample and score what is missing; workers share the cells."""
        missing = [pair for pair in self.runs if not self._is_there(pair, place)]
        photographs = Photographs(place, self.side) if missing else None
        for pair in claimed(missing, lambda pair: dit_runs.claim_of(self._samples(pair, place))):
            if not self._is_there(pair, place):
                assert photographs is not None
                self._run_cell(photographs, *pair)

    def _is_there(self, pair: tuple[str, int], place: Place) -> bool:
        return cell_file(self.study, cell_name(*pair), place.results).exists()

    def _samples(self, pair: tuple[str, int], place: Place) -> Path:
        return place.work / self.study / f"{cell_name(*pair)}-samples"

    def _run_cell(self, photographs: Photographs, variant: str, seed: int) -> None:
        name, place = cell_name(variant, seed), photographs.place
        flags = self.variants[variant].flags
        folder = dit_runs.trained(photographs, f"{self.study}/{name}", self.images_seen, self.model, seed, **flags)
        axes = {"guidance_scales": [GUIDANCE], "steps": [STEPS]}
        (cell,) = dit_runs.sampled(folder, self._samples((variant, seed), place), axes, IMAGES_PER_CLASS)
        images, labels = dit_runs.images_of(cell)
        training = read_json(folder / RESULTS)
        content = {
            "settings": {
                self.axis: variant, "seed": seed, "side": self.side, "encoder": place.sources.encoder,
                "guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "scheduler": cell["scheduler"],
                **dit_runs.training_facts(folder),
            },
            "history": [[row["step"], row["smoothed"]] for row in training["history"]],
            "images_per_second": training["images_per_second"],
            "seconds": cell["seconds"],
            "peak_memory_bytes": cell["peak_memory_bytes"],
            "peak_memory_kind": cell["peak_memory_kind"],
            "scores": photographs.measure(f"{self.study}-{name}", images, labels),
            "thumbnails": dit_runs.thumbnails(images, labels, each=2),
            "hardware": training["hardware"],
            "versions": training["versions"],
        }  # fmt: skip
        write_cell(self.study, name, content, place.results)

    def _groups(self, cells: list[dict]) -> dict[str, list[dict]]:
        """Cells by variant, in their order, seeds rising."""
        found: dict[str, list[dict]] = {}
        for cell in sorted(cells, key=lambda cell: cell["settings"]["seed"]):
            found.setdefault(cell["settings"][self.axis], []).append(cell)
        return {name: found[name] for name in self.variants if name in found}

    def figures(self, cells: list[dict]) -> dict[str, Figure]:
        """Loss curves, scores with errors; and samples, the same noise in a column."""
        groups = self._groups(cells)
        figure = Figure(figsize=(10.2, 4.4), layout="constrained")
        curve, *panels = figure.subplots(1, 3, width_ratios=[2, 1, 1])
        for name, runs in groups.items():
            _, _, colour, marker = self.variants[name]
            for position, cell in enumerate(runs):
                steps, losses = zip(*cell["history"], strict=True)
                style = {"label": name} if position == 0 else {"linestyle": "--"}
                curve.plot(steps, losses, color=colour, linewidth=1.3, **style)
            for axes, key in zip(panels, ("cmmd", "fd"), strict=True):
                for position, cell in enumerate(runs):
                    place = list(groups).index(name) + 0.15 * (position - (len(runs) - 1) / 2)
                    scores = cell["scores"]
                    error = 2 * scores[f"{key}_error"]
                    axes.errorbar(place, scores[key], yerr=error, color=colour, marker=marker, capsize=3)
        curve.set(xlabel="Optimizer step", ylabel="Loss, smoothed", yscale="log")
        several = any(len(runs) > 1 for runs in groups.values())
        title = "dashed: second seed" if several else None
        handles = curve.get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=min(4, len(groups)), frameon=False, title=title)
        for axes, title in zip(panels, ("CMMD, unbiased", "Fréchet distance"), strict=True):
            turned = {"rotation": 40, "ha": "right"} if len(groups) > 3 else {}
            axes.set_xticks(range(len(groups)), list(groups), **turned)
            axes.set_xlim(-0.5, len(groups) - 0.5)
            axes.set(ylabel=f"{title}; two standard errors")
            axes.set_ylim(bottom=0)
        for axes in (curve, *panels):
            axes.grid(color="0.9", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        return {self.study: figure, f"{self.study}_samples": self._pictures(groups)}

    def _pictures(self, groups: dict[str, list[dict]]) -> Figure:
        rows = [(name, cell) for name, runs in groups.items() for cell in runs]
        pictures = [[dit_runs.decoded(text) for text in cell["thumbnails"]] for _, cell in rows]
        columns = max(map(len, pictures))
        figure = Figure(figsize=(1.9 + 1.0 * columns, 0.2 + 1.05 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, cell), images in zip(panels, rows, pictures, strict=True):
            for axes, image in zip(line, images, strict=True):
                axes.imshow(image, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            words = f"{name}\nseed {cell['settings']['seed']}"
            line[0].set_ylabel(words, rotation=0, ha="right", va="center", fontsize="small")
        return figure

    def paragraph(self, cells: Cells) -> str:
        """Table and text."""
        groups = self._groups(cells[self.study])
        first = next(iter(groups.values()))[0]["settings"]
        rows = [_row(name, cell) for name, runs in groups.items() for cell in runs]
        heads = [
            self.axis, "seed", "loss", "CMMD", "Fréchet distance", "precision (%)", "recall (%)", "density",
            "coverage (%)", "adherence (%)", "million parameters", "trained images/s", "MiB, sampling",
        ]  # fmt: skip
        text = (
            f"`{first['model']}` from scratch on landscape photographs of {self.side} x {self.side} pixels, "
            f"{first['images_seen']:,} images seen; a seed is the same weights, order and noise for every one. "
            f"Samples of guidance {first['guidance_scale']:g}, {first['num_inference_steps']} steps, against the "
            f"training photographs in features of `{first['encoder']}`; ± is a standard error."
        )
        return f"{text}\n\n{markdown_table(heads, rows)}\n\n{self._verdict(groups)}"

    def _verdict(self, groups: dict[str, list[dict]]) -> str:
        """Which is best, and what differs by more than seeds of one variant do, or than the error of the scores."""
        values = {name: [cell["scores"]["cmmd"] for cell in runs] for name, runs in groups.items()}
        first = next(iter(self.variants))
        if first not in values or len(values) < 2:
            return ""
        own = mean(cell["scores"]["cmmd_error"] for runs in groups.values() for cell in runs)
        spread = pooled_spread(values.values())
        seeds = "" if spread is None else f"; seeds scatter by {spread:.3f}"
        said = []
        for name, found in values.items():
            if name != first:
                value, error = difference(found, values[first], max(own, spread or 0.0))
                sure = "beyond" if abs(value) > SURE * error else "within"
                said.append(f"`{name}` {value:+.3f} ± {error:.3f}, {sure} two")
        best = min(values, key=lambda name: mean(values[name]))
        return (
            f"The lowest CMMD is that of `{best}`, {mean(values[best]):.3f}. Less `{first}`, with the standard error "
            f"of the difference (of a score {own:.3f}{seeds}): {'; '.join(said)}."
        )


def cell_name(variant: str, seed: int) -> str:
    """The name of a cell."""
    return f"{variant.replace(',', '-').replace(' ', '')}_seed{seed}"


def _row(name: str, cell: dict) -> list[str]:
    scores, settings, speed, peak = (
        cell["scores"],
        cell["settings"],
        cell["images_per_second"],
        cell["peak_memory_bytes"],
    )
    return [
        f"`{name}`",
        str(settings["seed"]),
        f"{settings['loss']:.4f}",
        f"{scores['cmmd']:.3f} ± {scores['cmmd_error']:.3f}",
        f"{scores['fd']:.3f} ± {scores['fd_error']:.3f}",
        *(f"{100 * scores[key]:.0f}" for key in ("precision", "recall")),
        f"{scores['density']:.2f}",
        *(f"{100 * scores[key]:.0f}" for key in ("coverage", "adherence")),
        f"{settings['parameters'] / 1e6:.1f}",
        "–" if speed is None else f"{speed:.0f}",
        "–" if peak is None else f"{peak / 2**20:,.0f}",
    ]
