"""Features of images by a network that is not trained: what a linear classifier on top of them needs to be."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_common.foreign import short
from hf_common.plugins import import_source, in_one_line

from .labelled import LabelledImages

BATCH = 64

Encoder = Callable[[list[Image.Image]], torch.Tensor | np.ndarray]


def image_encoder(spec: str, device: torch.device, trust_remote_code: bool = False) -> Encoder:
    """What makes features of a list of RGB images.

    Args:
        spec: `module:function` or `file.py:function`, a callable from images to (b, d) floats; or the folder or Hub id
            of a vision model of transformers, whose projected or pooled output is taken, and else the mean over the
            last hidden states.

    Raises:
        ValueError: the function can't be imported, or the model takes no images.
    """
    source, colon, name = spec.rpartition(":")
    if (colon and name.isidentifier() and not source.startswith(("http", "/"))) or source.endswith(".py"):
        try:
            return getattr(import_source(source), name)
        except Exception as error:  # of any kind: it is someone's code
            raise ValueError(f"features {short(repr(spec), 120)} can't be imported: {in_one_line(error)}") from error
    config: Any = AutoConfig.from_pretrained(spec, trust_remote_code=trust_remote_code)
    model: Any = AutoModel.from_pretrained(spec, trust_remote_code=trust_remote_code, dtype=torch.float32)
    if getattr(model, "main_input_name", "") != "pixel_values" and not hasattr(model, "get_image_features"):
        raise ValueError(f"features {short(repr(spec), 120)}: a model of type {config.model_type!r} takes no images")
    processor = AutoImageProcessor.from_pretrained(spec, trust_remote_code=trust_remote_code)
    model = model.to(device).eval()

    @torch.inference_mode()
    def encode(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(device)
        if hasattr(model, "get_image_features"):
            output = model.get_image_features(pixel_values=pixels)
        else:
            output = model(pixel_values=pixels)
        return _vectors(output)

    return encode


def _vectors(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output.flatten(1)
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        hidden = output.last_hidden_state
        pooled = hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))
    return pooled.flatten(1)


def image_features(images: LabelledImages, encode: Encoder) -> np.ndarray:
    """(N, d) float32, in the order of the images, each at its own size.

    Raises:
        ValueError: the encoder gives something else, or what is not finite.
    """
    vectors = []
    for start in tqdm(range(0, len(images), BATCH), desc="features", unit="batch"):
        places = range(start, min(start + BATCH, len(images)))
        batch = torch.as_tensor(encode([picture(images, place) for place in places])).detach().float().cpu()
        if batch.ndim != 2 or len(batch) != len(places) or not batch.isfinite().all():
            raise ValueError(
                f"features must be finite numbers of the shape ({len(places)}, d); the encoder gave {batch.dtype} of "
                f"shape {tuple(batch.shape)}"
            )
        vectors.append(batch.numpy())
    return np.concatenate(vectors)


def picture(images: LabelledImages, place: int) -> Image.Image:
    """One image as it was read."""
    return Image.fromarray(images.pixels(place).numpy())
