"""Exact local attention in plain PyTorch, O(N x window) in time and memory, forward and backward, on any device.

`window_attention_1d` (the sliding window of Longformer, Beltagy et al. 2020, arXiv:2004.05150, without its global
tokens) and `neighborhood_attention_2d` (Hassani et al. 2023, arXiv:2204.07143). What they mean is said by the dense
masks `window_mask_1d` and `neighborhood_mask_2d`: each function equals scaled dot product attention under its mask.

How: the queries are cut into tiles that share a rectangle of keys (`tiles.py`); attention inside the rectangles is a
batched product with a mask (`tiled.py`), and no N x N tensor exists. On a CPU, few tokens are computed under the dense
mask itself, which is faster there ([`is_dense_faster`]).
"""

import operator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiled import HeadwiseAttention, batched_attention
from .tiles import make_plan, tile_mask, window_bounds

BOUNDARIES = ("shift", "truncate")
LEAST_TILED = 160  # tokens, times the threads, from which on tiles are considered on a CPU
MOST_DENSE = 1024  # tokens; a dense mask of them has 4 MB


def window_mask_1d(length: int, window: int, device: torch.device | str | None = None) -> Tensor:
    """The meaning of [`window_attention_1d`]: (length, length) bool, row i is True where |i - j| <= window."""
    window = checked_whole_number("window", window, 0)
    position = torch.arange(length, device=device)
    return (position[:, None] - position[None, :]).abs() <= window


def neighborhood_mask_2d(
    grid: tuple[int, int], kernel_size: int, boundary: str = "shift", device: torch.device | str | None = None
) -> Tensor:
    """The meaning of [`neighborhood_attention_2d`]: (N, N) bool for a grid of N = rows x columns, row-major.

    Row i is True at the keys that query i sees: `kernel_size` rows times `kernel_size` columns around it, cut at the
    border (`"truncate"`) or moved inwards (`"shift"`).
    """
    kernel_size = checked_kernel(kernel_size, boundary)
    return _grid_mask(grid, (kernel_size, kernel_size), boundary).to(device)


def _grid_mask(grid: tuple[int, int], kernel: tuple[int, int], boundary: str) -> Tensor:
    rows, columns = (
        (first[:, None] <= position) & (position <= last[:, None])
        for (first, last), position in (
            (window_bounds(n, size, boundary), torch.arange(n)) for n, size in zip(grid, kernel, strict=True)
        )
    )
    size = grid[0] * grid[1]
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(size, size)


def window_attention_1d(query: Tensor, key: Tensor, value: Tensor, window: int, scale: float | None = None) -> Tensor:
    """Attention of each token to the tokens at most `window` away: 2 * window + 1 keys, fewer at the ends.

    Args:
        query, key, value (`torch.Tensor`): (B, N, heads, head_dim), of one floating dtype and device.
        window (`int`): 0 or more; N - 1 or more is full attention.
        scale (`float`, *optional*): of the scores; 1 / sqrt(head_dim) by default.

    Returns:
        `torch.Tensor`: (B, N, heads, head_dim), equal to attention under [`window_mask_1d`].

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices differ, or `window` is negative or not a whole number.
    """
    window = checked_whole_number("window", window, 0)
    _check_tensors(query, key, value)
    # One column of N rows: every rectangle of keys is a view, nothing is copied.
    return _attention(query, key, value, (query.shape[1], 1), (2 * window + 1, 1), "truncate", scale)


def neighborhood_attention_2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    kernel_size: int,
    boundary: str = "shift",
    scale: float | None = None,
) -> Tensor:
    """Attention of each token of a grid to the `kernel_size` x `kernel_size` tokens around it.

    Args:
        query, key, value (`torch.Tensor`): (B, N, heads, head_dim), of one floating dtype and device; token
            `row * columns + column`.
        grid (`tuple[int, int]`): rows and columns, rows * columns == N.
        kernel_size (`int`): odd; as large as an axis or larger: all of that axis.
        boundary (`str`): what becomes of a window that crosses the border, as in [`neighborhood_mask_2d`].
        scale (`float`, *optional*): of the scores; 1 / sqrt(head_dim) by default.

    Returns:
        `torch.Tensor`: (B, N, heads, head_dim), equal to attention under [`neighborhood_mask_2d`].

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices differ, the grid does not hold N tokens, `kernel_size` is
            even or below 1, or `boundary` is unknown.
    """
    kernel_size = checked_kernel(kernel_size, boundary)
    _check_tensors(query, key, value)
    check_grid(grid, query.shape[1])
    rows, columns = grid
    return _attention(query, key, value, (rows, columns), (kernel_size, kernel_size), boundary, scale)


def check_grid(grid: tuple[int, int], tokens: int) -> None:
    """Raises a `ValueError` unless `grid` is two positive whole numbers whose product is `tokens`."""
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != tokens:
        raise ValueError(f"grid must be (rows, columns) with rows * columns == N = {tokens}; got {tuple(grid)}")


def checked_whole_number(name: str, value: Any, least: int) -> int:
    """`value`, an integer of Python, of numpy or in a tensor, as an `int`."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if number is None and not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    if number is None:
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be {least} or more; got {value}")
    return number


def checked_kernel(kernel_size: Any, boundary: str) -> int:
    """The size as an `int`; raises unless it is an odd whole number, and `boundary` one of `BOUNDARIES`."""
    kernel_size = checked_whole_number("kernel_size", kernel_size, 1)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that the window has a centre; got {kernel_size}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    return kernel_size


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.ndim != 4 or key.shape != query.shape or value.shape != query.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"query, key and value must have one shape (B, N, heads, head_dim); got {shapes}")
    if not query.is_floating_point() or key.dtype != query.dtype or value.dtype != query.dtype:
        raise TypeError(
            f"query, key and value must have one floating dtype; got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if key.device != query.device or value.device != query.device:
        raise ValueError(
            f"query, key and value must be on one device; got {query.device}, {key.device}, {value.device}"
        )


def is_dense_faster(grid: tuple[int, int], kernel: tuple[int, int], boundary: str, threads: int) -> bool:
    """Whether a CPU takes less time for one call over all tokens, under the dense mask, than for tiles.

    Measured with float32, batch 2, 6 heads of 64 and kernels of 3, 7 and 11, forward and with backward: the mask costs
    1 to 7 % of full attention's time; one thread gains by tiles from somewhere between 144 and 256 tokens on, two from
    between 256 and 400, and none where the tiles have more than about 0.6 of the scores that all tokens have. Full
    attention is divided among threads, tiles hardly are: beyond two, the limit grows with the threads, unmeasured.
    """
    tokens = grid[0] * grid[1]
    if tokens > MOST_DENSE:
        return False
    return tokens < LEAST_TILED * threads or make_plan(grid, kernel, boundary, 16).cost(16) > 0.6 * tokens**2


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # what is kept is for training too
def _dense_mask(grid: tuple[int, int], kernel: tuple[int, int], boundary: str, dtype: torch.dtype) -> Tensor:
    """What is added to scores, 0 or -inf, (N, N) on the CPU."""
    return torch.zeros((), dtype=dtype).where(_grid_mask(grid, kernel, boundary), -torch.inf)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    kernel: tuple[int, int],
    boundary: str,
    scale: float | None,
) -> Tensor:
    if torch.compiler.is_compiling():
        # The cut is a constant of the graph: sizes that the compiler made variables become numbers (range does it).
        grid = len(range(grid[0])), len(range(grid[1]))
        kernel = len(range(kernel[0])), len(range(kernel[1]))
    # A window that is cut at the border sees all of an axis from its ends too if it is nearly twice as large.
    sees_all = (size >= (2 * n - 1 if boundary == "truncate" else n) for size, n in zip(kernel, grid, strict=True))
    if all(sees_all):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)
    on_cpu = query.device.type == "cpu"
    if (
        on_cpu
        and not torch.compiler.is_compiling()
        and is_dense_faster(grid, kernel, boundary, torch.get_num_threads())
    ):
        mask = _dense_mask(grid, kernel, boundary, query.dtype)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)
    # Kernels of accelerators work on blocks of 64 queries and more.
    cut = (grid, kernel, boundary, 16 if on_cpu else 64)
    plan, mask = make_plan(*cut), tile_mask(*cut, query.dtype, query.device)
    if on_cpu and query.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling():
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return HeadwiseAttention.apply(query, key, value, plan, mask, scale)
    return batched_attention(query, key, value, plan, mask, scale)
