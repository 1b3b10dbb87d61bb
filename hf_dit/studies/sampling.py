"""Sampling studies: guidance x steps x attention x scheduler from one initial noise, with pictures, times and memory.

    study = run_study(pipeline, [0, 3, 5], steps=(20, 50), attentions=("full", "na7"), output_dir="runs/study")

A study's folder holds `study.json`, `study.md` (the table), a labelled picture for each pair of attention and
scheduler, and under `cells/` a folder with the images of each cell, images alone, as scores of images want them.
"""

import copy
import hashlib
import itertools
import json
import math
import operator
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from hf_common.environment import hardware, versions
from hf_common.files import replace_text, save_picture, slug, write_json

from .. import LIBRARIES
from ..attention.spec import format_attn_spec, make_attn_processors
from ..models.dit import DiTModel
from ..sampling.pictures import contact_sheet, image_grid
from ..sampling.pipeline import DiTImagePipeline
from .benchmark import PeakMemory, synchronize

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}
# Their "leading" spacing of n steps begins at timestep n (1000 // (n + 1)): at 950 for 50 steps, but at 500 for 500,
# where a sample is no pure noise, and 1000 steps fail.
WITHOUT_LEADING = (DPMSolverMultistepScheduler, UniPCMultistepScheduler)
WARM_UP_STEPS = 2
WIDEST_CELL = 640  # pixels, unless its images as they are need more
USUAL_SIDE = 96  # of an image in a picture
MOST_NAMES = 20  # of classes in a title
FOREIGN = "custom"  # attention by processors that are not of this package


def make_scheduler(name: str, config: dict, learn_sigma: bool) -> SchedulerMixin:
    """The scheduler of that name for a model that was trained with the noise schedule of `config`.

    Everything that the two classes both know is taken over, values that were defaults there included: other classes
    have other defaults (`HeunDiscreteScheduler` another noise schedule, `EulerDiscreteScheduler` another spacing of
    the timesteps), and a study compares samplers on the same ones. Two exceptions: DPM-Solver and UniPC, whose
    `leading` spacing does not reach the noisy end at many steps, have `trailing` in its place; a cell records its
    spacing, first and last timestep. `ddpm` is the paper's ancestral sampling: with the learned variance where the
    model has one. The others integrate the noise prediction alone.

    Args:
        name: a key of `SCHEDULERS`.
        config: the config of the pipeline's scheduler.
        learn_sigma: whether the model's output holds a learned variance.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"schedulers must be among {', '.join(SCHEDULERS)}; got {name!r}")
    cls = SCHEDULERS[name]
    shared = {key: value for key, value in config.items() if key not in ("_use_default_values", "variance_type")}
    if cls is DDPMScheduler:
        given = config.get("variance_type") or "fixed_small"
        fixed = "fixed_small" if given.startswith("learned") else given
        return cls.from_config(shared, variance_type="learned_range" if learn_sigma else fixed)
    if cls in WITHOUT_LEADING and shared.get("timestep_spacing") == "leading":
        shared["timestep_spacing"] = "trailing"
    return cls.from_config(shared)


def image_generators(seed: int, count: int) -> list[torch.Generator]:
    """One generator (on the CPU) for each image of a cell: its initial noise first, then that of its steps.

    The i-th is the same whatever `count` is, and no image of a seed equals one of another seed. Pass the list as the
    pipeline's `generator` to draw the images of a study again.
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more; got {seed}")
    seeds = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [torch.Generator().manual_seed(int(value) >> 1) for value in seeds]  # 63 bits: what every device takes


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


def run_study(
    pipeline: DiTImagePipeline,
    class_labels: Sequence[int | str] | None = None,
    *,
    output_dir: str | os.PathLike,
    guidance_scales: Sequence[float] = (0.0, 1.0, 4.0, 10.0),
    steps: Sequence[int] = (50, 250, 500),
    attentions: Sequence[str | None] = (None,),
    schedulers: Sequence[str] = ("ddim",),
    images_per_class: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    guidance_interval: tuple[float, float] | None = None,
    cfg_channels: int | str = "all",
) -> dict:
    """Sample every cell that is not finished yet; write and return the whole study.

    Guidance 0 is the unconditional model, 1 the conditional one; above 1 the labels are exaggerated. All cells have
    the same labels and, image by image, the same initial noise and the same noise of the k-th step
    ([`image_generators`]), whatever the batch size. The pipeline is as it was afterwards, its attention included.

    A study can be interrupted, taken up again, and grown by further values of the four axes: a cell that is complete
    in `output_dir` is read and not run.

    Args:
        pipeline: on the device and in the dtype that the study is about.
        class_labels: ids or names, one image each and `images_per_class` times over; None for an unconditional model.
        output_dir: the folder of this study, made if it is not there.
        guidance_scales, steps, attentions, schedulers: the axes. `attentions` are specs, None for the model's own;
            `schedulers` are keys of `SCHEDULERS`, built by [`make_scheduler`] from the pipeline's own.
        images_per_class: images of a label (of a cell, for an unconditional model).
        batch_size: images that are sampled at once. Default: all of a cell.
        seed: 0 or more.
        guidance_interval, cfg_channels: as the pipeline takes them.

    Returns:
        The content of `study.json`: `settings`, `axes`, `pictures` and `cells`, in each of which are

        - the four values of the axes, `timesteps` (their number, first, last) and `timestep_spacing`;
        - `seconds` of the pipeline calls, decoding included, after a warm-up that does not count and with the device
          synchronised, `images_per_second`, `model_evaluations` (samples sent through the transformer);
        - `peak_memory_bytes` and what that is, `peak_memory_kind` ([`PeakMemory`]);
        - `change_from_most_steps`, `change_from_first_attention`: mean absolute difference of the pixels, in levels of
          0..255, to the cell with the most steps or with the first attention and else the same values; None where the
          axis has one value. Of samplers that draw noise at each step the former is no convergence.
        - `images` (paths), `hardware`, `versions`.

    Raises:
        ValueError: an axis is empty or holds a value twice or one that is not allowed, labels that the model has not,
            or `output_dir` holds another study; all of this before the first cell.
        ImportError, RuntimeError: an attention cannot run here (`DiTModel.check_attention`), also before that.
    """
    transformer = pipeline.transformer
    attentions = _attention_names(transformer, attentions)
    guidance_scales = [float(scale) for scale in guidance_scales]
    axes = {
        "attentions": attentions,
        "schedulers": list(schedulers),
        "guidance_scales": guidance_scales,
        "steps": list(steps),
    }
    check_axes(guidance_scales, steps, attentions, schedulers)
    for name, value in (("images_per_class", images_per_class), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")
    most = pipeline.scheduler.config.num_train_timesteps
    if max(steps) > most:
        raise ValueError(f"steps must be at most the {most} of the training; got {max(steps)}")
    unique_labels = None if class_labels is None else class_ids(pipeline, class_labels)
    labels = [None] * images_per_class if unique_labels is None else unique_labels * images_per_class
    built = {
        name: make_scheduler(name, pipeline.scheduler.config, transformer.config.learn_sigma) for name in schedulers
    }

    device, folder = transformer.device, Path(output_dir)
    settings = {
        "class_labels": unique_labels,
        "images_per_class": images_per_class,
        "batch_size": len(labels) if batch_size is None else min(batch_size, len(labels)),
        "seed": seed,
        "guidance_interval": None if guidance_interval is None else list(guidance_interval),
        "cfg_channels": cfg_channels,
        "trained_with": _plain(pipeline.scheduler.config),
        "dtype": str(transformer.dtype).removeprefix("torch."),
        "hardware": hardware(device),
        "weights": weights_digest(transformer, pipeline.vae),
    }
    _refuse_another_study(folder / "study.json", settings, folder)
    study = {"settings": settings, "axes": axes, "cells": [], "pictures": []}
    cells = [Cell(*values) for values in itertools.product(attentions, schedulers, guidance_scales, steps)]
    results = {cell: _finished(folder, cell, settings) for cell in cells}
    missing = [cell for cell in cells if results[cell] is None]
    worker = copy.copy(pipeline)  # its scheduler, progress bar and counts are its own, its models are shared
    with _attention_kept(transformer) as own:
        for attention in dict.fromkeys(cell.attention for cell in missing):
            _set_attention(transformer, attention, own)
            height, width = _sample_size(transformer)
            transformer.check_attention(height=height, width=width)
        for scheduler in dict.fromkeys(cell.scheduler for cell in missing):
            worker.scheduler = built[scheduler]
            _try(worker, labels[0], guidance_scales, settings)
        for cell in tqdm(missing, desc="cells", initial=len(cells) - len(missing), total=len(cells)):
            _set_attention(transformer, cell.attention, own)
            worker.scheduler = built[cell.scheduler]
            results[cell] = _run_cell(worker, cell, labels, settings, folder)
            study["cells"] = [result for result in results.values() if result is not None]
            write_json(folder / "study.json", study)
    study["cells"] = list(results.values())
    _add_changes(study, folder)
    for attention, scheduler in itertools.product(attentions, schedulers):
        name = "study.png"
        if len(attentions) * len(schedulers) > 1:
            name = f"study_{slug(attention)}_{scheduler}.png"
        save_picture(_picture(study, attention, scheduler, _names(pipeline, unique_labels), folder), folder / name)
        study["pictures"].append(name)
    write_json(folder / "study.json", study)
    replace_text(folder / "study.md", to_markdown(study) + "\n")
    return study


def class_ids(pipeline: DiTImagePipeline, labels: Sequence[int | str]) -> list[int]:
    """Ids of classes given by ids or names; a ValueError for what the model does not have, and for a label twice.

    What is neither a whole number nor a name is a TypeError.
    """
    num_classes = pipeline.transformer.config.num_classes
    if num_classes is None:
        raise ValueError(f"class_labels must be None: the model is unconditional; got {list(labels)}")
    ids = [pipeline.get_label_ids(label)[0] if isinstance(label, str) else operator.index(label) for label in labels]
    if not ids or len(set(ids)) != len(ids) or not all(0 <= class_id < num_classes for class_id in ids):
        raise ValueError(f"class_labels must be different classes, ids of 0 to {num_classes - 1}; got {list(labels)}")
    return ids


def check_axes(
    guidance_scales: Sequence[float],
    steps: Sequence[int],
    attentions: Sequence[str | None],
    schedulers: Sequence[str],
) -> None:
    """Raise a ValueError if an axis is empty, or holds a value twice or one that no pipeline can take."""
    axes = {
        "guidance_scales": guidance_scales,
        "steps": steps,
        "attentions": attentions,
        "schedulers": schedulers,
    }
    for name, values in axes.items():
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be one or more different values; got {list(values)}")
    for scale in guidance_scales:
        if not math.isfinite(scale):
            raise ValueError(f"guidance_scales must be finite; got {scale}")
    for count in steps:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"steps must be whole numbers of 1 or more; got {count!r}")
    for name in schedulers:
        if name not in SCHEDULERS:
            raise ValueError(f"schedulers must be among {', '.join(SCHEDULERS)}; got {name!r}")


def to_markdown(study: dict) -> str:
    """The table of a study, a row a cell, and a line that says how its figures came to be."""
    kind = study["cells"][0]["peak_memory_kind"]
    heads = ["attention", "scheduler", "guidance", "steps", "seconds", "images/s", "model evaluations"]
    heads += ["peak MiB"] * (kind is not None)
    changes = {
        "change_from_most_steps": f"change from {max(study['axes']['steps'])} steps",
        "change_from_first_attention": f"change from {study['axes']['attentions'][0]}",
    }
    changes = {key: head for key, head in changes.items() if any(cell[key] is not None for cell in study["cells"])}
    heads += changes.values()
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for cell in study["cells"]:
        cells = [cell["attention"], cell["scheduler"], f"{cell['guidance_scale']:g}", str(cell["num_inference_steps"])]
        cells += [f"{cell['seconds']:.2f}", f"{cell['images_per_second']:.3g}", str(cell["model_evaluations"])]
        cells += [] if kind is None else [f"{cell['peak_memory_bytes'] / 2**20:.0f}"]
        cells += ["-" if cell[key] is None else f"{cell[key]:.2f}" for key in changes]
        lines.append("| " + " | ".join(cells) + " |")
    settings, cell = study["settings"], study["cells"][0]
    spacing = ", ".join(dict.fromkeys(cell["timestep_spacing"] for cell in study["cells"]))
    notes = [
        f"{len(cell['images'])} images a cell in batches of {settings['batch_size']}, seed {settings['seed']}, "
        f"{settings['dtype']}, {settings['hardware']}, torch {cell['versions']['torch']}, diffusers "
        f"{cell['versions']['diffusers']}; timesteps {spacing}."
    ]
    if kind is not None:
        notes.append(f"Peak: {MEMORY_IN_WORDS[kind]}.")
    if changes:
        notes.append("Change: mean absolute difference of the pixels, in levels of 0 to 255.")
    return "\n".join(lines) + "\n\n" + " ".join(notes)


MEMORY_IN_WORDS = {
    "cuda_max_memory_allocated": "the most that tensors held on the GPU, the model's weights included",
    "process_peak_resident_set": "the most that the whole process held in RAM, libraries and weights included",
}


# ------------------------------------------------------------------------------------------------------------- a cell


def _run_cell(pipeline: DiTImagePipeline, cell: Cell, labels: list, settings: dict, folder: Path) -> dict:
    """Sample the images of a cell of the study in `folder`, write them and then what `_finished` reads."""
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


def _try(pipeline: DiTImagePipeline, label: int | None, guidance_scales: list[float], settings: dict) -> None:
    """One step with all guidance scales in one batch: whatever the pipeline refuses, it refuses now."""
    count = len(guidance_scales)
    pipeline.set_progress_bar_config(disable=True)
    _sample(pipeline, [label] * count, guidance_scales, 1, settings, image_generators(settings["seed"], count))


def _finished(folder: Path, cell: Cell, settings: dict) -> dict | None:
    """What an earlier run wrote of a complete cell; None where something of it is not there."""
    path = _cell_file(folder, cell)
    if not path.exists():
        return None
    _refuse_another_study(path, settings, folder)
    result = json.loads(path.read_text())
    result.pop("settings")
    return result if all((folder / image).exists() for image in result["images"]) else None


def _cell_file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.folder}.json"


def _add_changes(study: dict, folder: Path) -> None:
    """Fill in the differences of each cell to the one with the most steps, and to the one with the first attention."""
    axes = study["axes"]
    by_cell = {Cell(*(cell[name] for name in Cell._fields)): cell for cell in study["cells"]}
    pixels = {}
    for key, cell in by_cell.items():
        images = [np.asarray(Image.open(folder / image).convert("RGB"), dtype=np.int16) for image in cell["images"]]
        pixels[key] = np.stack(images)
    for key, cell in by_cell.items():
        others = {
            "change_from_most_steps": (len(axes["steps"]), key._replace(num_inference_steps=max(axes["steps"]))),
            "change_from_first_attention": (len(axes["attentions"]), key._replace(attention=axes["attentions"][0])),
        }
        for name, (values, other) in others.items():
            cell[name] = float(np.abs(pixels[key] - pixels[other]).mean()) if values > 1 else None


# --------------------------------------------------------------------------------------------------------- attentions


@contextmanager
def _attention_kept(transformer: DiTModel) -> Iterator[dict]:
    """Gives the model's processors, and gives them back to it at the end."""
    own = dict(transformer.attn_processors)
    try:
        yield own
    finally:
        transformer.set_attn_processor(own)


def _attention_names(transformer: DiTModel, attentions: Sequence[str | None]) -> list[str]:
    """Specs in their canonical form, the model's own for None."""
    own = format_attn_spec(list(transformer.attn_processors.values())) or FOREIGN
    layers = len(transformer.transformer_blocks)
    return [own if spec is None else format_attn_spec(make_attn_processors(spec, layers)) for spec in attentions]


def _set_attention(transformer: DiTModel, name: str, own: dict) -> None:
    """Put an attention by name into the model; its own processors where they are what is meant."""
    own_name = format_attn_spec(list(own.values())) or FOREIGN
    transformer.set_attn_processor(own if name == own_name else name)


def _sample_size(transformer: DiTModel) -> tuple[int, int]:
    size = transformer.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


# ----------------------------------------------------------------------------------------------------------- settings


def weights_digest(*modules: nn.Module | None) -> str:
    """What tells models with other weights apart: a hash of all tensors."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in (module.state_dict() if module is not None else {}).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _plain(config: dict) -> dict:
    """A scheduler's config as JSON can hold it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(kept, default=str), parse_constant=str)


def _refuse_another_study(path: Path, settings: dict, folder: Path) -> None:
    """Raise a ValueError if there is a JSON file whose `settings` are others than these."""
    if not path.exists():
        return
    there = json.loads(path.read_text())["settings"]
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


# ----------------------------------------------------------------------------------------------------------- pictures


def _picture(study: dict, attention: str, scheduler: str, names: list[str], folder: Path) -> Image.Image:
    """Rows of guidance, columns of steps; a cell is a sheet of its images."""
    settings, axes = study["settings"], study["axes"]
    cells = [cell for cell in study["cells"] if (cell["attention"], cell["scheduler"]) == (attention, scheduler)]
    by_column = settings["images_per_class"] > 1 and len(names) > 1
    sheets = []
    for cell in cells:
        images = [Image.open(folder / image) for image in cell["images"]]
        columns = len(names) if by_column else _columns(len(images))
        scale = max(1, min(-(-USUAL_SIDE // min(images[0].size)), WIDEST_CELL // (columns * images[0].width)))
        sheets.append(contact_sheet(images, columns, scale=scale))
    plain = settings["cfg_channels"] == "all" and settings["guidance_interval"] is None
    words = {0.0: "\n(unconditional)", 1.0: "\n(conditional)"} if plain and names else {}
    shown = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")
    title = f"attention {attention}, scheduler {scheduler} ({cells[0]['timestep_spacing']}), seed {settings['seed']}"
    return image_grid(
        sheets,
        len(axes["guidance_scales"]),
        len(axes["steps"]),
        row_names=[f"guidance {scale:g}{words.get(scale, '')}" for scale in axes["guidance_scales"]],
        column_names=[f"{count} step{'s' * (count > 1)}" for count in axes["steps"]],
        title=title + (f"\nin each cell{', column by column' * by_column}: {shown}" if names else ""),
        gap=12,
        scale=1,
    )


def _names(pipeline: DiTImagePipeline, ids: list[int] | None) -> list[str]:
    """The first of each class's names, or `class 3`."""
    names = pipeline.id2label or {}
    return [
        names[class_id].split(",")[0].strip() if class_id in names else f"class {class_id}" for class_id in ids or ()
    ]


def _columns(images: int) -> int:
    """Of a sheet between square and twice as wide as high, the columns that leave the fewest places empty."""
    least = math.ceil(math.sqrt(images))
    return min(range(least, 2 * least + 1), key=lambda columns: (-images % columns, columns))
