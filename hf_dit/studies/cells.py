"""One cell of a sampling study: its images, its figures, its files."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hf_common.environment import hardware, versions
from hf_common.files import save_picture, slug, write_json
from hf_common.foreign import read_json

from .. import LIBRARIES
from ..sampling.pipeline import DiTImagePipeline
from .measure import PeakMemory, synchronize

WARM_UP_STEPS = 2


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
    if seed < 0:
        raise ValueError(f"seed must be 0 or more; got {seed}")
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [torch.Generator().manual_seed(int(value) >> 1) for value in seeds]  # 63 bits: what every device takes


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
    names = [f"cells/{cell.folder}/{position:05d}.png" for position in range(len(images))]
    for name, image in zip(names, images, strict=True):
        save_picture(image, folder / name)
    result = {
        **cell._asdict(),
        "timesteps": {"number": len(timesteps), "first": timesteps[0], "last": timesteps[-1]},
        "timestep_spacing": pipeline.scheduler.config.timestep_spacing,
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
    return pipeline(
        labels if conditional else None,
        batch_size=1 if conditional else len(labels),
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        guidance_interval=None if interval is None else tuple(interval),
        cfg_channels=settings["cfg_channels"],
        generator=generators,
    ).images


def try_scales(pipeline: DiTImagePipeline, label: int | None, guidance_scales: list[float], settings: dict) -> None:
    """One step with all guidance scales in one batch: whatever the pipeline refuses, it refuses now."""
    count = len(guidance_scales)
    pipeline.set_progress_bar_config(disable=True)
    _sample(pipeline, [label] * count, guidance_scales, 1, settings, image_generators(settings["seed"], count))


def finished_cell(folder: Path, cell: Cell, settings: dict) -> dict | None:
    """What an earlier run wrote of a complete cell; None where something of it is not there."""
    path = _cell_file(folder, cell)
    if not path.exists():
        return None
    refuse_another_study(path, settings, folder)
    result = read_json(path)
    result.pop("settings")
    return result if all((folder / image).exists() for image in result["images"]) else None


def _cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.folder}.json"


def refuse_another_study(path: Path, settings: dict, folder: Path) -> None:
    """Raise a ValueError if there is a JSON file whose `settings` are others than these."""
    if not path.exists():
        return
    there = read_json(path)["settings"]
    here = json.loads(json.dumps(settings))
    differences = [
        f"{name} was {there.get(name)!r} and is {here.get(name)!r}"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(
            f"output_dir {str(folder)!r} holds another study: {'; '.join(differences)}; choose another output_dir"
        )
