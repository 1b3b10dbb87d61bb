"""Losses that form their gradient beside their value, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import in_one_block, row_blocks


class Rowwise(torch.autograd.Function):
    """`function(z (b, K), labels (b, 1), grad (b, K), *params) -> loss (b, 1)`, block of rows by block.

    The function writes the gradient dloss/dz to its place beside the value; that is the one tensor kept.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, function: Callable, *params: float) -> Tensor:
        ctx.num_params = len(params)
        grad, at = torch.empty_like(z), labels.unsqueeze(1)
        if in_one_block(z):
            loss = function(z, at, grad, *params)
        else:
            loss = z.new_empty(len(z), 1)
            for block, at_block, grad_block, out in row_blocks(z, at, grad, loss):
                out.copy_(function(block, at_block, grad_block, *params))
        ctx.save_for_backward(grad)
        return loss.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.unsqueeze(1), None, None, *[None] * ctx.num_params
