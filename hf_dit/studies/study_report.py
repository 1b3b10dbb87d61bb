"""What a sampling study says: its table, its pictures, how its cells differ."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hf_common.files import save_picture
from hf_common.tables import escaped, markdown_table

from ..sampling.pictures import contact_sheet, image_grid
from .cells import Cell, picture_names

WIDEST_CELL = 640  # pixels, unless its images as they are need more
USUAL_SIDE = 96  # of an image in a picture
MOST_NAMES = 20  # of classes in a title
MEMORY_IN_WORDS = {
    "cuda_max_memory_allocated": "the most that tensors held on the GPU, the model's weights included",
    "process_peak_resident_set": "the most that the whole process held in RAM, libraries and weights included",
}


def study_markdown(study: dict) -> str:
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
    lines = []
    for cell in study["cells"]:
        cells = [cell["attention"], cell["scheduler"], f"{cell['guidance_scale']:g}", str(cell["num_inference_steps"])]
        cells += [f"{cell['seconds']:.2f}", f"{cell['images_per_second']:.3g}", str(cell["model_evaluations"])]
        cells += [] if kind is None else [f"{cell['peak_memory_bytes'] / 2**20:.0f}"]
        cells += ["-" if cell[key] is None else f"{cell[key]:.2f}" for key in changes]
        lines.append(cells)
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
    notes += [f"{escaped(sentence)}." for sentence in study.get("sees_all", ())]
    return f"{markdown_table(heads, lines)}\n\n{' '.join(notes)}"


def add_changes(study: dict, folder: Path) -> None:
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


def save_pictures(study: dict, names: Sequence[str], folder: Path) -> list[str]:
    """A picture for each attention and scheduler; their paths in the folder.

    Args:
        names: of the classes; empty for an unconditional model.
    """
    pictures = picture_names(study["axes"])
    for (attention, scheduler), name in pictures.items():
        save_picture(_picture(study, attention, scheduler, names, folder), folder / name)
    return list(pictures.values())


def _picture(study: dict, attention: str, scheduler: str, names: Sequence[str], folder: Path) -> Image.Image:
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


def _columns(images: int) -> int:
    """Of a sheet between square and twice as wide as high, the columns that leave the fewest places empty."""
    least = math.ceil(math.sqrt(images))
    return min(range(least, 2 * least + 1), key=lambda columns: (-images % columns, columns))
