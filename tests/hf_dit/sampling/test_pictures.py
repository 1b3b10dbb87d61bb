import numpy as np
import pytest
from PIL import Image

from hf_dit.sampling.pictures import BACKGROUND, contact_sheet, image_grid


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(8, 8, 12), (32, 32, 3), (28, 28, 3), (50, 60, 2), (256, 256, 1)]
)
def test_small_images_grow_by_whole_factors_and_stay_as_they_are(width, height, scale):
    images = [picture(width, height, seed) for seed in range(6)]
    grid = np.asarray(image_grid(images, 2, 3, gap=5))
    own = np.asarray(contact_sheet(images, 3, gap=5))
    for sheet in (grid, own):
        found = 0
        for image in images:
            large = np.asarray(image).repeat(scale, 0).repeat(scale, 1)
            top, left = np.argwhere((sheet == large[0, 0]).all(-1))[0]
            found += np.array_equal(sheet[top : top + large.shape[0], left : left + large.shape[1]], large)
        assert found == 6
    assert own.shape == (2 * scale * height + 5, 3 * scale * width + 10, 3)


def ink(array):
    """Where there is text: dark, or grey at its edges; the images of these tests are pure red."""
    return (array != np.array([255, 0, 0])).any(-1) & (array != 255).any(-1)


@pytest.mark.parametrize(
    "names", [("g", "guidance 4"), ("two\nlines", "a name of many words that has to break somewhere")]
)
@pytest.mark.parametrize("columns", [("50 steps", "500 steps"), ("Incomprehensibilities", "jumping over a lazy dog")])
@pytest.mark.parametrize(
    "title", [None, "One_long_word_without_any_space_in_it and then others, over more than a line"]
)
@pytest.mark.parametrize("side", [4, 16, 100])
def test_no_text_touches_an_image_or_the_border(names, columns, title, side):
    images = [Image.new("RGB", (side, side), (255, 0, 0))] * 4
    array = np.asarray(image_grid(images, 2, 2, names, columns, title))
    red = (array == np.array([255, 0, 0])).all(-1)
    assert red.sum() == 4 * (side * {4: 24, 16: 6, 100: 1}[side]) ** 2  # nothing is drawn over an image
    text = ink(array)
    assert text.any() and not text[0].any() and not text[-1].any() and not text[:, 0].any() and not text[:, -1].any()
    beside = np.zeros_like(text)
    for shift in (-1, 1):
        beside |= np.roll(red, shift, 0) | np.roll(red, shift, 1)
    assert not (text & beside).any()


def test_names_stand_at_their_rows_and_columns_and_all_of_them_is_seen():
    image = Image.new("RGB", (96, 96), (255, 0, 0))
    bare = image_grid([image] * 6, 2, 3)
    assert not ink(np.asarray(bare)).any()
    rows = np.asarray(image_grid([image] * 6, 2, 3, row_names=["", "second"]))
    left = np.argwhere((rows == np.array([255, 0, 0])).all(-1))[:, 1].min()
    found = np.argwhere(ink(rows))
    assert found[:, 1].max() < left and found[:, 0].min() > rows.shape[0] // 2
    columns = np.asarray(image_grid([image] * 6, 2, 3, column_names=["", "", "third"]))
    top = np.argwhere((columns == np.array([255, 0, 0])).all(-1))[:, 0].min()
    found = np.argwhere(ink(columns))
    assert found[:, 0].max() < top and found[:, 1].min() > columns.shape[1] * 2 // 3
    # Letters that a font may lack are drawn as one and the same box.
    shapes = [np.asarray(image_grid([image], 1, 1, title=letter)).tobytes() for letter in "éüЖλ"]
    assert len(set(shapes)) == 4


def test_grey_images_and_sheets_are_cells_too():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    sheet = contact_sheet([grey] * 5, scale=2, gap=1)
    assert sheet.mode == "RGB" and sheet.size == (3 * 16 + 2, 2 * 16 + 1)
    assert np.array_equal(np.asarray(sheet)[:16, :16, 0], np.asarray(grey).repeat(2, 0).repeat(2, 1))
    assert (np.asarray(sheet)[17:, 34:] == BACKGROUND).all()  # the place of a sixth
    assert np.asarray(image_grid([sheet] * 2, 1, 2, scale=1)).shape[1] > 2 * sheet.width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "images: expected one or more"),
        ({"images": [picture(8, 8)] * 3}, "2 rows of 2 are 4 images; got 3"),
        ({"images": [picture(8, 8)] * 3 + [picture(8, 9)]}, "one size; got 8x8, 8x9"),
        ({"images": [picture(8, 8)] * 3 + [Image.new("RGBA", (8, 8))]}, "mode L or RGB; got RGB, RGBA"),
        ({"rows": 0}, "rows must be 1 or more; got 0"),
        ({"row_names": ["a"]}, "row_names: expected 2 names, one each; got 1"),
        ({"column_names": ["a", "b", "c"]}, "column_names: expected 2 names, one each; got 3"),
        ({"gap": -1}, "gap must be 0 or more"),
        ({"scale": 0}, "scale must be 1 or more; got 0"),
    ],
)
def test_a_grid_refuses_what_does_not_fit(change, message):
    arguments = {"images": [picture(8, 8)] * 4, "rows": 2, "columns": 2} | change
    with pytest.raises(ValueError, match=message):
        image_grid(**arguments)
