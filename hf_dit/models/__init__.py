"""The Diffusion Transformer, its published sizes, and the conversion of published weights."""
