"""Streamed training images as a network takes them."""

from collections.abc import Callable, Sequence
from typing import Any

from ..data.geometry import Geometry, geometry_of
from ..data.load_stream import StreamedSplits
from ..data.memory import collate_batch
from ..data.stream import Streamed, StreamedImages
from ..data.transform import ImageTransform
from ..models import MODELS
from .flags import DRAFTED_CROP, RESIZED_CROPS, DataArguments, ModelArguments
from .images import Prepared, as_files, measured_processor, own_processor


def prepared_stream(
    data: DataArguments,
    model: ModelArguments,
    splits: StreamedSplits,
    *,
    views: int,
    seed: int,
    group: int,
    skipped: int,
) -> Prepared:
    """As [`~hf_robust.studies.images.prepared_images`], of images that are read as they come.

    Args:
        views: of each image, where parts are drawn.
        seed: of the order and the parts.
        group: images of one step of all processes.
        skipped: images that a resumed training throws away.

    Raises:
        ValueError: a fresh network, and no `--resolution`.
    """
    stream, augment = splits.train, data.augmentation in RESIZED_CROPS
    if model.model not in MODELS:
        processor: Any = own_processor(data, model)
    elif data.resolution is not None:
        measured = stream.prepared(Geometry.square(data.resolution))
        processor = measured_processor(measured, data.resolution, crop=True)
    else:
        raise ValueError("resolution: say to which square streamed images are brought for a network that is new")
    geometry = geometry_of(processor)
    changes: dict[str, Any] = {"augment": augment, "draft": data.augmentation == DRAFTED_CROP}
    changes |= {"views": views if augment else 1, "seed": seed, "group": group, "skipped": skipped}
    train, test = stream.prepared(geometry, **changes), as_files(splits.test).prepared(geometry)
    transform = ImageTransform(processor.image_mean, processor.image_std, seed=seed)
    prepared = StreamedSplits(train, test, splits.label_names)
    return Prepared(prepared, processor, transform, geometry.output[1], _streamed_or_not(train))


def _streamed_or_not(stream: StreamedImages) -> Callable[[Sequence[Any]], dict]:
    """A collator of training images of a stream, and of test images that are none."""

    def collate(samples: Sequence[Any]) -> dict:
        return stream.collate(samples) if isinstance(samples[0], Streamed) else collate_batch(list(samples))

    return collate
