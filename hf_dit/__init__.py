"""Diffusion Transformers as `diffusers` pipelines, with attention that can be swapped."""
