import glob
import os
import warnings

import pytest
from PIL import Image

from evaluate_metrics.core.folders import image_endings, image_files


def pictures(folder, n, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        Image.new("RGB", (4, 4)).save(folder / f"{number}.{ending}")
    return folder


def test_links_are_followed(tmp_path):
    root, elsewhere = tmp_path / "set", pictures(tmp_path / "elsewhere", 7)
    pictures(root / "c0", 5)
    (root / "c1").symlink_to(elsewhere)
    (root / "one.png").symlink_to(elsewhere / "0.png")
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link"):
        found = image_files(folder)
        assert [str(path) for path in found] == sorted(glob.glob(f"{folder}/**/*.png", recursive=True))  # noqa: PTH207 follows links
        assert len(found) == 13


def test_loops_end(tmp_path):
    root = pictures(tmp_path / "set", 2)
    pictures(root / "a", 3)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    elsewhere = pictures(tmp_path / "elsewhere", 1)
    (elsewhere / "back").symlink_to(root)
    (root / "b").symlink_to(elsewhere)
    with pytest.warns(UserWarning, match="set: 3 of 9 files are left out, .*: a/self, a/up, b/back$"):
        assert len(image_files(root)) == 6


@pytest.mark.parametrize("name", ["gone.png", "c1", "notes.txt"])
def test_links_that_lead_nowhere_are_named(name, tmp_path):
    root = pictures(tmp_path / "set", 2)
    (root / name).symlink_to("nowhere" if name != "c1" else name)  # the second one to itself
    with pytest.raises(ValueError, match=f"set/{name} is a link to '.*', which is not there"):
        image_files(root)


def test_other_files_are_counted_and_named(tmp_path):
    root = pictures(tmp_path / "set", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_files(root)) == 2
    pictures(root / ".cache", 1)
    for name in ("prompts.txt", "Thumbs.db", ".DS_Store", "stats.h5", "._0.png", "mu.npz", "film.mpg", "metadata.csv"):
        (root / name).write_bytes(b"x")
    os.mkfifo(root / "pipe.png")
    pictures(root, 1, "JPEG")
    words = r"set: 9 of 12 files are left out.*: \.DS_Store, \._0\.png, \.cache, \.\.\.$"
    with pytest.warns(UserWarning, match=words):
        assert [path.name for path in image_files(root)] == ["0.JPEG", "0.png", "1.png"]


def test_captions_are_not_said_to_be_left_out(tmp_path):
    root = pictures(pictures(tmp_path / "set", 2) / "a", 1).parent
    for name in ("0.txt", "a/0.txt", "a/metadata.csv", "metadata.jsonl"):
        (root / name).write_text("a grey square")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_files(root)) == 3
    (root / "notes.txt").write_text("of none of them")
    with pytest.warns(UserWarning, match=r"1 of 4 files are left out.*: notes\.txt$"):
        image_files(root)


def test_a_data_set_is_not_taken_for_its_pictures(tmp_path):
    root = pictures(tmp_path / "set", 1)
    for name in ("train.parquet", "images.tar"):
        (root / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"set holds images and 1 data files, as .*{name}; of a data set name"):
            image_files(root)
        (root / name).unlink()


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="holds no files"):
        image_files(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"x")
    assert image_files(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        image_files(tmp_path / "gone")


def test_endings_of_images():
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm"} <= image_endings()
    assert not image_endings() & {".h5", ".hdf", ".txt", ".db", ".mpg", ".pdf", ".ps", ".eps", ".npz", ".grib", ""}
