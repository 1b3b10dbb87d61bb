"""Images side by side in one picture, with the names of its rows and columns. Drawn by Pillow, no files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

# Pillow's own font has no accented letters, Greek or Cyrillic, which names of classes may have.
FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")  # older Pillow takes no paths
BACKGROUND, INK = (255, 255, 255), (0, 0, 0)
MODES = ("L", "RGB")
LEAST_SIDE, USUAL_SIDE = 64, 96  # pixels of a cell that a reader sees without a magnifier
WIDEST_ROW_NAME = 16  # in units of the font's size; longer names break at their spaces


def image_grid(
    images: Sequence[Image.Image],
    rows: int,
    columns: int,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str | None = None,
    *,
    gap: int = 4,
    scale: int | None = None,
) -> Image.Image:
    """Images in rows and columns, the columns' names above them, the rows' names at their left.

    Names break at spaces (and at line ends of their own) where a cell is too narrow. A column with a word wider than
    its cells is as wide as the word, and a row as high as its name: no text touches an image or the border.

    Args:
        images: PIL images of one size, mode `RGB` or `L`, row by row.
        rows, columns: `rows * columns` is the number of images.
        row_names, column_names: one text a row, one a column. Default: none.
        title: a text above everything.
        gap: white pixels between images.
        scale: whole factor by which images grow, each pixel a square. Default: the one that makes the shorter side
            64 to 96 pixels (up to 126 if no factor does), 1 if it is longer.

    Returns:
        A new `RGB` image; at `scale` 1 the given pixels are unchanged.

    Raises:
        ValueError: another number of images or names, images of several sizes or of another mode, or a number that is
            too small.
    """
    width, height = _check_images(images)
    _check_numbers(rows=(rows, 1), columns=(columns, 1), gap=(gap, 0))
    if len(images) != rows * columns:
        raise ValueError(f"images: {rows} rows of {columns} are {rows * columns} images; got {len(images)}")
    for name, names, count in (("row_names", row_names, rows), ("column_names", column_names, columns)):
        if names is not None and len(names) != count:
            raise ValueError(f"{name}: expected {count} names, one each; got {len(names)}")
    scale = _check_scale(scale, width, height)
    layout = _layout((scale * width, scale * height), rows, columns, row_names or (), column_names or (), title, gap)
    picture = Image.new("RGB", layout.size, BACKGROUND)
    _draw_names(picture, layout)
    for position, image in enumerate(images):
        picture.paste(_enlarged(image, scale), layout.corner(*divmod(position, columns)))
    return picture


def contact_sheet(
    images: Sequence[Image.Image], columns: int | None = None, *, gap: int = 2, scale: int | None = None
) -> Image.Image:
    """Images close together without names: what a cell of [`image_grid`] can be.

    Args:
        images: one or more PIL images of one size, mode `RGB` or `L`.
        columns: images in a row; the last row may be shorter. Default: as square a sheet as can be.
        gap: white pixels between them.
        scale: as in [`image_grid`].

    Raises:
        ValueError: no images, several sizes, another mode, or a number that is too small.
    """
    width, height = _check_images(images)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else min(columns, len(images))
    _check_numbers(columns=(columns, 1), gap=(gap, 0))
    scale = _check_scale(scale, width, height)
    step_x, step_y = scale * width + gap, scale * height + gap
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * step_x - gap, rows * step_y - gap), BACKGROUND)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        sheet.paste(_enlarged(image, scale), (column * step_x, row * step_y))
    return sheet


def _check_images(images: Sequence[Image.Image]) -> tuple[int, int]:
    if len(images) == 0:
        raise ValueError("images: expected one or more; got none")
    sizes, modes = sorted({image.size for image in images}), sorted({image.mode for image in images})
    if len(sizes) > 1:
        raise ValueError(f"images: expected one size; got {', '.join(f'{w}x{h}' for w, h in sizes)} (width x height)")
    if not set(modes) <= set(MODES):
        raise ValueError(f"images: expected mode {' or '.join(MODES)}; got {', '.join(modes)}")
    return sizes[0]


def _check_numbers(**numbers: tuple[int, int]) -> None:
    """Raise a `ValueError` for a number that is less than the one beside it."""
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{name} must be {least} or more; got {value}")


def _check_scale(scale: int | None, width: int, height: int) -> int:
    if scale is None:
        side = min(width, height)
        return max(USUAL_SIDE // side, math.ceil(LEAST_SIDE / side))
    if scale < 1:
        raise ValueError(f"scale must be 1 or more; got {scale}")
    return scale


def _enlarged(image: Image.Image, scale: int) -> Image.Image:
    return image.convert("RGB").resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


class _Text(NamedTuple):
    """A text in lines, which are counted by their full height whatever letters they hold."""

    lines: list[str]
    font: ImageFont.FreeTypeFont

    @classmethod
    def wrapped(cls, text: str, font: ImageFont.FreeTypeFont, width: int) -> "_Text":
        """A line ends in place of each space at which it would grow beyond `width`, and where `text` has an end."""
        lines = []
        for paragraph in text.split("\n"):
            line = ""
            for word in paragraph.split(" "):
                longer = f"{line} {word}" if line else word
                if line and font.getlength(longer) > width:
                    lines.append(line)
                    line = word
                else:
                    line = longer
            lines.append(line)
        return cls(lines, font)

    @property
    def width(self) -> int:
        return max(math.ceil(self.font.getlength(line)) for line in self.lines)

    @property
    def height(self) -> int:
        return len(self.lines) * sum(self.font.getmetrics())

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, align: float) -> None:
        """Write the lines into the box whose upper left corner is (x, y); `align` 0: left, 1: right."""
        for number, line in enumerate(self.lines):
            place = (x + align * (self.width - self.font.getlength(line)), y + number * sum(self.font.getmetrics()))
            draw.text(place, line, fill=INK, font=self.font)


class _Layout(NamedTuple):
    """Where everything of a grid stands: the cells' upper left corners and sizes, and the texts."""

    size: tuple[int, int]
    image: tuple[int, int]  # width and height of one, enlarged
    xs: list[int]
    widths: list[int]
    ys: list[int]
    heights: list[int]
    space: int  # between a text and what is beside it
    heads: list[_Text]
    sides: list[_Text]
    title: _Text

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Of the image in the middle of a cell."""
        width, height = self.image
        x, y = self.xs[column], self.ys[row]
        return x + (self.widths[column] - width) // 2, y + (self.heights[row] - height) // 2


def _layout(
    image: tuple[int, int],
    rows: int,
    columns: int,
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str | None,
    gap: int,
) -> _Layout:
    width, height = image
    size = min(max(13, min(width, height) // 11), 26)
    font, space = ImageFont.truetype(FONT, size), size // 2
    heads = [_Text.wrapped(name, font, width) for name in column_names]
    sides = [_Text.wrapped(name, font, WIDEST_ROW_NAME * size) for name in row_names]
    # Between two names there is more room than between two images.
    room = max(space - gap, 0)
    widths = [max(width, text.width + room) for text in heads] or [width] * columns
    heights = [max(height, text.height + room) for text in sides] or [height] * rows
    left = space + max((text.width + space for text in sides), default=0)
    full_width = left + sum(widths) + (columns - 1) * gap + space
    above = _Text.wrapped(title or "", ImageFont.truetype(FONT, size + 2), full_width - 2 * space)
    title_height = above.height + space if title else 0
    top = space + title_height + max((text.height + space // 2 for text in heads), default=0)
    return _Layout(
        size=(max(full_width, above.width + 2 * space), top + sum(heights) + (rows - 1) * gap + space),
        image=image,
        xs=[left + sum(widths[:column]) + column * gap for column in range(columns)],
        widths=widths,
        ys=[top + sum(heights[:row]) + row * gap for row in range(rows)],
        heights=heights,
        space=space,
        heads=heads,
        sides=sides,
        title=above,
    )


def _draw_names(picture: Image.Image, layout: _Layout) -> None:
    draw, space = ImageDraw.Draw(picture), layout.space
    layout.title.draw(draw, space, space, 0)
    for text, x, width in zip(layout.heads, layout.xs, layout.widths, strict=False):
        text.draw(draw, x + (width - text.width) // 2, layout.ys[0] - space // 2 - text.height, 0.5)
    for text, y, height in zip(layout.sides, layout.ys, layout.heights, strict=False):
        text.draw(draw, layout.xs[0] - space - text.width, y + (height - text.height) // 2, 1)
