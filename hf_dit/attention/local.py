"""Exact local attention in plain PyTorch, O(N x window) in time and memory, forward and backward, on any device.

`window_attention_1d` (the sliding window of Longformer, Beltagy et al. 2020, arXiv:2004.05150, without its global
tokens) and `neighborhood_attention_2d` (Hassani et al. 2023, arXiv:2204.07143, with the patterns of NATTEN 0.21).
What they mean is said by the dense masks `window_mask_1d` and `neighborhood_mask_2d`: each function equals scaled dot
product attention under its mask.

How: the queries are cut into tiles that share a rectangle of keys (`tiles.py`); attention inside the rectangles is a
batched product with a mask (`tiled.py`), and no N x N tensor exists. On a CPU, few tokens are computed under the dense
mask itself, which is faster there ([`is_dense_faster`]). Groups of a dilation are grids of their own (`groups.py`).
"""

from functools import lru_cache, partial

import torch
from torch import Tensor

from .fused import fused_attention
from .groups import attend_in_groups, group_shapes
from .kept import kept_tensors
from .tiled import HeadwiseAttention, batched_attention
from .tiles import added_to_scores, make_plan, tile_mask
from .windows import Window, Windows, checked_whole_number, grid_mask, grid_sees_all, make_windows

LEAST_TILED = 160  # tokens, times the threads, from which on tiles are considered on a CPU
LEAST_QUERIES = 16  # of a tile on a CPU: fewer take as long
MOST_DENSE = 1024  # tokens; a dense mask of them has 4 MB


def window_mask_1d(length: int, window: int, device: torch.device | str | None = None) -> Tensor:
    """The meaning of [`window_attention_1d`]: (length, length) bool, row i is True where |i - j| <= window."""
    window = checked_whole_number("window", window, 0)
    position = torch.arange(length, device=device)
    return (position[:, None] - position[None, :]).abs() <= window


def neighborhood_mask_2d(
    grid: tuple[int, int],
    kernel_size: int | tuple[int, int],
    boundary: str = "shift",
    device: torch.device | str | None = None,
    *,
    dilation: int | tuple[int, int] = 1,
    is_causal: bool | tuple[bool, bool] = False,
    stride: int | tuple[int, int] = 1,
) -> Tensor:
    """The meaning of [`neighborhood_attention_2d`]: (N, N) bool for a grid of N = rows x columns, row-major.

    Row i is True at the keys that query i sees: `kernel_size` rows times `kernel_size` columns around it, cut at the
    border (`"truncate"`) or moved inwards (`"shift"`). Arguments and errors are those of
    [`neighborhood_attention_2d`].
    """
    windows = make_windows(kernel_size, boundary, dilation, is_causal, stride)
    return torch.as_tensor(grid_mask(grid, windows), device=device)


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
    windows = Window(2 * window + 1, "truncate"), Window(1, "truncate")
    return _attention(query, key, value, (query.shape[1], 1), windows, scale)


def neighborhood_attention_2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: tuple[int, int],
    kernel_size: int | tuple[int, int],
    boundary: str = "shift",
    scale: float | None = None,
    *,
    dilation: int | tuple[int, int] = 1,
    is_causal: bool | tuple[bool, bool] = False,
    stride: int | tuple[int, int] = 1,
) -> Tensor:
    """Attention of each token of a grid to the `kernel_size` x `kernel_size` tokens around it.

    What takes one value for both axes takes a pair too, for rows and columns. The rule is NATTEN's ([`Window`]). On a
    CPU it is differentiable any number of times and `torch.func` takes it, `vmap` included, but for forward mode
    (`jvp`); elsewhere as far as PyTorch's kernel there does.

    Args:
        query, key, value (`torch.Tensor`): (B, N, heads, head_dim), of one floating dtype and device; token
            `row * columns + column`.
        grid (`tuple[int, int]`): rows and columns, rows * columns == N.
        kernel_size (`int` or a pair): 1 or more; of an even one, one more row and column lies before the token than
            after it; as large as an axis or larger: all of that axis.
        boundary (`str`): what becomes of a window that crosses the border, as in [`neighborhood_mask_2d`].
        scale (`float`, *optional*): of the scores; 1 / sqrt(head_dim) by default.
        dilation (`int` or a pair): the step between the keys of a token; above 1, kernel_size * dilation is at most
            the length of the axis.
        is_causal (`bool` or a pair): no key stands after its query on that axis, and the window ends at the query.
        stride (`int` or a pair): from 1 to kernel_size; as many queries share the window of one of them.

    Returns:
        `torch.Tensor`: (B, N, heads, head_dim), equal to attention under [`neighborhood_mask_2d`].

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices differ, the grid does not hold N tokens, a number is out
            of its range, or `boundary` is unknown.
    """
    windows = make_windows(kernel_size, boundary, dilation, is_causal, stride)
    _check_tensors(query, key, value)
    check_grid(grid, query.shape[1])
    return _attention(query, key, value, (grid[0], grid[1]), windows, scale)


def check_grid(grid: tuple[int, int], tokens: int) -> None:
    """Raises a `ValueError` unless `grid` is two positive whole numbers whose product is `tokens`."""
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != tokens:
        raise ValueError(f"grid must be (rows, columns) with rows * columns == N = {tokens}; got {tuple(grid)}")


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


def is_dense_faster(grid: tuple[int, int], windows: Windows, threads: int) -> bool:
    """Whether a CPU takes less time for one call over all tokens, under the dense mask, than for tiles.

    Measured with float32, batch 2, 6 heads of 64 and kernels of 3, 7 and 11, forward and with backward: the mask costs
    1 to 7 % of full attention's time; one thread gains by tiles from somewhere between 144 and 256 tokens on, two from
    between 256 and 400, and none where the tiles have more than about 0.6 of the scores that all tokens have. Beyond
    two threads the limit grows with them, unmeasured.
    """
    tokens = grid[0] * grid[1]
    if tokens > MOST_DENSE:
        return False
    return tokens < LEAST_TILED * threads or _cost(grid, windows) > 0.6 * tokens**2


@lru_cache(maxsize=256)
def _cost(grid: tuple[int, int], windows: Windows) -> int:
    """Estimated time of tiles on a CPU, all groups of a dilation, in scores."""
    rows, columns = (group_shapes(n, window.dilation) for n, window in zip(grid, windows, strict=True))
    return sum(
        (last_row - first_row)
        * (last_column - first_column)
        * make_plan((row_tokens, column_tokens), undilated(windows), LEAST_QUERIES).cost(LEAST_QUERIES)
        for first_row, last_row, row_tokens in rows
        for first_column, last_column, column_tokens in columns
    )


@kept_tensors(maxsize=8)
def _dense_mask(grid: tuple[int, int], windows: Windows, dtype: torch.dtype) -> Tensor:
    """What is added to scores, 0 or -inf, (N, N) on the CPU."""
    return added_to_scores(grid_mask(grid, windows), dtype, torch.device("cpu"))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], windows: Windows, scale: float | None
) -> Tensor:
    compiling, on_cpu = torch.compiler.is_compiling(), query.device.type == "cpu"
    if compiling:
        # The cut is a constant of the graph: sizes that the compiler made variables become numbers (range does it).
        grid = len(range(grid[0])), len(range(grid[1]))
        windows = _as_constants(windows[0]), _as_constants(windows[1])
    if grid_sees_all(grid, windows):
        return _of_all_tokens(query, key, value, None, scale)
    if on_cpu and not compiling and is_dense_faster(grid, windows, torch.get_num_threads()):
        return _of_all_tokens(query, key, value, _dense_mask(grid, windows, query.dtype), scale)
    dilation = windows[0].dilation, windows[1].dilation
    if dilation != (1, 1):
        attend = partial(_attention, windows=undilated(windows), scale=scale)
        return attend_in_groups(attend, query, key, value, grid, dilation)
    # Kernels of accelerators work on blocks of 64 queries and more.
    cut = (grid, windows, LEAST_QUERIES if on_cpu else 64)
    plan, mask = make_plan(*cut), tile_mask(*cut, query.dtype, query.device)
    if on_cpu and query.dtype in (torch.float32, torch.float64) and not compiling:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return HeadwiseAttention.apply(query, key, value, plan, mask, scale)
    return batched_attention(query, key, value, plan, mask, scale)


def undilated(windows: Windows) -> Windows:
    """The windows within a group."""
    return windows[0]._replace(dilation=1), windows[1]._replace(dilation=1)


def _as_constants(window: Window) -> Window:
    kernel, boundary, dilation, stride, is_causal = window
    return Window(len(range(kernel)), boundary, len(range(dilation)), len(range(stride)), is_causal)


def _of_all_tokens(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return fused_attention(query, key, value, mask, scale).transpose(1, 2)
