"""One cell of a sampling study: its images, its figures, its files."""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hf_common.environment import hardware, versions
from hf_common.files import save_picture, slug, write_json
from hf_common.foreign import Check, check_fields, dict_of, file_name, list_of, number, read_json, refuse, short, whole

from .. import LIBRARIES
from ..sampling.pipeline import DiTImagePipeline
from .axes import SCHEDULERS
from .measure import PeakMemory, synchronize

WARM_UP_STEPS = 2
CELL_FIELDS: dict[str, Check] = {  # of the file of a cell, and of a cell in a study, which has no settings of its own
    "attention": str,
    "scheduler": str,
    "guidance_scale": number(),
    "num_inference_steps": whole(1),
    "timesteps": lambda value: dict_of(number(0))(value) and value.keys() == {"number", "first", "last"},
    "timestep_spacing": str,
    "seconds": number(0),
    "images_per_second": number(sys.float_info.min),
    "model_evaluations": whole(),
    "peak_memory_bytes": (whole(), None),
    "peak_memory_kind": lambda value: value in (None, "cuda_max_memory_allocated", "process_peak_resident_set"),
    "images": list_of(str),
    "hardware": str,
    "versions": lambda value: dict_of(str)(value) and {"torch", "diffusers"} <= value.keys(),
}


SETTINGS_FIELDS: dict[str, Check] = {  # what the cells of a study have in common
    "class_labels": (list_of(whole()), None),
    "images_per_class": whole(1),
    "batch_size": whole(1),
    "seed": whole(),
    "guidance_interval": (list_of(number(0), 2), None),
    "cfg_channels": lambda value: value == "all" or type(value) is int,
    "trained_with": dict,
    "dtype": lambda value: value in ("float32", "bfloat16", "float16", "float64"),
    "hardware": str,
    "weights": str,
}
AXES_FIELDS: dict[str, Check] = {
    "attentions": list_of(str),
    "schedulers": list_of(lambda value: value in SCHEDULERS or (isinstance(value, str) and value.isidentifier())),
    "guidance_scales": list_of(number()),
    "steps": list_of(whole(1)),
}


class Cell(NamedTuple):
    """What one cell of a study varies."""

    attention: str
    scheduler: str
    guidance_scale: float
    num_inference_steps: int

    @property
    def folder(self) -> str:
        return (
            f"{slug(self.attention)}_{self.scheduler}_guidance{self.guidance_scale!r}_steps{self.num_inference_steps}"
        )


def image_generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator (on the CPU) for each image of a cell: its initial noise first, then that of its steps.

    The i-th is the same whatever `count` is, and no image of a seed equals one of another seed. Pass the list as the
    pipeline's `generator` to draw the images of a study again.
    """
    return [torch.Generator().manual_seed(own) for own in image_seeds(seed, count)]


def image_seeds(seed: int, count: int) -> list[int]:
    """The seeds of [`image_generators`], which take a thousandth of their memory: for many images."""
    if seed < 0:
        raise ValueError(f"seed must be 0 or more; got {seed}")
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [int(value) >> 1 for value in seeds]  # 63 bits: what every device takes


def run_cell(pipeline: DiTImagePipeline, cell: Cell, labels: list, settings: dict, folder: Path) -> dict:
    """Sample the images of a cell of the study in `folder`, write them and then what [`finished_cell`] reads."""
    device, size = pipeline.transformer.device, settings["batch_size"]
    starts = range(0, len(labels), size)

    def sample(start: int, generators: list[torch.Generator], steps: int) -> list[Image.Image]:
        part = slice(start, start + size)
        return _sample(pipeline, labels[part], cell.guidance_scale, steps, settings, generators[part])

    pipeline.set_progress_bar_config(leave=False, desc="warm-up")
    # The last batch may be of another size, for which a compiled kernel compiles anew.
    for start in dict.fromkeys((starts[0], starts[-1])):
        sample(start, image_generators(settings["seed"], len(labels)), min(WARM_UP_STEPS, cell.num_inference_steps))
    generators, images, evaluations = image_generators(settings["seed"], len(labels)), [], 0
    pipeline.set_progress_bar_config(leave=False, desc=f"guidance {cell.guidance_scale:g}")
    with PeakMemory(device) as peak:
        synchronize(device)
        begin = time.perf_counter()
        for start in starts:
            images += sample(start, generators, cell.num_inference_steps)
            evaluations += pipeline.num_model_evaluations
        synchronize(device)
        seconds = time.perf_counter() - begin

    timesteps = pipeline.scheduler.timesteps.tolist()
    names = _image_names(cell, len(images))
    for name, image in zip(names, images, strict=True):
        save_picture(image, folder / name)
    result = {
        **cell._asdict(),
        "timesteps": {"number": len(timesteps), "first": timesteps[0], "last": timesteps[-1]},
        "timestep_spacing": pipeline.scheduler.config.get("timestep_spacing", "linear"),
        "seconds": seconds,
        "images_per_second": len(images) / seconds,
        "model_evaluations": evaluations,
        "peak_memory_bytes": peak.bytes,
        "peak_memory_kind": peak.kind,
        "images": names,
        "hardware": hardware(device),
        "versions": versions(LIBRARIES),
    }
    write_json(_cell_file(folder, cell), {**result, "settings": settings})
    return result


def _sample(
    pipeline: DiTImagePipeline,
    labels: list,
    guidance_scale: float | list[float],
    steps: int,
    settings: dict,
    generators: list[torch.Generator],
) -> list[Image.Image]:
    interval, conditional = settings["guidance_interval"], settings["class_labels"] is not None
    output: Any = pipeline(
        labels if conditional else None,
        batch_size=1 if conditional else len(labels),
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        guidance_interval=None if interval is None else tuple(interval),
        cfg_channels=settings["cfg_channels"],
        generator=generators,
    )
    return output.images


def try_scales(pipeline: DiTImagePipeline, label: int | None, guidance_scales: list[float], settings: dict) -> None:
    """One step with all guidance scales in one batch: whatever the pipeline refuses, it refuses now."""
    count = len(guidance_scales)
    pipeline.set_progress_bar_config(disable=True)
    _sample(pipeline, [label] * count, guidance_scales, 1, settings, image_generators(settings["seed"], count))


def finished_cell(folder: Path, cell: Cell, settings: dict) -> dict | None:
    """What an earlier run wrote of a complete cell; None where something of it is not there, or damaged."""
    path = _cell_file(folder, cell)
    if not path.exists():
        return None
    try:
        result = read_json(path)
        check_fields(result, {"settings": dict}, path)
        check_fields(result["settings"], SETTINGS_FIELDS, path, "settings.")
    except ValueError:
        return None
    refuse_another_study(path, settings, folder)
    count = settings["images_per_class"] * len(settings["class_labels"] or [None])
    try:
        check_cell(result, path)
    except ValueError:
        return None
    result.pop("settings")
    same = all(result[name] == value for name, value in cell._asdict().items())
    if not same or result["images"] != _image_names(cell, count):
        return None
    return result if all(map(_readable, (folder / image for image in result["images"]))) else None


def _readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # of any kind, as the bytes may be: the picture is made again
        return False
    return True


def _image_names(cell: Cell, count: int) -> list[str]:
    return [f"cells/{cell.folder}/{position:05d}.png" for position in range(count)]


def check_cell(cell: dict, path: Path, where: str = "") -> None:
    """Raise a `ValueError` that names the file unless it holds, at this place, what is known of a cell."""
    check_fields(cell, CELL_FIELDS, path, where)
    if (cell["peak_memory_bytes"] is None) != (cell["peak_memory_kind"] is None):
        raise refuse(path, f"{where}peak_memory_bytes and peak_memory_kind must both be null, or none")


def check_study(study: dict, path: Path) -> None:
    """Raise a `ValueError` that names the file unless it holds a study, whose pictures are files beside it."""
    parts: dict[str, Check] = {
        "settings": dict,
        "axes": dict,
        "cells": list_of(dict),
        "pictures": list_of(str),
        "sees_all?": list_of(str),
    }
    check_fields(study, parts, path)
    check_fields(study["settings"], SETTINGS_FIELDS, path, "settings.")
    check_fields(study["axes"], AXES_FIELDS, path, "axes.")
    changes = {name: (number(0), None) for name in ("change_from_most_steps", "change_from_first_attention")}
    for place, cell in enumerate(study["cells"]):
        check_cell(cell, path, f"cells[{place}].")
        check_fields(cell, changes, path, f"cells[{place}].")
    expected = set(picture_names(study["axes"]).values())
    for name in study["pictures"]:
        file_name(name, path, expected)
    cells = {tuple(cell[name] for name in Cell._fields) for cell in study["cells"]}
    if study["pictures"] and cells != set(itertools.product(*study["axes"].values())):
        raise refuse(path, "must hold a cell for each combination of its axes")


def picture_names(axes: dict) -> dict[tuple[str, str], str]:
    """The file in a study's folder for each pair of attention and scheduler."""
    pairs = list(itertools.product(axes["attentions"], axes["schedulers"]))
    return {
        (attention, scheduler): f"study_{slug(attention)}_{scheduler}.png" if len(pairs) > 1 else "study.png"
        for attention, scheduler in pairs
    }


def _cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.folder}.json"


def refuse_another_study(path: Path, settings: dict, folder: Path) -> None:
    """Raise a ValueError if there is a JSON file whose `settings` are others than these."""
    if not path.exists():
        return
    content = read_json(path)
    check_fields(content, {"settings": dict}, path)
    there = content["settings"]
    here = json.loads(json.dumps(settings))
    differences = [
        f"{short(name, 40)} was {short(repr(there.get(name)), 60)} and is {short(repr(here.get(name)), 60)}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differences:
        words = short("; ".join(differences), 160)
        raise ValueError(f"output_dir {str(folder)!r} holds another study: {words}; choose another output_dir")
