"""A training that is over in seconds: its images and its arguments."""

import datasets
import numpy as np
from PIL import Image

from hf_dit.training.arguments import DataArguments, DiTTrainingArguments, ModelArguments

COLOURS = {"blue": (40, 60, 210), "green": (50, 190, 60), "red": (220, 50, 40)}


def picture(colour, height=8, width=8, seed=0):
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def write_parquet(folder, columns, features):
    folder.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def arguments(dataset, output_dir, **changes):
    """The three dataclasses of a small training, with changed fields."""
    values = {
        "dataset_name": dataset,
        "model": "dit-micro-2",
        "output_dir": str(output_dir),
        "use_cpu": True,
        "train_batch_size": 4,
        "max_train_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "checkpointing_steps": 0,
        "save_images_steps": 0,
        "sample_steps": 2,
        "num_sample_images": 3,
        "sample_guidance_scales": [1.0, 4.0],
        **changes,
    }
    if values["dataset_name"] is None:
        del values["dataset_name"]
    kinds = (DataArguments, ModelArguments, DiTTrainingArguments)
    return [kind(**{k: v for k, v in values.items() if k in kind.__dataclass_fields__}) for kind in kinds]
