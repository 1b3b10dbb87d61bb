#!/usr/bin/env python
"""Images per second of RobustTrainer, of the stock Trainer with the same transform by batch or on per-image PIL code,
and of a loop by hand.

    python scripts/benchmark_trainer.py
    python scripts/benchmark_trainer.py --dataset uoft-cs/cifar10 --model cnn8 --augmentation crop_flip --json out.json

All train the same fresh network on the same images with the same cross-entropy, SGD and clipping, in this one process,
in turn, --repeats times. "batch transform" is the stock Trainer with RobustTrainer's transform of a whole batch in its
collator, which leaves the rest of the two trainers to compare. The table shows the median and the range. Start-up and
the first step of each epoch are not counted; nothing is saved or evaluated.
"""

import itertools
import statistics
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass, field

import datasets
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from transformers import HfArgumentParser, Trainer

from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table
from hf_robust import LIBRARIES, RobustTrainer, RobustTrainingArguments
from hf_robust.data.load import load_image_splits
from hf_robust.data.memory import EpochShuffleSampler, ImageTensorDataset
from hf_robust.data.transform import ImageTransform
from hf_robust.models import load_model
from hf_robust.studies.arguments import AUGMENTATIONS
from hf_robust.training.diagnostics import ThroughputCallback


@dataclass
class BenchmarkArguments:
    dataset: str = field(default="digits", metadata={"help": "Hub id, folder, or 'digits'."})
    model: str = field(default="cnn_small", metadata={"help": "Network."})
    augmentation: str = field(default="crop_flip", metadata={"help": f"One of {', '.join(AUGMENTATIONS)}."})
    images: int = field(default=1408, metadata={"help": "Training images an epoch."})
    batch_size: int = field(default=128, metadata={"help": "Images a step."})
    epochs: int = field(default=2, metadata={"help": "Epochs a run."})
    repeats: int = field(default=5, metadata={"help": "Runs of each."})
    json: str | None = field(default=None, metadata={"help": "Write the figures to this file."})


def training_arguments(args: BenchmarkArguments, folder: str) -> RobustTrainingArguments:
    return RobustTrainingArguments(
        output_dir=folder,
        loss="ce",
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def robust_trainer(model, data: ImageTensorDataset, transform: ImageTransform, args, folder) -> float:
    throughput = ThroughputCallback(len(data), -(-len(data) // args.batch_size))
    RobustTrainer(
        model=model,
        args=training_arguments(args, folder),
        train_dataset=data,
        image_transform=transform,
        callbacks=[throughput],
    ).train()
    return throughput.images_per_second


def stock_trainer(model, data: ImageTensorDataset, transform: ImageTransform, args, folder) -> float:
    """The same images as a `Dataset` of tensors, and the same transform of a whole batch in the collator."""
    batches = -(-len(data) // args.batch_size)
    made = itertools.count()

    def collate(rows: list[tuple]) -> dict:
        images, labels, index = (torch.stack(column) for column in zip(*rows, strict=True))
        return {"pixel_values": transform(images, index=index, epoch=next(made) // batches), "labels": labels}

    throughput = ThroughputCallback(len(data), batches)
    Trainer(
        model=model,
        args=training_arguments(args, folder),
        train_dataset=TensorDataset(data.images, data.labels, torch.arange(len(data))),
        data_collator=collate,
        callbacks=[throughput],
    ).train()
    return throughput.images_per_second


def stock_trainer_of_images(model, data: ImageTensorDataset, transform: ImageTransform, args, folder) -> float:
    """`datasets` with an image column and a `with_transform` that crops, flips and normalises image by image."""
    mean, std = transform.mean.view(3, 1, 1).numpy(), transform.std.view(3, 1, 1).numpy()
    padding, rng = transform.crop_padding, np.random.default_rng(0)

    def one(image: PIL.Image.Image) -> torch.Tensor:
        if padding:
            width, height = image.size
            canvas = PIL.Image.new("RGB", (width + 2 * padding, height + 2 * padding))
            canvas.paste(image, (padding, padding))
            left, top = rng.integers(0, 2 * padding + 1, 2)
            image = canvas.crop((left, top, left + width, top + height))
        if transform.horizontal_flip and rng.random() < 0.5:
            image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
        return torch.from_numpy((pixels - mean) / std)

    def batch(rows: dict) -> dict:
        return {"pixel_values": [one(image.convert("RGB")) for image in rows["img"]], "labels": rows["label"]}

    images = [PIL.Image.fromarray(image) for image in data.images.permute(0, 2, 3, 1).numpy()]
    rows = datasets.Dataset.from_dict(
        {"img": images, "label": data.labels.tolist()},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")}),
    )
    throughput = ThroughputCallback(len(data), -(-len(data) // args.batch_size))
    Trainer(
        model=model,
        args=training_arguments(args, folder),
        train_dataset=rows.with_transform(batch),
        callbacks=[throughput],
    ).train()
    return throughput.images_per_second


def loop_by_hand(model, data: ImageTensorDataset, transform: ImageTransform, args, folder) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    steps = -(-len(data) // args.batch_size) * args.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    counted, seconds = 0, 0.0
    for epoch in range(args.epochs):
        order = torch.tensor(list(EpochShuffleSampler(len(data), 0, lambda epoch=epoch: epoch)))
        for step, index in enumerate(order.split(args.batch_size)):
            start = time.perf_counter()
            pixels = transform(data.images[index].to(device), index=index.to(device), epoch=epoch)
            loss = F.cross_entropy(model(pixel_values=pixels).logits, data.labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            loss.item()  # the Trainers look at each loss too, so that a device is waited for alike
            if step:
                counted += len(index)
                seconds += time.perf_counter() - start
    return counted / seconds


CONTENDERS = {
    "loop by hand": loop_by_hand,
    "RobustTrainer": robust_trainer,
    "stock Trainer, batch transform": stock_trainer,
    "stock Trainer, per-image PIL": stock_trainer_of_images,
}


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.images % args.batch_size:
        # A short last batch counts as a whole one in ThroughputCallback.
        raise ValueError(f"images must be a multiple of batch_size; got {args.images} and {args.batch_size}")
    splits = load_image_splits(args.dataset, max_train_samples=args.images, max_test_samples=1)
    transform = ImageTransform(*splits.train.channel_statistics(), **AUGMENTATIONS[args.augmentation])
    speeds = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats + 1):
            for name, contender in CONTENDERS.items():
                torch.manual_seed(0)
                model = load_model(
                    args.model, num_labels=len(splits.label_names), image_size=splits.train.images.shape[-1]
                )
                speed = contender(model, splits.train, transform, args, folder)
                if repeat:  # the first round warms up
                    speeds[name].append(speed)
    loop = statistics.median(speeds["loop by hand"])
    print(f"{args.model} on {args.dataset}, batch {args.batch_size}, {args.augmentation}, {args.repeats} runs each")
    rows = []
    for name, values in speeds.items():
        median = statistics.median(values)
        rows.append([name, f"{median:.0f}", f"{min(values):.0f}-{max(values):.0f}", f"{median / loop:.1%}"])
    print(markdown_table(["trainer", "images/s (median)", "range", "of the loop"], rows))
    if args.json is not None:
        report = {
            "settings": vars(args),
            "images_per_second": speeds,
            "share_of_loop": {name: statistics.median(values) / loop for name, values in speeds.items()},
            "hardware": hardware(device),
            "versions": versions(LIBRARIES),
        }
        write_json(args.json, report)
        print(f"figures: {args.json}")


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
