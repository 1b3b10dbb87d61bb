"""Who sees whom along one axis: the windows of local attention, by the rule of NATTEN 0.21.

With dilation d, token i belongs to the group i mod d and has the position p = i div d there; its keys are tokens of
its group whose positions are a range (Hassani & Shi 2022, arXiv:2209.15001; causal, strides: Hassani et al. 2025,
arXiv:2504.16922). Axes are independent of each other: a token of a grid sees the product of both axes' keys.
"""

import operator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

BOUNDARIES = ("shift", "truncate")


class Window(NamedTuple):
    """The window of each token along an axis.

    kernel: keys of a query, 1 or more; of an even number one more lies before the query than after it.
    boundary: what becomes of a window that crosses the border: `"shift"` moves it inwards, so that it keeps its size
        (the rule of NATTEN: the centre is clamped), `"truncate"` cuts it.
    dilation: the step between keys, 1 or more.
    stride: as many queries of a group, one after the other, share the window of one of them; from 1 to `kernel`.
    is_causal: no key comes after its query; the window ends at it, and is cut at the border.
    """

    kernel: int
    boundary: str = "shift"
    dilation: int = 1
    stride: int = 1
    is_causal: bool = False

    def bounds(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last position of the keys of each query of a group of `length`, both inclusive; (length,) int64.

        Neither ever falls from one query to the next, and a query is one of its own keys. A kernel larger than the
        group sees all of it.
        """
        position = np.arange(length, dtype=np.int64)
        block = position // self.stride * self.stride
        if self.is_causal:
            leader = np.minimum(block + self.stride - 1, length - 1)
            return np.maximum(leader - self.kernel + 1, 0), position
        leader = np.minimum(block + self.stride // 2, length - 1)
        if self.boundary == "truncate":
            first = leader - self.kernel // 2
            return np.maximum(first, 0), np.minimum(first + self.kernel - 1, length - 1)
        kernel = min(self.kernel, length)
        first = np.clip(leader - kernel // 2, 0, length - kernel)
        return first, first + kernel - 1

    def bounds_of_tokens(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for each token of an axis of `length`, in positions of its group."""
        token = np.arange(length)
        found = np.zeros((2, length), dtype=np.int64)
        for group in range(min(self.dilation, length)):
            own = token % self.dilation == group
            found[:, own] = self.bounds(int(own.sum()))
        return found[0], found[1]

    def mask(self, length: int) -> np.ndarray:
        """(length, length) bool: row i is True at the keys that query i of an axis sees."""
        token = np.arange(length)
        group, position = token % self.dilation, token // self.dilation
        first, last = self.bounds_of_tokens(length)
        inside = (first[:, None] <= position) & (position <= last[:, None])
        return inside & (group[:, None] == group)

    def sees_all(self, length: int) -> bool:
        """Whether each query of an axis sees all of it."""
        if length == 1:
            return True
        if self.dilation > 1:
            return False
        first, last = self.bounds(length)
        return bool((first == 0).all() and (last == length - 1).all())

    def check_length(self, length: int) -> None:
        """Raises a `ValueError` where a dilated window is longer than the axis, which NATTEN refuses too."""
        if self.dilation > 1 and self.kernel * self.dilation > length:
            raise ValueError(
                f"kernel_size * dilation must be at most the {length} tokens of its axis; "
                f"got {self.kernel} * {self.dilation}"
            )


Windows = tuple[Window, Window]  # along rows and columns


def make_windows(
    kernel_size: Any, boundary: str = "shift", dilation: Any = 1, is_causal: Any = False, stride: Any = 1
) -> Windows:
    """The windows along rows and columns of a grid, from one value for both, or pairs (along rows, along columns).

    `kernel_size` counts keys: (7, 5) sees 7 rows of 5 columns.

    Raises:
        TypeError, ValueError: a number is not whole or too small, a stride above its kernel, a pair is none, or
            `boundary` is unknown.
    """
    kernels = _pair("kernel_size", kernel_size)
    dilations, strides = _pair("dilation", dilation), _pair("stride", stride)
    causal = tuple(is_causal) if isinstance(is_causal, (tuple, list)) else (is_causal, is_causal)
    if len(causal) != 2 or not all(isinstance(axis, bool) for axis in causal):
        raise TypeError(f"is_causal must be True, False or two of these; got {is_causal!r}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    for size, shared in zip(kernels, strides, strict=True):
        if shared > size:
            raise ValueError(f"stride must be at most kernel_size; got {shared} and {size}")
    rows, columns = (
        Window(size, boundary, step, shared, causal_axis)
        for size, step, shared, causal_axis in zip(kernels, dilations, strides, causal, strict=True)
    )
    return rows, columns


def grid_mask(grid: tuple[int, int], windows: Windows) -> np.ndarray:
    """(N, N) bool for a grid of N = rows x columns, row-major: row i is True at the keys that query i sees.

    Raises:
        ValueError: a dilated window is longer than its axis.
    """
    for window, length in zip(windows, grid, strict=True):
        window.check_length(length)
    rows, columns = (window.mask(length) for window, length in zip(windows, grid, strict=True))
    size = grid[0] * grid[1]
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(size, size)


@torch.compiler.assume_constant_result  # for a compiler cannot trace a cached function
def grid_sees_all(grid: tuple[int, int], windows: Windows) -> bool:
    """Whether each token of a grid sees every other; a `ValueError` where a dilated window is longer than its axis."""
    return _grid_sees_all(grid, windows)


@lru_cache(maxsize=256)
def _grid_sees_all(grid: tuple[int, int], windows: Windows) -> bool:
    for window, length in zip(windows, grid, strict=True):
        window.check_length(length)
    return all(window.sees_all(length) for window, length in zip(windows, grid, strict=True))


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


def _pair(name: str, value: Any) -> tuple[int, int]:
    """A number for both axes, or a pair of them."""
    if not isinstance(value, (tuple, list)):
        number = checked_whole_number(name, value, 1)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{name} must be a whole number or two of them, rows and columns; got {tuple(value)}")
    return checked_whole_number(name, value[0], 1), checked_whole_number(name, value[1], 1)
