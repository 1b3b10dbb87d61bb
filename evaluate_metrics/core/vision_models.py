"""Vision models of transformers: loaded whole, what happens to an image before them, the vector that they give."""

import hashlib
import os
from collections.abc import Callable, Collection
from typing import Any

import torch
from huggingface_hub import constants
from PIL import Image
from transformers import (
    AlignModel,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SiglipVisionModel,
)

# From its module: the top-level name is a stub in older versions where torchvision is missing.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from hf_common.images import resized_square
from hf_common.names import did_you_mean

from .levels import Preparation, processor_preparation
from .precision import full_precision

# How models that see images and text are loaded, by the model type of the checkpoint; any other is an AutoModel.
# AlignVisionModel would find none of its weights in a checkpoint of AlignModel, and leave them random.
CLASSES: dict[str, Any] = {
    "clip": CLIPVisionModelWithProjection,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "siglip": SiglipVisionModel,
    "align": AlignModel,
}
PREPROCESSING_KEYS = (
    "do_resize size resample do_center_crop crop_size crop_pct do_rescale rescale_factor rescale_offset do_normalize "
    "image_mean image_std include_top"
).split()


def load_vision_model(source: str, known: Collection[str] = ()) -> tuple[PreTrainedModel, Any]:
    """The vision model (float32, evaluation mode, CPU) and the image processor of a Hub id or folder.

    Args:
        known: names that may have been meant by one that leads nowhere.
    """

    def load() -> tuple[Any, Any, dict]:
        config = AutoConfig.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        model, report = CLASSES.get(config.model_type, AutoModel).from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
        return model, processor, report

    model, processor = _loaded_whole(source, load, known)
    if isinstance(model, AlignModel):
        model = model.vision_model
    if model.main_input_name != "pixel_values":
        raise ValueError(f"encoder {source!r} ({type(model).__name__}) takes {model.main_input_name}, not only images")
    return model.eval(), processor


def _loaded_whole(
    source: str, load: Callable[[], tuple[Any, Any, dict]], known: Collection[str] = ()
) -> tuple[Any, Any]:
    """Model and processor that `load` gives with a report; one line of error where they are not there or in part."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else the whole text model is listed as unused; weights that lack are named below
    try:
        model, processor, report = load()
    except OSError as error:
        place = "this folder" if os.path.isdir(source) else f"the cache, nor from {constants.ENDPOINT}"
        reason = str(error).splitlines()[0]
        raise OSError(
            f"encoder {source!r} could not be loaded from {place}: {reason} "
            f"(encoder may be the folder of a downloaded model){did_you_mean(source, known)}"
        ) from error
    except ValueError as error:  # of a folder that is no model
        raise ValueError(f"encoder {source!r} could not be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ValueError(
            f"encoder {source!r} lacks {len(lacking)} weights of {type(model).__name__}, which would be random: "
            f"{', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}"
        )
    return model, processor


def has_captions(model: PreTrainedModel) -> bool:
    """Whether a checkpoint of this vision model has a text model beside it, see [`embed_captions`]."""
    return isinstance(model, CLIPVisionModelWithProjection)


@torch.no_grad()
def embed_captions(
    source: str, device: Any, dtype: torch.dtype, captions: list[str], batch_size: int = 64
) -> torch.Tensor:  # n captions -> (n, d) float32, CPU
    """Projected text embeddings of a CLIP, not normalised; captions are cut off where its positions end (77 tokens).

    Raises:
        OSError, ValueError: the text model or its tokenizer is not there, or lacks weights; named.
    """

    def load() -> tuple[Any, Any, dict]:
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except ValueError as error:  # of several lines, where its files are not there
            raise OSError(f"its tokenizer: {str(error).splitlines()[0]}") from error
        text: Any = CLIPTextModelWithProjection
        model, report = text.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        return model, tokenizer, report

    model, tokenizer = _loaded_whole(source, load)
    model = model.eval().to(device=device, dtype=dtype)
    longest, vectors = model.config.max_position_embeddings, []
    for start in range(0, len(captions), batch_size):
        batch = captions[start : start + batch_size]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with full_precision():
            vectors.append(model(**tokens.to(device)).text_embeds.float().cpu())
    return torch.cat(vectors) if vectors else torch.empty(0, model.config.projection_dim)


def image_preparation(model: PreTrainedModel, processor: Any) -> tuple[str, Preparation]:
    """What happens to an image before the model: in words that can be compared, and as a function.

    The function takes an RGB image and None or a tensor, and gives a (3, H, W) float32 tensor: that one, if it fits.
    """
    if not isinstance(model, CLIPVisionModelWithProjection):
        return _own_preparation(processor)
    size: Any = model.config.image_size
    left_out = {"do_resize": False, "do_center_crop": False}
    resized_here = ("size", "resample", "crop_size")
    options = {key: value for key, value in _options(processor).items() if key not in resized_here}
    words = f"central square, Pillow bicubic to {size} x {size}; {_in_words(processor, options | left_out)}"

    whole = processor_preparation(processor, **left_out)

    def prepare(image: Image.Image, out: torch.Tensor | None) -> torch.Tensor:
        return whole(resized_square(image, size), out)

    return words, prepare


def clip_score_preparation(model: PreTrainedModel, processor: Any) -> tuple[str, Preparation]:
    """As CLIP itself prepares images, and so the CLIPScore: the shorter side resized, then the middle cut out.

    Raises:
        ValueError: it is no CLIP.
    """
    if not has_captions(model):
        raise ValueError(f"the CLIPScore is of CLIP models, got {model.name_or_path} ({type(model).__name__})")
    return _own_preparation(processor)


def _own_preparation(processor: Any) -> tuple[str, Preparation]:
    words = _in_words(processor, _options(processor))
    return words, processor_preparation(processor)


def _options(processor: Any) -> dict:
    return {key: value for key, value in processor.to_dict().items() if key in PREPROCESSING_KEYS}


def _in_words(processor: object, options: dict) -> str:
    return f"{type(processor).__name__}({', '.join(f'{key}={options[key]}' for key in sorted(options))})"


def embed_pixels(model: PreTrainedModel, source: str, pixels: torch.Tensor) -> torch.Tensor:
    """(b, 3, H, W) -> (b, d), as `model` has its floats and on its device; errors call it `source`."""
    with full_precision():
        outputs = model(pixel_values=pixels.to(model.device, model.dtype))
    vectors = outputs.get("image_embeds" if isinstance(model, CLIPVisionModelWithProjection) else "pooler_output")
    if vectors is None:
        raise ValueError(f"{source} ({type(model).__name__}) has no pooled output; give a callable as encoder")
    return vectors.flatten(1)


def fingerprint(model: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()[:16]
