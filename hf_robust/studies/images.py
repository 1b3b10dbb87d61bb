"""The images of a run as its network takes them: in memory and prepared by whole batches, or each by itself."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import BaseImageProcessor

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from ..data.files import ImageFileDataset
from ..data.geometry import Geometry, geometry_of
from ..data.labelled import LabelledImages, LabelledSamples
from ..data.load import ImageSplits
from ..data.load_stream import StreamedSplits
from ..data.memory import ImageTensorDataset
from ..data.stream import StreamedImages
from ..data.text import LabelledTexts
from ..data.transform import ImageTransform, image_transform
from ..models import MODELS, make_image_processor
from .flags import AUGMENTATIONS, DRAFTED_CROP, RESIZED_CROPS, DataArguments, ModelArguments

MOST_WORKERS = 8  # that decode images, where no one says how many
LEAST_EVALUATED = 32  # images of a batch


class Prepared(NamedTuple):
    """What a trainer takes.

    Attributes:
        splits: the images at the size that batches have, unless `transform` does that.
        processor: what is saved with the network.
        transform: from a batch to the input of the network.
        side: of the images that a network is made for, if it has to be told.
        collator: what makes batches, where it is not the trainer's own.
    """

    splits: ImageSplits | StreamedSplits
    processor: BaseImageProcessor
    transform: ImageTransform
    side: int
    collator: Callable | None = None


def prepared_images(
    data: DataArguments, model: ModelArguments, splits: ImageSplits, *, views: int = 1, seed: int = 0
) -> Prepared:
    """The images of `splits` for the network that `model` names.

    Square images in memory are resized and augmented by whole batches on the training device. Others are cropped and
    resized one by one, when their batch is due: files, images that are no squares, and the random parts of
    `--augmentation random_resized_crop`, which `random_resized_crop_draft` decodes faster.

    Raises:
        ValueError: a fresh network is to take images that are no squares, or differ in size, and no `--resolution`
            says what they become; a processor does what is not done here.
    """
    augment, draft = data.augmentation in RESIZED_CROPS, data.augmentation == DRAFTED_CROP
    parts = splits.train, splits.test
    by_itself = augment or any(
        isinstance(part, ImageFileDataset) or (part.size[0] != part.size[1] and data.resolution is not None)
        for part in parts
    )
    if not by_itself and parts[0].size != parts[1].size and data.resolution is None:
        raise ValueError(
            f"train images are {parts[0].size} and test images {parts[1].size} pixels; they must have one size, or "
            "--resolution says to which they are brought"
        )
    processor = _processor(data, model, splits.train, by_itself)
    steps: dict[str, Any] = AUGMENTATIONS[data.augmentation or "none"]
    if not by_itself:
        transform = image_transform(processor, seed=seed, **steps)
        return Prepared(splits, processor, transform, data.resolution or splits.train.size[1])
    geometry = geometry_of(processor)
    train, test = (as_files(part).prepared(geometry) for part in parts)
    train = train.prepared(geometry, augment=augment, draft=draft, views=views if augment else 1, seed=seed)
    given: Any = processor
    transform = ImageTransform(given.image_mean, given.image_std, seed=seed, **steps)
    return Prepared(ImageSplits(train, test, splits.label_names), processor, transform, geometry.output[1])


def as_evaluated(images: LabelledSamples, like: LabelledSamples) -> LabelledSamples:
    """Samples as the network takes those of a prepared data set, without augmentation."""
    if isinstance(images, LabelledTexts) and isinstance(like, LabelledTexts):
        return images.tokenized(like.tokenizer, like.max_length)
    if isinstance(like, ImageFileDataset) and isinstance(images, LabelledImages):
        return as_files(images).prepared(like.geometry)
    return images


def decoding_workers(images: LabelledImages | StreamedImages) -> int:
    """How many processes read images, where no one says how many: none for those in memory."""
    return min(MOST_WORKERS, os.cpu_count() or 1) if isinstance(images, (ImageFileDataset, StreamedImages)) else 0


def evaluation_batch(images: LabelledSamples | StreamedImages, side: int, most: int) -> int:
    """How many images are evaluated at once, where no one says how many.

    Of those that are read as they come the pixels of `most` images of 32 x 32, in 32 images or more: workers hold
    several batches each.
    """
    if not isinstance(images, ImageFileDataset):
        return most
    return min(most, max(LEAST_EVALUATED, most * 32 * 32 // side**2))


def as_files(images: LabelledImages) -> ImageFileDataset:
    if isinstance(images, ImageFileDataset):
        return images
    assert isinstance(images, ImageTensorDataset)
    return images.as_files()


def _processor(
    data: DataArguments, model: ModelArguments, train: LabelledImages, by_itself: bool
) -> BaseImageProcessor:
    """The model's own processor where it brings one; else one of the training images' statistics and size."""
    if model.model not in MODELS:
        return own_processor(data, model)
    if data.resolution is None:
        if isinstance(train, ImageFileDataset) and train.one_size is False:
            raise ValueError("the images differ in size: --resolution says to which square they are brought")
        height, width = train.size
        if height != width:
            raise ValueError(
                f"images must be square; those of the data set have {height}x{width} pixels. --resolution says to "
                "which square they are brought"
            )
        side, measured = width, train
    else:
        side = data.resolution
        measured = as_files(train).prepared(Geometry.square(side)) if by_itself else train
    return measured_processor(measured, side, crop=data.resolution is not None)


def measured_processor(images: LabelledImages | StreamedImages, side: int, crop: bool) -> BaseImageProcessor:
    """One that normalises by what images of that side have."""
    mean, std = images.channel_statistics()
    # A constant channel has no spread to divide by.
    return make_image_processor(mean, [s if s > 0 else 1.0 for s in std], side, crop=crop)


def own_processor(data: DataArguments, model: ModelArguments) -> BaseImageProcessor:
    """That of a saved model, for the resolution that `data` asks for, if any."""
    processor: Any = AutoImageProcessor.from_pretrained(model.model, trust_remote_code=model.trust_remote_code)
    return processor if data.resolution is None else _at_resolution(processor, data.resolution)


def _at_resolution(processor: Any, side: int) -> BaseImageProcessor:
    """The processor with an output of (side, side), the lengths before it in proportion."""
    geometry = geometry_of(processor).scaled(side)
    steps = processor.to_dict()
    size = geometry.size
    steps["size"] = {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}
    if steps.get("crop_pct"):
        steps["size"] = {"shortest_edge": side}  # which divides it by that itself
    elif geometry.crop is not None:
        steps |= {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return type(processor).from_dict(steps)
