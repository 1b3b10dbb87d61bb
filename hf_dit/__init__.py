"""Diffusion Transformers as `diffusers` pipelines, with attention that can be swapped."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention import (
        FlexAttnProcessor,
        FullAttnProcessor,
        NattenAttnProcessor,
        NeighborhoodAttnProcessor,
        SlidingWindowAttnProcessor,
        XFormersAttnProcessor,
    )
    from .local_attention import neighborhood_attention_2d, neighborhood_mask_2d, window_attention_1d, window_mask_1d
    from .model import DiTModel
    from .packaging import export_pipeline
    from .pipeline import DiTImagePipeline
    from .sizes import DIT_SIZES, dit_config

__all__ = [
    "DIT_SIZES",
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
    "window_attention_1d",
    "window_mask_1d",
]

_MODULES = {
    "DIT_SIZES": "sizes",
    "DiTImagePipeline": "pipeline",
    "DiTModel": "model",
    "FlexAttnProcessor": "attention",
    "FullAttnProcessor": "attention",
    "NattenAttnProcessor": "attention",
    "NeighborhoodAttnProcessor": "attention",
    "SlidingWindowAttnProcessor": "attention",
    "XFormersAttnProcessor": "attention",
    "dit_config": "sizes",
    "export_pipeline": "packaging",
    "neighborhood_attention_2d": "local_attention",
    "neighborhood_mask_2d": "local_attention",
    "window_attention_1d": "local_attention",
    "window_mask_1d": "local_attention",
}


def __getattr__(name: str):
    # Loaded when asked for: importing diffusers takes seconds, and the local attention needs none of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
