"""Trainings that differ in attention, objective, conditioning or seed alone: a table, a picture."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from accelerate import PartialState
from matplotlib.figure import Figure
from PIL import Image

from hf_common.files import replace_text, save_figure, save_picture, slug, write_json
from hf_common.foreign import read_json
from hf_common.processes import from_first_process
from hf_common.run_folder import settings_difference
from hf_common.tables import markdown_table

from ..sampling.pictures import image_grid
from .arguments import DataArguments, DiTTrainingArguments, ModelArguments
from .axes import CompareArguments
from .figures import score_names, standard_error, whole_steps
from .run import check_training, train_dit
from .scoring_arguments import ScoringArguments

SCORING = "scoring.json"  # how all trainings of the folder are scored
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"


class Variant(NamedTuple):
    """One training; None where that axis is what the other arguments say."""

    attention: str | None
    objective: str | None
    conditioning: str | None
    seed: int


@dataclass
class Matched:
    """What all trainings share."""

    data: DataArguments
    model: ModelArguments
    args: DiTTrainingArguments
    scoring: ScoringArguments = field(default_factory=ScoringArguments)

    def arguments(self, variant: Variant, folder: Path) -> tuple[DataArguments, ModelArguments, DiTTrainingArguments]:
        """Those of one training; a `ValueError` where its flags don't go together."""
        model, args = self.model, replace(self.args, seed=variant.seed, output_dir=str(folder))
        if variant.attention is not None:
            model = replace(model, attention=variant.attention)
        if variant.conditioning is not None:
            given = [model.config_overrides] if model.config_overrides else []
            model = replace(model, config_overrides=",".join([*given, f"conditioning={variant.conditioning}"]))
        if variant.objective is not None:
            args = replace(args, prediction_type=variant.objective)
        return self.data, model, replace(args, resume_from_checkpoint="last")


def variants(axes: CompareArguments, seed: int) -> list[Variant]:
    """All combinations, the first values first."""
    values: list[Sequence] = [axes.attentions or [None], axes.objectives or [None], axes.conditionings or [None]]
    return [
        Variant(attention, objective, conditioning, one)
        for one in axes.seeds or [seed]
        for attention, objective, conditioning in itertools.product(*values)
    ]


def names_of(chosen: Sequence[Variant]) -> list[str]:
    """A name for each, of the axes on which they differ."""
    differ = [len({variant[place] for variant in chosen}) > 1 for place in range(len(Variant._fields))]
    fields_that_differ = [name for name, shown in zip(Variant._fields, differ, strict=True) if shown]
    shown = [[_value(variant, axis) for axis in fields_that_differ] for variant in chosen]
    return [", ".join(parts) or "as given" for parts in shown]


def _value(variant: Variant, axis: str) -> str:
    value = getattr(variant, axis)
    return f"seed {value}" if axis == "seed" else str(value)


def compare(matched: Matched, axes: CompareArguments) -> dict:
    """Train every combination, and write `compare.json`, `compare.md`, `compare.png` and `samples.png`.

    A seed is the same initial weights (where the networks are the same), data order, noise and label drops for all.
    The folder of each training lies in `output_dir`; finished ones are read, killed ones gone on with, and more values
    of an axis may be added later. Under `accelerate launch` each training runs on all processes.

    Returns:
        The content of `compare.json`: `runs`, a dict each.

    Raises:
        ValueError, RuntimeError, ImportError: arguments that do not fit, of any training, or a folder whose trainings
            are scored in another way; before the first begins.
    """
    output_dir, chosen = Path(matched.args.output_dir), variants(axes, matched.args.seed)
    names = names_of(chosen)
    folders = [output_dir / slug("_".join(str(value) for value in variant if value is not None)) for variant in chosen]
    prepared = [matched.arguments(variant, folder) for variant, folder in zip(chosen, folders, strict=True)]
    for parts in prepared:
        check_training(*parts, matched.scoring)
    state = PartialState()
    from_first_process(lambda: _claim(output_dir, matched.scoring), state.process_index, state.num_processes)
    runs = []
    for name, variant, folder, parts in zip(names, chosen, folders, prepared, strict=True):
        results = train_dit(*parts, scoring=matched.scoring, check_push=_nothing)
        runs.append(_run(name, variant, folder, results))
    report = {"axes": list(Variant._fields), "runs": runs}
    if state.is_main_process:
        write_json(output_dir / "compare.json", report)
        replace_text(output_dir / "compare.md", compare_markdown(runs) + "\n")
        save_figure(plot_trainings(runs), output_dir / "compare.png")
        save_picture(_last_samples(runs), output_dir / "samples.png")
    return report


def _claim(output_dir: Path, scoring: ScoringArguments) -> None:
    """Write down how the trainings of a folder are scored; a `ValueError` where it was in another way."""
    path, wanted = output_dir / SCORING, asdict(scoring)
    if not path.exists():
        write_json(path, wanted)
    elif difference := settings_difference(wanted, read_json(path, dict)):
        raise ValueError(
            f"output_dir {str(output_dir)!r:.120} holds trainings that are scored in another way: {difference}; "
            "choose another"
        )


def _nothing() -> None:
    """A check that passes: with one, a training that is finished is read, not refused."""


def _run(name: str, variant: Variant, folder: Path, results: dict) -> dict:
    return {
        "name": name,
        **variant._asdict(),
        "folder": str(folder),
        "steps": results["steps"],
        "global_batch": results["settings"]["global_batch"],
        "parameters": results["parameters"],
        "images_per_second": results["images_per_second"],
        "loss": results["history"][-1]["smoothed"],
        "history": [[row["step"], row["smoothed"]] for row in results["history"]],
        "scored": results.get("scored", []),
        "hardware": results["hardware"],
        "versions": results["versions"],
    }


def compare_markdown(runs: Sequence[dict]) -> str:
    """The table: parameters, speed, loss, and the last scores with their standard errors."""
    shown = score_names(runs[0]["scored"][-1]) if runs[0]["scored"] else []
    rows = []
    for run in runs:
        speed, last = run["images_per_second"], run["scored"][-1] if run["scored"] else {}
        errors = {name: standard_error(last, name) for name in shown}
        scores = [
            (f"{last[name]:.4g}" + (f" ± {errors[name]:.2g}" if errors[name] else "")) if name in last else "–"
            for name in shown
        ]
        rows.append(
            [
                run["name"],
                f"{run['parameters'] / 1e6:.2f}",
                "–" if speed is None else f"{speed:.0f}",
                f"{run['loss']:.4f}",
                *scores,
            ]
        )
    table = markdown_table(["training", "million parameters", "images/s", "loss", *shown], rows)
    first = runs[0]
    seen = first["steps"] * first["global_batch"]
    return (
        f"{table}\n\n{seen:,} images seen by each, {first['hardware']}, torch {first['versions']['torch']}. Losses of "
        "different objectives can't be compared, nor numbers of images a second that other work on the machine met; "
        "± is a standard error over the choice of the samples."
    )


def plot_trainings(runs: Sequence[dict]) -> Figure:
    """The loss over the steps; with scores also the first one over the steps and the last of it with its error."""
    scored = all(run["scored"] for run in runs)
    longest = max(len(run["name"]) for run in runs)  # the names stand upright below the last panel, which they shorten
    figure = Figure(figsize=(11, 4.2 + 0.075 * longest) if scored else (6, 4.2), layout="constrained")
    panels = figure.subplots(1, 3 if scored else 1, squeeze=False)[0]
    for place, run in enumerate(runs):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
        steps, losses = zip(*run["history"], strict=True)
        panels[0].plot(steps, losses, color=colour, marker=marker if len(steps) == 1 else None, label=run["name"])
        if scored:
            name = next(key for key in run["scored"][0] if key != "step")
            steps, values = zip(*((row["step"], row[name]) for row in run["scored"]), strict=True)
            panels[1].plot(steps, values, color=colour, marker=marker, markersize=4)
            error = 2 * standard_error(run["scored"][-1], name)
            panels[2].errorbar(place, values[-1], yerr=error or None, color=colour, marker=marker, capsize=4)
            panels[1].set(xlabel="optimizer step", ylabel=f"{name} of samples")
            panels[2].set(ylabel=f"{name} at the end" + ("\n(bars: two standard errors)" if error else ""))
    panels[0].set(xlabel="optimizer step", ylabel="loss, smoothed", yscale="log")
    if scored:
        panels[2].set_xticks(range(len(runs)), [run["name"] for run in runs], rotation=90)
        panels[2].set_xlim(-0.5, len(runs) - 0.5)
        for axes in panels[1:]:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    for axes in panels[:2]:
        axes.xaxis.set_major_locator(whole_steps())
    for axes in panels:
        axes.grid(color="0.9", linewidth=0.8)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    return figure


def _last_samples(runs: Sequence[dict]) -> Image.Image:
    """The last sample grid of each training, one below the other."""
    grids = [Image.open(max(Path(run["folder"]).glob("samples/step-*.png"))).convert("RGB") for run in runs]
    return image_grid(grids, len(grids), 1, row_names=[run["name"] for run in runs], scale=1)
