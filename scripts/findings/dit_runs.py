"""What the studies of Diffusion Transformers share: photographs, models, samples, and what is measured of them."""

import base64
import io
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from evaluate_metrics.core.frechet import frechet_distance
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.scoring.evaluation import Evaluation, open_encoder
from hf_common.environment import hardware, versions
from hf_common.files import replacing, slug
from hf_common.foreign import read_json, read_tensors
from hf_common.locks import claimed
from hf_common.run_folder import RESULTS
from hf_dit import LIBRARIES
from hf_dit.sampling.export import load_pipeline
from hf_dit.studies.study import run_study
from hf_dit.training.arguments import DataArguments, DiTTrainingArguments, ModelArguments
from hf_dit.training.images import ImageFormat, prepare_image
from hf_dit.training.run import train_dit
from hf_robust.studies.arguments import DataArguments as LabelledImages
from hf_robust.studies.arguments import ExperimentArguments
from hf_robust.studies.arguments import ModelArguments as Classifier
from hf_robust.studies.run import run_experiment

from .cells import cell_file, write_cell
from .metrics import precision_and_coverage
from .study import Place

# The recipe of the model card, trained for longer.
RECIPE = {"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 100, "max_grad_norm": 1.0}
BATCH = 64
EPOCHS_OF_CLASSIFIER = 15
RESAMPLES = 200  # of the bootstrap


class Photographs:
    """The photographs as squares of one side: where they lie, and what is measured of images beside them."""

    def __init__(self, place: Place, side: int):
        self.place, self.side = place, side
        self.folder = place.work / f"photographs-{side}"
        for folder in claimed([self.folder], claim_of):  # one worker makes them
            if not folder.exists():
                self._write()

    def _write(self) -> None:
        form, making = ImageFormat((self.side, self.side), True), self.folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        for split in ("train", "test"):
            rows = datasets.load_dataset(self.place.sources.landscapes, split=split)
            squares = rows.map(lambda row: {"image": _square(row["image"], form)}, desc=f"{split} squares")
            squares.to_parquet(making / "data" / f"{split}-00000-of-00001.parquet")
        making.rename(self.folder)

    def images(self, split: str) -> tuple[list[Image.Image], np.ndarray]:
        """All of a split, and their classes."""
        rows = datasets.load_dataset(str(self.folder), split=split)
        return [image.convert("RGB") for image in rows["image"]], np.array(rows["label"])

    def classifier(self) -> Path:
        """A network that tells the classes apart, trained on the photographs; its test accuracy is in its results."""
        folder = self.place.work / f"classifier-{self.side}"
        args = ExperimentArguments(
            output_dir=str(folder), loss="ce", learning_rate=0.1, num_train_epochs=EPOCHS_OF_CLASSIFIER,
            resume_from_checkpoint="last", save_total_limit=1, report_to="none",
        )  # fmt: skip
        data = LabelledImages(dataset=str(self.folder))
        return _finished(folder, lambda: run_experiment(data, Classifier("resnet20_cifar"), args))

    @cached_property
    def _judge(self) -> Callable[[list[Image.Image]], Tensor]:
        folder = self.classifier()
        processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(folder).eval()

        @torch.inference_mode()
        def judge(images: list[Image.Image]) -> Tensor:
            batches = [images[start : start + 256] for start in range(0, len(images), 256)]
            return torch.cat([model(**processor(batch, return_tensors="pt")).logits.argmax(1) for batch in batches])

        return judge

    @cached_property
    def _encoder(self):
        return open_encoder(self.place.sources.encoder, Evaluation(), torch.device("cpu"))

    def embeddings(self, name: str, images: Sequence[Image.Image]) -> Tensor:
        """(n, d) float32, kept in the folder of the studies under that name."""
        path = self.place.work / "embeddings" / slug(self.place.sources.encoder) / f"{name}.safetensors"
        if not path.exists():
            vectors = self._encoder.encode(tqdm(images, desc=f"embeddings of {name}", leave=False), 64)
            with replacing(path) as temporary:
                save_file({"embeddings": vectors.contiguous()}, temporary)
        return read_tensors(path)[0]["embeddings"]

    @cached_property
    def _references(self) -> Tensor:
        return self.embeddings(f"photographs-{self.side}-train", self.images("train")[0])

    def measure(self, name: str, images: list[Image.Image], labels: np.ndarray, seed: int = 0) -> dict:
        """Scores against the training photographs, and what can be said of images that were asked to show `labels`.

        Returns:
            `cmmd`, unbiased, and `cmmd_error`; `fd` and `fd_error`, by the bootstrap over the images; `precision`,
            `recall`, `density`, `coverage`, see [`precision_and_coverage`]; `adherence`, the
            share that the classifier assigns to the class asked for; `diversity`, the mean cosine distance of two
            images of a class; `saturation`, the mean of the pixels' in 0..1; `clipped`, the share of values at 0 or
            255; for all of them `<name>_error`, a standard error.
        """
        vectors, labels = self.embeddings(name, images), np.asarray(labels)
        references = _moments(self._references)
        score = cmmd(_moments(vectors), references)
        hit = (self._judge(images).numpy() == labels).astype(float)
        pixels = [np.asarray(image) for image in images]
        saturation = np.array([_saturation(image) for image in pixels])
        clipped = np.array([np.isin(image, (0, 255)).mean() for image in pixels])
        draw = np.random.default_rng(seed)
        again = [draw.integers(len(images), size=len(images)) for _ in range(RESAMPLES)]
        distances = [frechet_distance(_moments(vectors[chosen]), references, warn=False) for chosen in again[:40]]
        spreads = [_within_classes(vectors[chosen], labels[chosen]) for chosen in again]
        return {
            "images": len(images),
            "cmmd": score.unbiased,
            "cmmd_error": score.standard_error,
            "fd": frechet_distance(_moments(vectors), references, warn=False),
            "fd_error": float(np.std(distances, ddof=1)),
            **precision_and_coverage(vectors, self._references),
            "diversity": _within_classes(vectors, labels),
            "diversity_error": float(np.std(spreads, ddof=1)),
            **_mean_with_error("adherence", hit),
            **_mean_with_error("saturation", saturation),
            **_mean_with_error("clipped", clipped),
        }


def _square(image: Image.Image, form: ImageFormat) -> Image.Image:
    return Image.fromarray(prepare_image(image, form).transpose(1, 2, 0))


def _moments(vectors: Tensor) -> Moments:
    return Moments.zeros(vectors.shape[1]).update(vectors)


def _within_classes(vectors: Tensor, labels: np.ndarray) -> float:
    """The mean over the classes of the mean cosine distance of two different images of a class, of unit vectors."""
    found = []
    for label in np.unique(labels):
        of_class = vectors[labels == label].double()
        n = len(of_class)
        if n > 1:  # |sum|^2 = n + the sum over all ordered pairs
            found.append(1 - (float(of_class.sum(0).square().sum()) - n) / (n * (n - 1)))
    return float(np.mean(found))


def _saturation(pixels: np.ndarray) -> float:
    """The mean over the pixels of (max - min) / max of the three channels, 0 where all are 0."""
    highest, lowest = pixels.max(-1).astype(float), pixels.min(-1).astype(float)
    return float(((highest - lowest) / np.where(highest == 0, 1, highest)).mean())


def _mean_with_error(name: str, values: np.ndarray) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def trained(photographs: Photographs, name: str, images_seen: int, model: str, seed: int = 0, **flags) -> Path:
    """The folder of a pipeline, trained on the photographs for so many images, or as it was left by a killed run."""
    folder = photographs.place.work / name
    data = DataArguments(dataset_name=str(photographs.folder), random_flip=True)
    network = {key: flags.pop(key) for key in ("attention", "config_overrides") if key in flags}
    args = DiTTrainingArguments(
        output_dir=str(folder), seed=seed, train_batch_size=BATCH, max_train_steps=-(-images_seen // BATCH),
        resume_from_checkpoint="latest", checkpointing_minutes=5, **RECIPE | flags,
    )  # fmt: skip
    return _finished(folder, lambda: train_dit(data, ModelArguments(model=model, **network), args))


def claim_of(folder: Path) -> Path:
    """Where a worker says that it is at a folder; the lock inside is that of what writes there."""
    return folder.with_name(f"{folder.name}.claim")


def _finished(folder: Path, run: Callable[[], object]) -> Path:
    """The folder of a run, which is made unless its results are there; other workers wait for it."""
    for _ in claimed([folder], claim_of):
        if not (folder / RESULTS).exists():
            run()
    return folder


def training_facts(folder: Path) -> dict:
    """What a cell says of the training of its model."""
    results = read_json(folder / RESULTS)
    return {
        "model": results["settings"]["model"],
        "images_seen": results["steps"] * results["settings"]["global_batch"],
        "parameters": results["parameters"],
        "loss": results["history"][-1]["smoothed"],
    }


def sampled(pipeline: Path, output: Path, axes: dict, images_per_class: int, batch_size: int = 125) -> list[dict]:
    """The cells of a study of one pipeline, each with `folder`, `labels` and `weights` beside its figures."""
    loaded = load_pipeline(str(pipeline), torch.float32)
    labels = list(range(loaded.transformer.config.num_classes))
    study = run_study(
        loaded, labels, output_dir=output, images_per_class=images_per_class, batch_size=batch_size, seed=0, **axes
    )
    asked, weights = np.array(study["settings"]["class_labels"]), study["settings"]["weights"]
    return [{**cell, "folder": output, "labels": asked, "weights": weights} for cell in study["cells"]]


def images_of(cell: dict) -> tuple[list[Image.Image], np.ndarray]:
    """The images of a sampled cell and the classes that were asked for."""
    images = [Image.open(cell["folder"] / path).convert("RGB") for path in cell["images"]]
    return images, np.resize(cell["labels"], len(images))  # the classes in turns


def sample_missing(
    study: str,
    photographs: Photographs,
    pipeline: Path,
    cells: Mapping[str, tuple[str, float, int]],
    images_per_class: int,
) -> None:
    """Sample and measure the cells that are missing; workers share them.

    Args:
        cells: scheduler, guidance scale and steps by the name of the cell.
    """
    place = photographs.place
    for name in claimed(list(cells), lambda name: claim_of(place.work / study / name)):
        if cell_file(study, name, place.results).exists():
            continue
        scheduler, scale, steps = cells[name]
        axes = {"schedulers": [scheduler], "guidance_scales": [scale], "steps": [steps]}
        (cell,) = sampled(pipeline, place.work / study / name, axes, images_per_class, batch_size=63)
        images, labels = images_of(cell)
        told = ("attention", "scheduler", "guidance_scale", "num_inference_steps", "weights")
        settings = {key: cell[key] for key in told}
        settings |= {"seed": 0, "encoder": place.sources.encoder, "side": photographs.side}
        content = {
            "settings": settings | training_facts(pipeline),
            "scores": photographs.measure(f"{study}-{name}", images, labels),
            "seconds": cell["seconds"],
            "thumbnails": thumbnails(images, labels, each=2),
            "hardware": cell["hardware"],
            "versions": cell["versions"],
        }
        write_cell(study, name, content, place.results)


def facts() -> dict:
    """Of the machine, for a cell."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"hardware": hardware(device), "versions": versions(LIBRARIES)}


def thumbnails(images: list[Image.Image], labels: np.ndarray, each: int = 1) -> list[str]:
    """The first images of each class as PNG in base64, so that a cell alone draws its picture."""
    chosen = [place for label in np.unique(labels) for place in np.flatnonzero(labels == label)[:each]]
    return [_encoded(images[place]) for place in chosen]


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def decoded(thumbnail: str) -> Image.Image:
    """The image of a thumbnail."""
    return Image.open(io.BytesIO(base64.b64decode(thumbnail))).convert("RGB")
