"""Images side by side in one picture, with the names of its rows and columns. Drawn by Pillow, no files."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

# Pillow's own font has no accented letters, Greek or Cyrillic, which names of classes may have.
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
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
    for name, value, least in (("rows", rows, 1), ("columns", columns, 1), ("gap", gap, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more; got {value}")
    if len(images) != rows * columns:
        raise ValueError(f"images: {rows} rows of {columns} are {rows * columns} images; got {len(images)}")
    for name, names, count in (("row_names", row_names, rows), ("column_names", column_names, columns)):
        if names is not None and len(names) != count:
            raise ValueError(f"{name}: expected {count} names, one each; got {len(names)}")
    scale = _check_scale(scale, width, height)
    width, height = scale * width, scale * height

    size = min(max(13, min(width, height) // 11), 26)
    font, space = ImageFont.truetype(FONT, size), size // 2
    heads = [_wrapped(name, font, width) for name in column_names or ()]
    sides = [_wrapped(name, font, WIDEST_ROW_NAME * size) for name in row_names or ()]
    widths, heights = [width] * columns, [height] * rows
    if heads:
        # Between two names there is more room than between two images.
        widths = [max(width, _extent(text, font)[0] + max(space - gap, 0)) for text in heads]
    if sides:
        heights = [max(height, _extent(text, font)[1] + max(space - gap, 0)) for text in sides]
    left = space + max((_extent(text, font)[0] + space for text in sides), default=0)
    full_width = left + sum(widths) + (columns - 1) * gap + space

    title_font = ImageFont.truetype(FONT, size + 2)
    title_text = "" if title is None else _wrapped(title, title_font, full_width - 2 * space)
    title_width, title_height = _extent(title_text, title_font)
    full_width = max(full_width, title_width + 2 * space)
    title_height = title_height + space if title_text else 0
    top = space + title_height + max((_extent(text, font)[1] + space // 2 for text in heads), default=0)

    picture = Image.new("RGB", (full_width, top + sum(heights) + (rows - 1) * gap + space), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    _write(draw, title_text, title_font, (space, space), 0)
    xs = [left + sum(widths[:column]) + column * gap for column in range(columns)]
    ys = [top + sum(heights[:row]) + row * gap for row in range(rows)]
    for text, x, cell_width in zip(heads, xs, widths, strict=False):
        w, h = _extent(text, font)
        _write(draw, text, font, (x + (cell_width - w) // 2, top - space // 2 - h), 0.5)
    for text, y, cell_height in zip(sides, ys, heights, strict=False):
        w, h = _extent(text, font)
        _write(draw, text, font, (left - space - w, y + (cell_height - h) // 2), 1)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        corner = (xs[column] + (widths[column] - width) // 2, ys[row] + (heights[row] - height) // 2)
        picture.paste(_enlarged(image, scale), corner)
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
    for name, value, least in (("columns", columns, 1), ("gap", gap, 0)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more; got {value}")
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


def _check_scale(scale: int | None, width: int, height: int) -> int:
    if scale is None:
        side = min(width, height)
        return max(USUAL_SIDE // side, math.ceil(LEAST_SIDE / side))
    if scale < 1:
        raise ValueError(f"scale must be 1 or more; got {scale}")
    return scale


def _enlarged(image: Image.Image, scale: int) -> Image.Image:
    return image.convert("RGB").resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text with a line end in place of each space at which a line would grow beyond `width`."""
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
    return "\n".join(lines)


def _extent(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a text, its lines' full height counted whatever letters they hold."""
    lines = text.split("\n")
    return max(math.ceil(font.getlength(line)) for line in lines), len(lines) * _line_height(font)


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return sum(font.getmetrics())


def _write(
    draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, corner: tuple[int, int], align: float
) -> None:
    """Write the lines into the box of [`_extent`] whose upper left corner is given; `align` 0: left, 1: right."""
    x, y = corner
    width, _ = _extent(text, font)
    for line in text.split("\n"):
        draw.text((x + align * (width - font.getlength(line)), y), line, fill=INK, font=font)
        y += _line_height(font)
