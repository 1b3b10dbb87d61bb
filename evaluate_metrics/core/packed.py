"""Images inside of files, one at a time: what all kinds of such files have in common."""

import threading
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from hf_common.images import to_rgb


class PackedImages(Sequence):
    """Images of a file, read when they are asked for: rows `{"bytes": an encoded image, "path": what errors call it}`.

    Nothing is written to disk. A kind of file adds `__len__` and `_row`.
    """

    @abstractmethod
    def _row(self, index: int) -> dict:
        """Row 0 to len - 1; a `ValueError` that names it where it can't be read."""

    @overload
    def __getitem__(self, index: int) -> dict: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._row(number) for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} images; got {index}")
        return self._row(number)


class JoinedImages(PackedImages):
    """The images of several files, one file after the other."""

    def __init__(self, parts: Iterable[PackedImages]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self._parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _row(self, index: int) -> dict:
        place = bisect_right(self._ends, index)
        return self._parts[place][index - (self._ends[place - 1] if place else 0)]


class ForwardReader:
    """Items of what can be read forwards alone, by number; going back opens it again.

    Args:
        opened: an iterator of the items from one of `starts` on.
        starts: the numbers, rising from 0, of the items at which it can begin.
    """

    def __init__(self, opened: Callable[[int], Iterator[Any]], starts: Sequence[int] = (0,)) -> None:
        self._opened, self._starts = opened, starts
        self._items: Iterator[Any] | None = None
        self._next = 0
        self._lock = threading.Lock()

    def get(self, number: int) -> Any:
        """The item; `StopIteration` is an `EOFError`: there are fewer than was thought."""
        with self._lock:
            begin = self._starts[bisect_right(self._starts, number) - 1]
            if self._items is None or number < self._next or begin > self._next:
                self._items, self._next = self._opened(begin), begin
            try:
                for item in self._items:
                    self._next += 1
                    if self._next > number:
                        return item
            except BaseException:
                self._items = None  # an iterator that failed gives nothing more
                raise
            self._items = None
            raise EOFError(f"ends before image {number}")


def pixels_as_file(pixels: np.ndarray, name: str) -> bytes:
    """An array as [`to_rgb`] takes it, (H, W) or (H, W, C), as the content of an image file: PPM, without loss."""
    image = to_rgb(pixels, name)
    return b"P6 %d %d 255\n" % image.size + image.tobytes()


def left_out_words(path: object, endings: dict[str, int], images: int) -> str:
    """What a warning says of files that are no images, counted by their endings."""
    others = sum(endings.values())
    most = sorted(endings, key=lambda ending: -endings[ending])
    named = ", ".join(most[:4]) + (", ..." if len(most) > 4 else "")
    return f"{path}: {others} of {images + others} files are left out, which are no images by their names: {named}"
