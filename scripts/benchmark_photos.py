#!/usr/bin/env python
"""Images per second in training on photographs of many sizes, of RobustTrainer and of the stock Trainer.

    python scripts/benchmark_photos.py
    python scripts/benchmark_photos.py --dataset_name my_photos --workers 8 --json out.json

Both train the same small vision transformer on the same files with the same number of workers, in this one process, in
turn: RobustTrainer on what `load_image_splits` gives, with random parts of --resolution pixels; the stock Trainer on a
`datasets` data set whose `with_transform` does what torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`,
`ToTensor` and `Normalize` do with Pillow images. Without --dataset_name the photographs are made: --images files of
200 to 600 pixels a side. The table shows the median and the range of --repeats runs; the first steps of a run are not
counted.
"""

import random
import statistics
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import HfArgumentParser, Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table
from hf_robust import LIBRARIES, RobustTrainer, RobustTrainingArguments
from hf_robust.data.geometry import Geometry, crop_box
from hf_robust.data.load import load_image_splits
from hf_robust.data.sources import open_data
from hf_robust.data.transform import ImageTransform

CLASSES, UNCOUNTED = 4, 5  # classes of made photographs; steps of a run in which workers and caches warm up


@dataclass
class BenchmarkArguments:
    dataset_name: str | None = field(default=None, metadata={"help": "Folder of class folders. Default: made."})
    images: int = field(default=2000, metadata={"help": "Photographs to make."})
    resolution: int = field(default=224, metadata={"help": "Side of what the network takes."})
    batch_size: int = field(default=32, metadata={"help": "Images a step."})
    steps: int = field(default=40, metadata={"help": "Steps of a run."})
    workers: int = field(default=2, metadata={"help": "Processes that decode."})
    repeats: int = field(default=5, metadata={"help": "Runs of each."})
    json: str | None = field(default=None, metadata={"help": "Write the figures to this file."})


class Clock(TrainerCallback):
    """Seconds of the counted steps."""

    def __init__(self):
        self.start, self.seconds = 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == UNCOUNTED:
            self.start = time.perf_counter()
        self.seconds = time.perf_counter() - self.start


def make_photographs(folder: Path, count: int) -> None:
    """JPEG files of 200 to 600 pixels a side, smooth as photographs are, the same 48 under many names."""
    draw = np.random.default_rng(0)
    for place in range(count):
        target = folder / f"class{place % CLASSES}" / f"{place:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        if place >= 48:
            target.hardlink_to(folder / f"class{place % 48 % CLASSES}" / f"{place % 48:06d}.jpg")
            continue
        width, height = (int(side) for side in draw.integers(200, 601, 2))
        coarse = draw.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        image = image + draw.normal(0, 6, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def arguments(args: BenchmarkArguments, folder: str) -> RobustTrainingArguments:
    return RobustTrainingArguments(
        output_dir=folder,
        loss="ce",
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        dataloader_num_workers=args.workers,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def network(args: BenchmarkArguments, classes: int) -> ViTForImageClassification:
    """Small: what is measured is how fast it is fed."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(
        ViTConfig(image_size=args.resolution, patch_size=32, intermediate_size=64, num_labels=classes, **small)
    )


def robust_trainer(source: str, args: BenchmarkArguments, folder: str) -> float:
    splits = load_image_splits(source, test_split=None, keep_in_memory=False)
    train: Any = splits.train
    clock = Clock()
    RobustTrainer(
        model=network(args, len(splits.label_names)),
        args=arguments(args, folder),
        train_dataset=train.prepared(Geometry.square(args.resolution), augment=True),
        image_transform=ImageTransform([0.5] * 3, [0.5] * 3),
        callbacks=[clock],
    ).train()
    return (args.steps - UNCOUNTED) * args.batch_size / clock.seconds


def stock_trainer(source: str, args: BenchmarkArguments, folder: str) -> float:
    side, draw = (args.resolution, args.resolution), random.Random(0)

    def one(image: Image.Image) -> torch.Tensor:
        image = image.convert("RGB")
        top, left, height, width = crop_box(image.height, image.width, draw)
        image = image.crop((left, top, left + width, top + height)).resize(side, Image.Resampling.BILINEAR)
        if draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255).sub_(0.5).div_(0.5)

    def batch(rows: dict) -> dict:
        return {"pixel_values": [one(image) for image in rows["image"]], "labels": rows["label"]}

    train = open_data(source)["train"]
    clock = Clock()
    Trainer(
        model=network(args, train.features["label"].num_classes),
        args=arguments(args, folder),
        train_dataset=train.with_transform(batch),
        callbacks=[clock],
    ).train()
    return (args.steps - UNCOUNTED) * args.batch_size / clock.seconds


CONTENDERS = {"RobustTrainer": robust_trainer, "stock Trainer, with_transform": stock_trainer}


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    if args.steps <= UNCOUNTED:
        raise ValueError(f"steps must be more than {UNCOUNTED}, which are not counted; got {args.steps}")
    datasets.disable_progress_bars()
    figures: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        source = args.dataset_name
        if source is None:
            source = str(Path(folder) / "photographs")
            Path(source).mkdir()
            make_photographs(Path(source), args.images)
        for _ in range(args.repeats):
            for name, run in CONTENDERS.items():
                figures[name].append(run(source, args, folder))
    ours, stock = figures.values()
    ratios = [mine / theirs for mine, theirs in zip(ours, stock, strict=True)]
    rows = [
        [name, f"{statistics.median(values):.0f}", f"{min(values):.0f} to {max(values):.0f}"]
        for name, values in figures.items()
    ]
    print(markdown_table(["", "images/s", "range"], rows))
    print(f"\nratio, median of pairs: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.json is not None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        content = {"images_per_second": figures, "ratios": ratios, "arguments": vars(args)}
        write_json(args.json, content | {"hardware": hardware(device), "versions": versions(LIBRARIES)})
        print(args.json)


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
