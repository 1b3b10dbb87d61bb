#!/usr/bin/env python
"""Images per second from files to the batches of a model: this package against the loaders of other programs.

    pip install clean-fid pytorch-fid    # in an environment of its own: they bring torchvision
    python scripts/benchmark_loading.py
    python scripts/benchmark_loading.py --format jpg --height 375 --width 500 --workers 4

Read, decoded and resized as each program does before its network, which is left out: the mean of each channel is taken
in its place. All in one process, with the same files and number of workers, in turn, so that whatever else the machine
does hits all alike; shown are medians, and the median of the ratios within a repeat.

| loader | what |
|---|---|
| `clean` | ours for the FID with `--resizing clean`, 299 x 299 |
| `clean-fid` | its `ResizeDataset` in a `DataLoader`, as its `get_files_features` has it |
| `pytorch` | ours for the FID with `--resizing pytorch` |
| `pytorch-fid` | its `ImagePathDataset` in a `DataLoader`, resized by batch as its network does; images of one size |
| `clip` | ours for CMMD, 336 x 336 |
| `per-image` | the same steps in a `DataLoader` of NumPy arrays and the processor behind it, as programs for CMMD do |
"""

import statistics
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, HfArgumentParser
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.encoders import Encoder
from evaluate_metrics.core.folders import image_files
from evaluate_metrics.core.inception import resize
from evaluate_metrics.core.vision_models import image_preparation
from hf_common.environment import hardware, versions
from hf_common.files import write_json
from hf_common.images import resized_square, to_rgb
from hf_common.running import STARTS_OVER, run_command
from hf_common.tables import markdown_table

PEERS = {"clean-fid": "cleanfid", "pytorch-fid": "pytorch_fid", "per-image": None}  # loader -> module
OURS = {"clean-fid": "clean", "pytorch-fid": "pytorch", "per-image": "clip"}  # what does the same
CLIP_SIDE = 336


@dataclass
class BenchmarkArguments:
    folder: str | None = field(default=None, metadata={"help": "Folder of image files. Default: made."})
    peers: list[str] = field(default_factory=lambda: list(PEERS), metadata={"help": f"Of {', '.join(PEERS)}."})
    images: int = field(default=640, metadata={"help": "Images to make."})
    format: str = field(default="png", metadata={"help": "Of made images: png or jpg."})
    height: int = field(default=256, metadata={"help": "Of made images."})
    width: int = field(default=256, metadata={"help": "Of made images."})
    batch_size: int = field(default=64, metadata={"help": "Images in a batch."})
    workers: int = field(default=2, metadata={"help": "Threads of ours, processes of the others."})
    repeats: int = field(default=9, metadata={"help": "Times that each loader is measured."})
    output: str = field(default="runs/benchmark_loading.json", metadata={"help": "The JSON file of the figures."})


class PerImage(Dataset):
    """What programs for CMMD take from a file: the central square, Pillow's bicubic filter, numbers in [0, 1]."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> np.ndarray:  # (336, 336, 3) float32
        return np.asarray(resized_square(Image.open(self.files[place]).convert("RGB"), CLIP_SIDE), np.float32) / 255


def make_images(folder: Path, count: int, suffix: str, height: int, width: int) -> None:
    """Files of smooth colours with a little noise, which take as many bytes as photographs."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = draw.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = (pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.{suffix}", quality=90)


def clip_parts() -> tuple[Any, Any]:
    """A CLIP of the published input size with a small random network, and the published processor."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(image_size=CLIP_SIDE, patch_size=CLIP_SIDE, projection_dim=8, **sizes)
    side = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    return CLIPVisionModelWithProjection(config), CLIPImageProcessorPil(size=side, crop_size=side)


def our_loader(name: str, args: BenchmarkArguments) -> Callable[[list[str]], Iterator[Tensor]]:
    """Files to the channel means of batches (b, 3), by the threads of [`Encoder`]."""
    if name == "clip":
        prepare = image_preparation(*clip_parts())[1]
    else:

        def prepare(image: Image.Image, out: Tensor | None) -> Tensor:
            return resize(image, name, out)

    encoder = Encoder(name, "", name, False, prepare, channel_means)
    return lambda files: encoder.encode_batches(files, args.batch_size, num_workers=args.workers)


def peer_loader(name: str, args: BenchmarkArguments) -> Callable[[list[str]], Iterator[Tensor]]:
    """The same by the loader of another program."""
    finish: Callable[[Tensor], Tensor] = channel_means
    if name == "clean-fid":
        from cleanfid.utils import ResizeDataset

        make = partial(ResizeDataset, mode="clean")
    elif name == "pytorch-fid":
        from pytorch_fid.fid_score import TF, ImagePathDataset

        make = partial(ImagePathDataset, transforms=TF.ToTensor())

        def finish(batch: Tensor) -> Tensor:
            return channel_means(2 * F.interpolate(batch, (299, 299), mode="bilinear", align_corners=False) - 1)
    else:
        make, processor = PerImage, clip_parts()[1]
        left_out = {"do_resize": False, "do_center_crop": False, "do_rescale": False}

        def finish(batch: Tensor) -> Tensor:
            images = list(batch.permute(0, 3, 1, 2).numpy())
            return channel_means(processor(images, return_tensors="pt", **left_out)["pixel_values"])

    def load(files: list[str]) -> Iterator[Tensor]:
        loader = DataLoader(make(files), args.batch_size, shuffle=False, num_workers=args.workers)
        return map(finish, loader)

    return load


def channel_means(pixels: Tensor) -> Tensor:  # (b, 3, H, W) -> (b, 3)
    return pixels.mean((2, 3))


def seconds(load: Callable[[list[str]], Iterator[Tensor]], files: list[str]) -> float:
    start = time.perf_counter()
    rows = sum(len(means) for means in load(files))
    assert rows == len(files)
    return time.perf_counter() - start


def measure(args: BenchmarkArguments, files: list[str]) -> list[dict]:
    """A row for each peer: images per second of both, and how many times faster ours is."""
    loaders = {OURS[name]: our_loader(OURS[name], args) for name in args.peers}
    loaders |= {name: peer_loader(name, args) for name in args.peers}
    for load in loaders.values():
        seconds(load, files[: args.batch_size])
    runs = [{name: seconds(load, files) for name, load in loaders.items()} for _ in range(args.repeats)]
    rows = []
    for name in args.peers:
        pairs = [(run[OURS[name]], run[name]) for run in runs]
        own, other = (len(files) / statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        rows.append(
            {"ours": OURS[name], "peer": name, "ours_per_second": own, "peer_per_second": other}
            | {"times_faster": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
        )
    return rows


def checked_files(args: BenchmarkArguments, folder: Path) -> list[str]:
    """The image files of `folder`, made there if no folder was given."""
    if args.folder is None:
        make_images(folder, args.images, args.format, args.height, args.width)
    files = [str(file) for file in image_files(folder)]
    sizes = {to_rgb(file).size for file in files} if "pytorch-fid" in args.peers else set()
    if len(sizes) > 1:
        raise SystemExit(f"--folder must hold images of one size for pytorch-fid; got {len(sizes)} sizes")
    return files


def main() -> None:
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    (args,) = parser.parse_args_into_dataclasses()
    for name in ("images", "height", "width", "batch_size", "workers", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more; got {getattr(args, name)}")
    if args.format not in ("png", "jpg"):
        parser.error(f"--format must be png or jpg; got {args.format!r}")
    for name in args.peers:
        if name not in PEERS:
            parser.error(f"--peers must be of {', '.join(PEERS)}; got {name!r}")
        module = PEERS[name]
        if module is not None and find_spec(module) is None:
            parser.error(
                f"--peers {name} must be installed: pip install {name}, in an environment of its own, for it brings "
                "torchvision; or --peers per-image, which needs nothing"
            )
    if args.folder is not None and not Path(args.folder).is_dir():
        parser.error(f"--folder must be a folder of images; there is none at {args.folder}")
    with tempfile.TemporaryDirectory() as made:
        rows = measure(args, checked_files(args, Path(args.folder or made)))
    heads = ["ours", "peer", "ours, images/s", "peer, images/s", "times faster (range)"]
    cells = [
        [
            *(row["ours"], row["peer"], f"{row['ours_per_second']:.0f}", f"{row['peer_per_second']:.0f}"),
            f"{row['times_faster']:.2f} ({row['least']:.2f} to {row['most']:.2f})",
        ]
        for row in rows
    ]
    print(markdown_table(heads, cells))
    figures = {"rows": rows, "hardware": hardware(torch.device("cpu")), "versions": versions(LIBRARIES)}
    write_json(args.output, {"settings": vars(args), **figures})
    print(f"\nfigures: {Path(args.output).resolve()}")


if __name__ == "__main__":
    run_command(main, STARTS_OVER)
