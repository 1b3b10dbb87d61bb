"""Dilation: the tokens of a grid that are a step apart, on both axes, are a grid of their own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_in_groups(
    attend: Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """`attend(query, key, value, grid)` of each group (row mod dilation, column mod dilation) of a grid by itself.

    Groups of one shape are samples of one call, (B * groups, N, H, D) each: there are at most four shapes, and one
    where the dilation divides the grid. (B, N, H, D) each -> (B, N, H, D).
    """
    (rows, columns), (row_step, column_step) = grid, dilation
    lengths = -(-rows // row_step), -(-columns // column_step)

    def by_groups(x: Tensor) -> Tensor:  # (B, N, H, D) -> (B, positions, row groups, positions, column groups, H, D)
        x = _filled(x.unflatten(1, grid), (lengths[0] * row_step, lengths[1] * column_step), (1, 2))
        return x.unflatten(2, (lengths[1], column_step)).unflatten(1, (lengths[0], row_step))

    grouped = [by_groups(x) for x in (query, key, value)]
    found = []
    for first_row, last_row, row_tokens in group_shapes(rows, row_step):
        beside = []
        for first_column, last_column, column_tokens in group_shapes(columns, column_step):
            parts = [
                x[:, :row_tokens, first_row:last_row, :column_tokens, first_column:last_column]
                .permute(0, 2, 4, 1, 3, 5, 6)
                for x in grouped
            ]  # fmt: skip
            samples = parts[0].shape[:3]
            q, k, v = (x.flatten(3, 4).flatten(0, 2) for x in parts)
            out = attend(q, k, v, (row_tokens, column_tokens))
            out = out.unflatten(1, (row_tokens, column_tokens)).unflatten(0, samples).permute(0, 3, 1, 4, 2, 5, 6)
            beside.append(_filled(out, lengths, (1, 3)))
        found.append(torch.cat(beside, 4))
    out = torch.cat(found, 2).flatten(3, 4).flatten(1, 2)
    return out[:, :rows, :columns].flatten(1, 2)


def group_shapes(length: int, dilation: int) -> list[tuple[int, int, int]]:
    """First group, end of the groups, and tokens of each of them: one entry for each length that groups have."""
    tokens, longer = divmod(length, dilation)
    return [(0, longer, tokens + 1), (longer, dilation, tokens)] if longer else [(0, dilation, tokens)]


def _filled(x: Tensor, sizes: tuple[int, int], dims: tuple[int, int]) -> Tensor:
    """Zeros behind the end of two dimensions, up to these sizes."""
    padding = [0, 0] * x.ndim
    for size, dim in zip(sizes, dims, strict=True):
        padding[2 * (x.ndim - dim) - 1] = size - x.shape[dim]
    return F.pad(x, padding) if any(padding) else x
