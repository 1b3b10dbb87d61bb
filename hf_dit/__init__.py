"""Diffusion Transformers as `diffusers` pipelines, with attention that can be swapped."""

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
