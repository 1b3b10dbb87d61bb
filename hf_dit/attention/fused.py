"""PyTorch's fused attention, on a CPU differentiable any number of times and under the transforms of `torch.func`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """`scaled_dot_product_attention` of (B, H, N, D) each, under a `mask` that is added to the scores, or none.

    `mask` is (N, N) or (1, H, N, N) and no variable. Elsewhere than on a CPU, and compiled, the result is
    differentiable as often as PyTorch's kernel there, which is once.
    """
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        # What `torch.autograd.Function` asks too. The kernel knows nothing of these, its parts do.
        if torch._C._are_functorch_transforms_active():
            return attention_weights(query, key, mask, scale) @ value
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            return FusedAttention.apply(*map(_channels_last, (query, key, value)), mask, scale)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(..., queries, D) and (..., keys, D) -> (..., queries, keys), written out."""
    scores = query @ key.mT * scale
    return (scores if mask is None else scores + mask).softmax(-1)


def attention_gradients(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, (..., N, D) each, in operations that PyTorch differentiates as often as asked."""
    weights = attention_weights(query, key, mask, scale)
    of_weights = grad @ value.mT
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
    return of_scores @ key, of_scores.mT @ query, weights.mT @ grad


class FusedAttention(torch.autograd.Function):
    """`apply(query, key, value, mask, scale)`: (B, H, N, D) on a CPU -> the same; `stride(-1) == 1`.

    In the older style of a function that knows no transforms: the other one takes 30 microseconds more, a tenth of the
    time of 64 tokens.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        out, sums = FUSED_FORWARD(query, key, value, attn_mask=mask, scale=scale)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, sums = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients will be differentiated
            return *attention_gradients(query, key, value, grad, mask, ctx.scale), None, None
        grads = FUSED_BACKWARD(
            _channels_last(grad), query, key, value, out, sums, 0.0, False, attn_mask=mask, scale=ctx.scale
        )
        return *grads, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise_forward_mode()


def _channels_last(x: Tensor) -> Tensor:
    """With the channels of each token side by side, as the kernel needs them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def raise_forward_mode() -> None:
    raise NotImplementedError(
        "local attention on a CPU has no derivatives in forward mode (jvp, jacfwd, hessian); "
        "take vjp, jacrev, or jacrev of jacrev"
    )
