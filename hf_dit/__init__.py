"""Diffusion Transformers as `diffusers` pipelines, with attention that can be swapped."""

import logging
import sys
from typing import TYPE_CHECKING

from hf_common import __version__ as __version__
from hf_common.lazy import lazy_names

if TYPE_CHECKING:
    from .attention.base import DiTAttnProcessor
    from .attention.flex import FlexAttnProcessor
    from .attention.full import FullAttnProcessor
    from .attention.local import neighborhood_attention_2d, neighborhood_mask_2d, window_attention_1d, window_mask_1d
    from .attention.natten import NattenAttnProcessor
    from .attention.neighborhood import NeighborhoodAttnProcessor
    from .attention.sliding_window import SlidingWindowAttnProcessor
    from .attention.spec import register_attn_processor
    from .attention.xformers import XFormersAttnProcessor
    from .models.dit import DiTModel
    from .models.sizes import DIT_SIZES, dit_config
    from .sampling.export import export_pipeline
    from .sampling.pipeline import DiTImagePipeline

__all__ = [
    "DIT_SIZES",
    "DiTAttnProcessor",
    "DiTImagePipeline",
    "DiTModel",
    "FlexAttnProcessor",
    "FullAttnProcessor",
    "NattenAttnProcessor",
    "NeighborhoodAttnProcessor",
    "SlidingWindowAttnProcessor",
    "XFormersAttnProcessor",
    "dit_config",
    "export_pipeline",
    "neighborhood_attention_2d",
    "neighborhood_mask_2d",
    "register_attn_processor",
    "window_attention_1d",
    "window_mask_1d",
]

# Those that a sample, a time or a training may depend on.
LIBRARIES = ("torch", "diffusers", "accelerate", "datasets", "numpy")

_MODULES = {
    "DIT_SIZES": "models.sizes",
    "DiTAttnProcessor": "attention.base",
    "DiTImagePipeline": "sampling.pipeline",
    "DiTModel": "models.dit",
    "FlexAttnProcessor": "attention.flex",
    "FullAttnProcessor": "attention.full",
    "NattenAttnProcessor": "attention.natten",
    "NeighborhoodAttnProcessor": "attention.neighborhood",
    "SlidingWindowAttnProcessor": "attention.sliding_window",
    "XFormersAttnProcessor": "attention.xformers",
    "dit_config": "models.sizes",
    "export_pipeline": "sampling.export",
    "neighborhood_attention_2d": "attention.local",
    "neighborhood_mask_2d": "attention.local",
    "register_attn_processor": "attention.spec",
    "window_attention_1d": "attention.local",
    "window_mask_1d": "attention.local",
}


def _of_use(record: logging.LogRecord) -> bool:
    """All but what xFormers, which diffusers imports, says of kernels that it can't load, where there is no GPU."""
    torch = sys.modules.get("torch")
    return torch is None or torch.cuda.is_available() or "xFormers can't load" not in record.getMessage()


logging.getLogger("xformers").addFilter(_of_use)
# Importing diffusers takes seconds, and the local attention needs none of it.
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
