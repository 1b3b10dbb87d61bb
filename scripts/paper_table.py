#!/usr/bin/env python
"""Train by the papers' recipe on CIFAR-10 with noisy labels and put the accuracy beside the published one.

    accelerate launch scripts/paper_table.py --output_dir runs/paper_table
    accelerate launch scripts/paper_table.py --losses ce nce+rce --noises symmetric_20 symmetric_60 --seeds 0 \\
        --output_dir runs/paper_table-one-seed
    accelerate launch scripts/paper_table.py --losses ce nce+agce --noises symmetric_40 --seeds 0 \\
        --num_train_epochs 2 --max_train_samples 2000 --output_dir runs/paper_table-quick

Runs are those of sweep_robust.py --recipe cifar10-cnn8: finished ones are skipped and a killed one goes on from its
last checkpoint. Run the same command again, also to add losses, noises or seeds. All defaults together are 48 runs of
120 epochs. Writes paper_table.md and paper_table.json beside the sweep's files to --output_dir; where anything differs
from the recipe, the caption says what. Every flag of train_robust.py is taken too.
"""

import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from transformers import HfArgumentParser

from hf_common.files import replace_text, write_json
from hf_common.processes import leave_processes
from hf_common.running import run_command
from hf_common.tables import markdown_table
from hf_robust.losses import parse_loss_spec
from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.reports.order import compact
from hf_robust.studies.arguments import DataArguments, ExperimentArguments, ModelArguments
from hf_robust.studies.sweep import REPLACED_FLAGS, Run, refuse_replaced_flags, run_sweep
from hf_robust.training.arguments import default_weight_decay
from hf_robust.training.recipes import recipe_flags, recipe_loss

RECIPE = "cifar10-cnn8"

# Test accuracy after the last epoch in percent: mean and standard deviation of 3 runs, None where none was given.
# Wang et al. 2024, "Epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label Noise", NeurIPS, table 2: all
# but NLNL, which was copied from an earlier paper, and CE+LogitClip, whose parameters change with the noise. The focal
# losses of its code take no gradient through the focal weight, here `detach=true`. anl_ce: Wang et al. 2025,
# arXiv:2507.17692.
PUBLISHED_NOISES = ("clean", "symmetric_20", "symmetric_40", "symmetric_60", "symmetric_80")
PUBLISHED = {
    "ce": ((90.50, 0.35), (75.47, 0.27), (58.46, 0.21), (39.16, 0.50), (18.95, 0.38)),
    "fl(detach=true)": ((89.70, 0.24), (74.50, 0.18), (58.23, 0.40), (38.69, 0.06), (19.47, 0.74)),
    "gce": ((89.42, 0.21), (86.87, 0.06), (82.24, 0.25), (68.43, 0.26), (25.82, 1.03)),
    "sce": ((91.30, 0.08), (87.58, 0.05), (79.47, 0.48), (59.14, 0.07), (25.88, 0.49)),
    "nce+mae": ((89.02, 0.10), (86.79, 0.28), (83.60, 0.14), (75.93, 0.41), (46.96, 0.67)),
    "nce+rce": ((91.03, 0.28), (88.41, 0.24), (85.13, 0.56), (79.20, 0.06), (55.28, 1.26)),
    "nfl(detach=true)+rce": ((91.08, 0.29), (89.00, 0.23), (85.90, 0.19), (79.79, 0.52), (55.47, 2.73)),
    "nce+aul": ((91.06, 0.24), (89.11, 0.07), (85.79, 0.16), (79.57, 0.21), (57.59, 0.84)),
    "nce+agce": ((91.13, 0.11), (89.00, 0.29), (85.91, 0.15), (80.36, 0.36), (49.98, 4.81)),
    "nce+ael": ((88.43, 0.25), (86.46, 0.28), (83.06, 0.23), (75.15, 0.32), (43.22, 0.46)),
    "ldr_kl": ((91.38, 0.35), (89.01, 0.09), (85.46, 0.11), (74.93, 0.33), (34.78, 0.67)),
    "ce_eps+mae": ((91.40, 0.12), (89.29, 0.10), (85.93, 0.19), (79.52, 0.14), (58.96, 0.70)),
    "0.01*fl_eps(detach=true)+10*mae": ((91.11, 0.13), (89.13, 0.25), (86.15, 0.29), (79.81, 0.27), (58.02, 1.12)),
    "anl_ce": (None, None, (87.16, None), None, (62.28, None)),
}
SOURCES = (
    "Published: mean ± standard deviation of 3 runs, Wang et al. 2024 (epsilon-softmax, NeurIPS), table 2; "
    "anl_ce: Wang et al. 2025, arXiv:2507.17692, whose spread was not at hand."
)

# What the recipe takes for granted, by the names of a run's settings and results.
UNCHANGED = {
    "optim_args": "momentum=0.9",
    "max_steps": -1,
    "do_train": True,
    "noise_sampling": "quota",
    "noise_contaminated": False,
    "config_overrides": None,
}
# Changes what is counted, not what is learned; HfArgumentParser makes False of its default, "no".
COUNTS_ONLY = ("include_num_input_tokens_seen",)
IMAGES = {"train_images": 50_000, "test_images": 10_000}


@dataclass
class TableArguments:
    losses: list[str] = field(
        default_factory=lambda: "ce fl(detach=true) gce sce nce+rce nce+agce anl_ce ce_eps+mae".split(),
        metadata={"help": "Loss specs; bare names get the published hyper-parameters."},
    )
    noises: list[str] = field(
        default_factory=lambda: ["symmetric_40", "symmetric_80"],
        metadata={"help": "Noise specs, put on clean labels."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights, order and noise."}
    )


def published_accuracy(loss: str, noise: str) -> tuple[float, float | None] | None:
    """Mean and standard deviation in percent that were published for a loss spec; None where none were."""
    for name, row in PUBLISHED.items():
        if parse_loss_spec(recipe_loss(RECIPE, name)) == parse_loss_spec(loss):
            return dict(zip(PUBLISHED_NOISES, row, strict=True)).get(noise)
    return None


def departures(results: list[dict]) -> list[str]:
    """What of the runs is not the recipe's, in words; each thing once."""
    flags = recipe_flags(RECIPE)
    # Of the data set only the images and classes are compared, below: it may be a local copy.
    wanted = {key: value for key, value in flags.items() if key != "dataset" and value is not None} | UNCHANGED
    batch_parts = ("per_device_train_batch_size", "gradient_accumulation_steps", "processes")
    found = []
    for result in results:
        settings = result["settings"]
        for key, value in (wanted | {"weight_decay": default_weight_decay(settings["loss"])}).items():
            if key in settings and key not in batch_parts and settings[key] != value:
                of_loss = f" for {settings['loss']}" if key == "weight_decay" else ""
                found.append(f"{key} {settings[key]} instead of {value}{of_loss}")
        batch = math.prod(settings[part] for part in batch_parts)
        if batch != flags["per_device_train_batch_size"]:
            found.append(f"{batch} images a step instead of {flags['per_device_train_batch_size']}")
        for key, value in IMAGES.items():
            if result[key] != value:
                found.append(f"{result[key]} {key.replace('_', ' ')} instead of {value}")
        found += [f"{key}={value}" for key, value in settings["other_arguments"].items() if key not in COUNTS_ONLY]
        if result["label_names"] != list(CIFAR10_CLASSES):
            found.append("other classes than CIFAR-10's")
    return _distinct(found)


def paper_table(results: list[dict]) -> dict:
    """Measured beside published accuracy, in percent: a row a (noise, loss), in the order of the results.

    Args:
        results (`list[dict]`): of runs that differ in loss, noise and seed alone; what `run_sweep` returns.

    Returns:
        `dict`: `rows`, each with noise, loss, seeds, accuracies, mean, std (sample; None for one seed),
        published_mean, published_std and difference (measured - published), None where nothing was published;
        `departures` from the recipe in words; recipe, dataset, model, epochs, sources, hardware and versions.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["settings"]["noise"], result["settings"]["loss"]), []).append(result)
    rows = []
    for (noise, loss), runs in groups.items():
        accuracies = [100 * run["accuracy"]["last"] for run in runs]
        published_mean, published_std = published_accuracy(loss, noise) or (None, None)
        rows.append(
            {
                "noise": noise,
                "loss": loss,
                "seeds": [run["settings"]["seed"] for run in runs],
                "accuracies": accuracies,
                "mean": mean(accuracies),
                "std": stdev(accuracies) if len(accuracies) > 1 else None,
                "published_mean": published_mean,
                "published_std": published_std,
                "difference": None if published_mean is None else mean(accuracies) - published_mean,
            }
        )
    settings = results[0]["settings"]
    return {
        "recipe": RECIPE,
        "dataset": settings["dataset"],
        "model": settings["model"],
        "epochs": settings["num_train_epochs"],
        "departures": departures(results),
        "sources": SOURCES,
        "rows": rows,
        "hardware": _distinct(result["hardware"] for result in results),
        "versions": _distinct(result["versions"] for result in results),
    }


def to_markdown(table: dict) -> str:
    """Of what [`paper_table`] gives: the caption, which names what departs from the recipe, and the table."""
    torch_versions = ", ".join(_distinct(versions["torch"] for versions in table["versions"]))
    caption = (
        f"Test accuracy in percent after the last of {table['epochs']:g} epochs, {table['model']} on "
        f"{table['dataset']}, recipe {table['recipe']}. Measured: mean ± sample standard deviation (number of seeds), "
        f"on {', '.join(table['hardware'])}, torch {torch_versions}. {table['sources']}"
    )
    if table["departures"]:
        caption += f"\n\n**Not by the recipe**: {'; '.join(table['departures'])}."
    rows = []
    for row in table["rows"]:
        count = len(row["seeds"])
        measured = f"{_with_spread(row['mean'], row['std'])} ({count} seed{'s' * (count > 1)})"
        published = difference = "–"
        if row["published_mean"] is not None:
            published = _with_spread(row["published_mean"], row["published_std"])
            difference = f"{row['difference']:+.2f}"
        rows.append([row["noise"], compact(row["loss"]), measured, published, difference])
    return f"{caption}\n\n{markdown_table(['noise', 'loss', 'measured', 'published', 'difference'], rows)}"


def _distinct(values: Iterable) -> list:
    found = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _with_spread(average: float, spread: float | None) -> str:
    return f"{average:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def main() -> None:
    parser = HfArgumentParser(
        (TableArguments, DataArguments, ModelArguments, ExperimentArguments),
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.set_defaults(output_dir="runs/paper_table", **recipe_flags(RECIPE))
    table, data, model, args = parser.parse_args_into_dataclasses()
    flags = [flag for flag in REPLACED_FLAGS if flag != "model"]
    refuse_replaced_flags(parser, Run(data, model, args), flags)
    if not args.do_eval:
        parser.error("--do_eval: the table is of test accuracies")
    try:
        losses = [recipe_loss(RECIPE, loss) for loss in table.losses]
    except ValueError as error:
        parser.error(f"--losses: {error}")
    results = run_sweep(losses, table.noises, [model.model], table.seeds, data, model, args)
    if args.process_index == 0:
        content, output_dir = paper_table(results), Path(args.output_dir)
        write_json(output_dir / "paper_table.json", content)
        replace_text(output_dir / "paper_table.md", to_markdown(content) + "\n")
        print(to_markdown(content))
        print(f"paper_table.md, paper_table.json and runs: {output_dir.resolve()}")
    leave_processes()


if __name__ == "__main__":
    run_command(
        main,
        "finished runs and the newest checkpoint of the one at hand are kept in --output_dir; this goes on:",
    )
