"""Sampling studies: guidance x steps x attention x scheduler from one initial noise, with pictures, times and memory.

    study = run_study(pipeline, [0, 3, 5], steps=(20, 50), attentions=("full", "na7"), output_dir="runs/study")

A study's folder holds `study.json`, `study.md` (the table), a labelled picture for each pair of attention and
scheduler, and under `cells/` a folder with the images of each cell, images alone, as scores of images want them.

`study.json` has `settings`, `axes`, `pictures` and `cells`, in each of which are

- the four values of the axes, `timesteps` (their number, first, last) and `timestep_spacing`;
- `seconds` of the pipeline calls, decoding included, after a warm-up that does not count and with the device
  synchronised, `images_per_second`, `model_evaluations` (samples sent through the transformer);
- `peak_memory_bytes` and what that is, `peak_memory_kind` ([`PeakMemory`]);
- `change_from_most_steps`, `change_from_first_attention`: mean absolute difference of the pixels, in levels of 0..255,
  to the cell with the most steps or with the first attention and else the same values; None where the axis has one
  value. Of samplers that draw noise at each step the former is no convergence.
- `images` (paths), `hardware`, `versions`.
"""

import copy
import itertools
import json
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from hf_common.environment import hardware
from hf_common.files import replace_text, write_json
from hf_common.locks import claimed

from ..attention.spec import format_attn_spec, in_tokens, make_attn_processors, seeing_all
from ..models.dit import DiTModel
from ..models.sizes import height_and_width
from ..models.weights import weights_digest
from ..sampling.pipeline import DiTImagePipeline
from .axes import check_axes
from .cells import Cell, finished_cell, refuse_another_study, run_cell, try_scales
from .schedulers import default_scheduler, sampling_scheduler, scheduler_class
from .study_report import add_changes, save_pictures, study_markdown

STUDY = "study.json"
FOREIGN = "custom"  # attention by processors that are not of this package


def run_study(
    pipeline: DiTImagePipeline,
    class_labels: Sequence[int | str] | None = None,
    *,
    output_dir: str | os.PathLike,
    guidance_scales: Sequence[float] = (0.0, 1.0, 4.0, 10.0),
    steps: Sequence[int] = (50, 250, 500),
    attentions: Sequence[str | None] = (None,),
    schedulers: Sequence[str] | None = None,
    images_per_class: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    guidance_interval: tuple[float, float] | None = None,
    cfg_channels: int | str = "all",
) -> dict:
    """Sample every cell that is not finished yet; write and return the whole study, the content of `study.json`.

    Guidance 0 is the unconditional model, 1 the conditional one; above 1 the labels are exaggerated. All cells have
    the same labels and, image by image, the same initial noise and the same noise of the k-th step
    ([`image_generators`]), whatever the batch size. The pipeline is as it was afterwards, its attention included.

    A study can be interrupted, taken up again, and grown by further values of the four axes: a cell that is complete
    in `output_dir` is read and not run. Several processes may run one study at the same time: each takes the next
    cell that is free, and waits at the end until all are there.

    Args:
        pipeline: on the device and in the dtype that the study is about.
        class_labels: ids or names, one image each and `images_per_class` times over; None for an unconditional model.
        output_dir: the folder of this study, made if it is not there.
        guidance_scales, steps, attentions, schedulers: the axes. `attentions` are specs, None for the model's own;
            `schedulers` are names for [`scheduler_class`], None for `ddim`, or `euler` of a flow.
        images_per_class: images of a label (of a cell, for an unconditional model).
        batch_size: images that are sampled at once. Default: all of a cell.
        seed, guidance_interval, cfg_channels: 0 or more; the others as the pipeline takes them.

    Raises:
        ValueError: an axis is empty or holds a value twice or one that is not allowed, labels that the model has not,
            or `output_dir` holds another study; all of this before the first cell.
        ImportError, RuntimeError: an attention cannot run here (`DiTModel.check_attention`), also before that.
    """
    folder = Path(output_dir)
    axes: dict[str, list] = {  # in the order of a `Cell`
        "attentions": _attention_names(pipeline.transformer, attentions),
        "schedulers": [default_scheduler(pipeline.scheduler)] if schedulers is None else list(schedulers),
        "guidance_scales": [float(scale) for scale in guidance_scales],
        "steps": list(steps),
    }
    _check_study(pipeline, axes, images_per_class, batch_size)
    ids = None if class_labels is None else class_ids(pipeline, class_labels)
    settings = _common_settings(pipeline, ids, images_per_class, batch_size, seed, guidance_interval, cfg_channels)
    refuse_another_study(folder / STUDY, settings, folder)
    study = {"settings": settings, "axes": axes, "cells": [], "pictures": []}
    _run_cells(pipeline, study, folder)
    add_changes(study, folder)
    if whole := _seeing_all(pipeline.transformer, axes["attentions"]):
        study["sees_all"] = whole
    study["pictures"] = save_pictures(study, _class_names(pipeline, ids), folder)
    write_json(folder / STUDY, study)
    replace_text(folder / "study.md", study_markdown(study) + "\n")
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


def _check_study(pipeline: DiTImagePipeline, axes: dict, images_per_class: int, batch_size: int | None) -> None:
    check_axes(**axes)
    for scheduler in axes["schedulers"]:
        scheduler_class(scheduler, pipeline.scheduler)
    for name, value in (("images_per_class", images_per_class), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}")
    most = pipeline.scheduler.config.num_train_timesteps
    if max(axes["steps"]) > most:
        raise ValueError(f"steps must be at most the {most} of the training; got {max(axes['steps'])}")


def _common_settings(
    pipeline: DiTImagePipeline,
    ids: list[int] | None,
    images_per_class: int,
    batch_size: int | None,
    seed: int,
    guidance_interval: tuple[float, float] | None,
    cfg_channels: int | str,
) -> dict:
    """Everything that the cells have in common, as JSON values."""
    transformer, images = pipeline.transformer, images_per_class * (1 if ids is None else len(ids))
    return {
        "class_labels": ids,
        "images_per_class": images_per_class,
        "batch_size": images if batch_size is None else min(batch_size, images),
        "seed": seed,
        "guidance_interval": None if guidance_interval is None else list(guidance_interval),
        "cfg_channels": cfg_channels,
        "trained_with": plain_config(pipeline.scheduler.config),
        "dtype": str(transformer.dtype).removeprefix("torch."),
        "hardware": hardware(transformer.device),
        "weights": weights_digest(transformer, pipeline.vae),
    }


def plain_config(config: dict) -> dict:
    """A scheduler's config as JSON can hold it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.loads(json.dumps(kept, default=str), parse_constant=str)


def _run_cells(pipeline: DiTImagePipeline, study: dict, folder: Path) -> None:
    """Fill in the cells of a study: those that an earlier run wrote, and the others, written down one by one."""
    transformer, settings, axes = pipeline.transformer, study["settings"], study["axes"]
    labels = (settings["class_labels"] or [None]) * settings["images_per_class"]
    cells = [Cell(*values) for values in itertools.product(*axes.values())]
    results = {cell: finished_cell(folder, cell, settings) for cell in cells}
    missing = [cell for cell in cells if results[cell] is None]
    built = {
        name: sampling_scheduler(name, pipeline.scheduler, transformer.config.learn_sigma)
        for name in axes["schedulers"]
    }
    worker = copy.copy(pipeline)  # its scheduler, progress bar and counts are its own, its models are shared
    with _attention_kept(transformer) as own:
        for attention in dict.fromkeys(cell.attention for cell in missing):
            _set_attention(transformer, attention, own)
            height, width = height_and_width(transformer.config.sample_size)
            transformer.check_attention(height=height, width=width)
        for scheduler in dict.fromkeys(cell.scheduler for cell in missing):
            worker.scheduler = built[scheduler]
            try_scales(worker, labels[0], axes["guidance_scales"], settings)
        claims = claimed(missing, lambda cell: folder / "cells" / ".locks" / cell.folder)
        for cell in tqdm(claims, desc="cells", initial=len(cells) - len(missing), total=len(cells)):
            results[cell] = finished_cell(folder, cell, settings)  # perhaps by another process meanwhile
            if results[cell] is None:
                _set_attention(transformer, cell.attention, own)
                worker.scheduler = built[cell.scheduler]
                results[cell] = run_cell(worker, cell, labels, settings, folder)
            study["cells"] = [result for result in results.values() if result is not None]
            write_json(folder / STUDY, study)
    study["cells"] = list(results.values())


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
    return [
        own if spec is None else format_attn_spec(make_attn_processors(spec, layers)) or FOREIGN for spec in attentions
    ]


def _seeing_all(transformer: DiTModel, names: Sequence[str]) -> list[str]:
    """`"na9 is full attention on a grid of 8 x 8 tokens"`, for each local pattern that is."""
    patch = transformer.config.patch_size
    height, width = (side // patch for side in height_and_width(transformer.config.sample_size))
    items = [item for name in names if name != FOREIGN for item in seeing_all(name, (height, width))]
    return [f"{item} is full attention on {in_tokens((height, width))}" for item in dict.fromkeys(items)]


def _set_attention(transformer: DiTModel, name: str, own: dict) -> None:
    """Put an attention by name into the model; its own processors where they are what is meant."""
    own_name = format_attn_spec(list(own.values())) or FOREIGN
    transformer.set_attn_processor(own if name == own_name else name)


def _class_names(pipeline: DiTImagePipeline, ids: list[int] | None) -> list[str]:
    """The first of each class's names, or `class 3`."""
    names = pipeline.id2label or {}
    return [
        names[class_id].split(",")[0].strip() if class_id in names else f"class {class_id}" for class_id in ids or ()
    ]
