"""The weights that a DiT starts from."""

import math
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def draw_initial_weights(model: Any) -> None:
    """Draw the initial weights of a `DiTModel` from PyTorch's global generator.

    Those of the paper's code, which has adaLN-Zero alone: every block is the identity and the output is zero. Other
    conditioning has what that code and the paper's section 3.2 say of all: Xavier for every linear layer (the
    modulation of adaLN too, whose condition is small at first), N(0, 0.02) for the embedders, zero for the output;
    norms with weights start at one.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
    nn.init.xavier_uniform_(model.patch_embed.weight.view(len(model.patch_embed.weight), -1))
    if model.patch_embed.bias is not None:
        nn.init.zeros_(model.patch_embed.bias)
    for embedder in model.embedders_of_blocks():
        nn.init.normal_(embedder.time_embedding.linear_1.weight, std=0.02)
        nn.init.normal_(embedder.time_embedding.linear_2.weight, std=0.02)
        if embedder.class_embedding is not None:
            nn.init.normal_(embedder.class_embedding.weight, std=0.02)
    for block in model.transformer_blocks:
        for projection in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
            # The paper's code draws the three as one (3 C, C) matrix: bound sqrt(6 / 4C), not sqrt(6 / 2C).
            nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
        if model.config.conditioning == "adaln_zero":
            nn.init.zeros_(block.modulation.weight)
    if model.modulation_out is not None:
        nn.init.zeros_(model.modulation_out.weight)
    nn.init.zeros_(model.proj_out.weight)
