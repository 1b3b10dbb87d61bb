"""Images inside of files: the same bytes as in a folder, in any order of asking, and nothing written to disk."""

import io
import os
import tarfile
import warnings
import zipfile
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluate_metrics.core.encoders import make_encoder, set_of_images
from evaluate_metrics.core.image_sources import is_packed, open_images, pattern_paths
from evaluate_metrics.core.packed import ForwardReader
from hf_common.images import to_rgb

N = 11


def pictures(n=N, seed=0):
    """Names and encoded bytes, of odd sizes, in order of the names."""
    draw, found = np.random.default_rng(seed), {}
    for number in range(n):
        image = Image.fromarray(draw.integers(0, 256, (5 + number % 3, 7, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        ending = ("png", "JPG", "webp")[number % 3]
        image.save(buffer, {"png": "PNG", "JPG": "JPEG", "webp": "WEBP"}[ending])
        found[f"{'a/' if number < 6 else 'b/'}{number:03}.{ending}"] = buffer.getvalue()
    return found


def write_zip(path, contents, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def write_tar(path, contents, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path, contents, **options):
    rows = [{"bytes": content, "path": name} for name, content in contents.items()]
    table = datasets.Dataset.from_dict(
        {"image": rows, "label": list(range(len(rows)))},
        features=datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")}),
    )
    table.to_parquet(path, **options)
    return path


WRITERS = {
    "deflated.zip": write_zip,
    "stored.zip": lambda path, contents: write_zip(path, contents, zipfile.ZIP_STORED),
    "plain.tar": write_tar,
    "gz.tar.gz": lambda path, contents: write_tar(path, contents, "w:gz"),
    "xz.tar.xz": lambda path, contents: write_tar(path, contents, "w:xz"),
    "rows.parquet": write_parquet,
    "groups.parquet": lambda path, contents: write_parquet(path, contents, batch_size=3),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_bytes_in_any_order(tmp_path, name):
    contents = pictures()
    path, expected = tmp_path / name, list(contents.values())
    WRITERS[name](path, contents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = open_images(path)
    assert len(images) == N and [row["bytes"] for row in images] == expected
    for asked in (slice(3, 8), slice(0, 4), slice(9, 2, -3), slice(5, 99)):
        assert [row["bytes"] for row in images[asked]] == expected[asked]
    for number in (10, 0, 4, 5, -1):
        assert images[number]["bytes"] == expected[number]
    assert images[3]["path"].startswith(f"{path}: ") and "a/003.png" in images[3]["path"]
    with pytest.raises(IndexError, match="there are 11 images; got 11"):
        images[11]
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 the names alone


def test_hidden_files_and_others_are_left_out_and_said(tmp_path):
    contents = pictures(3)
    others = {"__MACOSX/a/._000.png": b"x", "a/.hidden.png": b"x", "dataset.json": b"{}", "labels": b"x", "a/": b""}
    for name in ("x.zip", "x.tar"):
        {"x.zip": write_zip, "x.tar": write_tar}[name](tmp_path / name, {**others, **contents})
        with pytest.warns(UserWarning, match=rf"{name}: [45] of [78] files are left out, .*: \.png, ") as caught:
            assert [row["bytes"] for row in open_images(tmp_path / name)] == list(contents.values())
        assert len(caught) == 1


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_captions_are_not_said_to_be_left_out(tmp_path, name, recwarn):
    """As beside the images of a folder: of an image's name, or of a sample's with several fields; and metadata."""
    image = pictures(1)["a/000.png"]
    write = write_zip if name.endswith("zip") else partial(write_tar, mode="w:gz" if name.endswith("gz") else "w")
    told = {"a/0.png": image, "a/0.txt": b"one", "b.input.png": image, "b.txt": b"two", "metadata.csv": b"file_name"}
    write(tmp_path / name, told)
    assert len(open_images(tmp_path / name)) == 2 and not recwarn.list
    write(tmp_path / name, {**told, "0.txt": b"of no image here", "b.json": b"{}"})
    with pytest.warns(UserWarning, match=r"2 of 4 files are left out, .*: \.txt, \.json$"):
        open_images(tmp_path / name)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_links_of_a_tar_file_are_left_out_and_said(tmp_path, name):
    contents = list(pictures(2).values())
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for content, kind in (
            (contents[0], None),
            (b"", tarfile.LNKTYPE),
            (contents[1], None),
            (b"", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(f"{len(archive.getmembers())}.png")
            member.size, member.type, member.linkname = len(content), kind or tarfile.REGTYPE, "0.png"
            archive.addfile(member, io.BytesIO(content))
    with pytest.warns(UserWarning, match="2 of 4 files are left out, .*: links or devices"):
        found = open_images(tmp_path / name)
    assert [found[number]["bytes"] for number in (1, 0)] == contents[::-1]


def test_an_image_that_is_in_a_tar_file_twice(tmp_path):
    """As `tar --append` leaves it: no sample of several images, which have other names."""
    contents = list(pictures(2).values())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for content in contents:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert [row["bytes"] for row in open_images(tmp_path / "x.tar")] == contents


def test_names_that_lead_elsewhere_are_names_alone(tmp_path):
    contents = {"../../outside.png": pictures(1)["a/000.png"], "/etc/x.png": pictures(1)["a/000.png"]}
    for name in ("x.zip", "x.tar"):
        {"x.zip": write_zip, "x.tar": write_tar}[name](tmp_path / name, contents)
        assert {row["bytes"] for row in open_images(tmp_path / name)} == {pictures(1)["a/000.png"]}
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("link.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(ValueError, match=r"link\.tar: holds no image files"):
        open_images(tmp_path / "link.tar")


# --- webdataset ---


def test_shards_of_webdataset(tmp_path):
    contents = list(pictures(9).values())
    for shard in range(3):
        samples = {}
        for number in range(3 * shard, 3 * shard + 3):
            samples |= {f"{number:04}.jpg": contents[number], f"{number:04}.cls": b"1", f"{number:04}.json": b"{}"}
        write_tar(tmp_path / f"train-{shard:03}.tar", samples)
    for pattern in ("train-{000..002}.tar", "train-*.tar", "train-00[0-2].tar", "{train-000,train-001,train-002}.tar"):
        with pytest.warns(UserWarning, match=r"6 of 9 files are left out, .*: \.cls, \.json$"):
            images = open_images(tmp_path / pattern)
        assert [row["bytes"] for row in images] == contents
        assert [row["bytes"] for row in images[2:7]] == contents[2:7] and "train-001.tar" in images[3]["path"]


def test_a_field_of_samples_of_several_images_is_named(tmp_path):
    content = list(pictures(2).values())
    samples = {f"{key}.{field}.png": content[n] for key in "ab" for n, field in enumerate(("input", "target"))}
    path = write_tar(tmp_path / "pairs.tar", samples)
    with pytest.raises(ValueError, match=r"samples of several images, input\.png, target\.png; name one of them"):
        open_images(path)
    assert [row["bytes"] for row in open_images(path, "target.png")] == [content[1]] * 2
    with pytest.raises(ValueError, match=r"holds no image files 'jpg', but the fields input\.png, target\.png"):
        open_images(path, "jpg")
    frames = write_tar(tmp_path / "frames.tar", {f"film.{n:03}.png": content[0] for n in range(5)})
    assert len(open_images(frames)) == 5  # dots in names of a folder are no fields
    compressed = write_tar(tmp_path / "pairs.tar.gz", samples, "w:gz")
    assert [row["bytes"] for row in open_images(compressed, "input.png")[::-1]] == [content[0]] * 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("s-{2..0}.tar", ["s-2.tar", "s-1.tar", "s-0.tar"]),
        ("{a,b}-{1..2}.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
        ("s[1].tar", ["s[1].tar"]),  # which is the name of a file
    ],
)
def test_patterns(tmp_path, name, expected):
    for file in expected:
        (tmp_path / file).touch()
    assert pattern_paths(str(tmp_path / name)) == [tmp_path / file for file in expected]
    (tmp_path / expected[-1]).unlink()
    with pytest.raises(FileNotFoundError):
        pattern_paths(str(tmp_path / name))


def test_patterns_have_bounds():
    for name in ("x-{0..999999999}.tar", "x-{0..999}-{0..999}.tar"):
        with pytest.raises(ValueError, match="files, more than 100000"):
            pattern_paths(name)
    assert is_packed("x-{0..9}.tar") and is_packed("X.ZIP") and is_packed(Path("a.tar.gz"))
    assert not is_packed("x.png") and not is_packed("user/name") and not is_packed("hf://x.zip")


# --- Arrays ---


def array(*shape, dtype=np.uint8):
    values = np.random.default_rng(1).integers(0, 256, shape)
    return (values / 255).astype(dtype) if np.issubdtype(dtype, np.floating) else values.astype(dtype)


@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
@pytest.mark.parametrize(
    "images",
    [array(5, 8, 9, 3), array(5, 3, 8, 9), array(5, 8, 9, 4), array(5, 8, 9), array(5, 8, 9, 3, dtype=np.float32)],
    ids=["NHWC", "NCHW", "RGBA", "grey", "float"],
)
def test_arrays_of_images(tmp_path, form, images):
    path = tmp_path / ("x.npy" if form == "npy" else "x.npz")
    if form == "npy":
        np.save(path, images)
    else:
        (np.savez if form == "npz" else np.savez_compressed)(path, images, np.arange(5))  # arr_1: labels
    found = open_images(path)
    expected = [np.asarray(to_rgb(one.transpose(1, 2, 0) if images.shape[1] == 3 else one)) for one in images]
    for order in (range(5), range(4, -1, -1)):
        for number in order:
            np.testing.assert_array_equal(np.asarray(to_rgb(found[number])), expected[number])
    assert found[2]["path"] == f"{path}: image 2"


def test_arrays_that_are_no_images(tmp_path):
    for images, message in (
        (array(2, 3, 4, 3), "may be both or none of these"),
        (array(2, 5, 4, 7), "may be both or none of these"),
        (np.asfortranarray(array(2, 5, 4, 3)), "is an array in Fortran's order; save numpy.ascontiguousarray"),
        (array(0, 5, 4, 3), r"holds no images: \(0, 5, 4, 3\)"),
        (array(2, 5), r"must hold \(N, H, W\)"),
        (array(5, 4, 3), r"has the shape \(5, 4, 3\), as one image"),
    ):
        np.savez(tmp_path / "x.npz", arr_0=images)
        with pytest.raises(ValueError, match=rf"x\.npz: .*{message}"):
            open_images(tmp_path / "x.npz", "arr_0")
    np.savez(tmp_path / "two.npz", a=array(2, 5, 4, 3), b=array(3, 5, 4, 3))
    with pytest.raises(ValueError, match=r"two\.npz: must hold one array of images, or its name be given; holds"):
        open_images(tmp_path / "two.npz")
    assert len(open_images(tmp_path / "two.npz", "b")) == 3
    np.savez(tmp_path / "beyond.npz", arr_0=array(2, 5, 4, 3, dtype=np.float64) * 255)
    with pytest.raises(ValueError, match=r"beyond\.npz: image 1 must have values in \[0, 1\]"):
        open_images(tmp_path / "beyond.npz")[1]


# --- Parquet ---


def test_columns_of_parquet_files(tmp_path):
    contents = list(pictures(3).values())
    table = pa.table({"png": contents, "other": contents[::-1], "number": [0, 1, 2]})
    pq.write_table(table, tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match=r"has the image columns \['png', 'other'\]; name one of them, got None"):
        open_images(tmp_path / "plain.parquet")
    assert [row["bytes"] for row in open_images(tmp_path / "plain.parquet", "other")] == contents[::-1]
    for kind in (pa.large_binary(), pa.binary_view()):  # as polars and DuckDB write them
        pq.write_table(pa.table({"png": pa.array(contents, kind)}), tmp_path / "other.parquet")
        assert [row["bytes"] for row in open_images(tmp_path / "other.parquet")] == contents
    pq.write_table(pa.table({"png": [{"bytes": "text"}]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: has the image columns \[\]"):
        open_images(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="got 'number'"):
        open_images(tmp_path / "plain.parquet", "number")
    pq.write_table(pa.table({"png": [contents[0], None]}), tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match=r"gap\.parquet: image 1 is missing"):
        open_images(tmp_path / "gap.parquet")[1]
    large = [{"bytes": contents[0]}]
    kind = pa.struct([("bytes", pa.large_binary())])
    for values in (pa.array(contents, pa.large_binary()), pa.array(large, kind)):  # as polars writes them
        pq.write_table(pa.table({"png": values}), tmp_path / "large.parquet")
        assert open_images(tmp_path / "large.parquet")[0]["bytes"] == contents[0]
    for other in ("text", [1, 2]):  # what is called bytes and is none
        pq.write_table(pa.table({"png": [{"bytes": other}]}), tmp_path / "others.parquet")
        with pytest.raises(ValueError, match=r"others\.parquet: has the image columns \[\]"):
            open_images(tmp_path / "others.parquet")
    pq.write_table(
        pa.table({"png": [{"bytes": None, "path": "a.png"}, {"bytes": b"", "path": "b.png"}]}), tmp_path / "p.parquet"
    )
    with pytest.raises(
        ValueError, match=r"image 0 is missing: it has the path 'a\.png' and no bytes; name the folder"
    ):
        open_images(tmp_path / "p.parquet")[0]
    pq.write_table(table[:0], tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"empty\.parquet: holds no rows"):
        open_images(tmp_path / "empty.parquet", "png")


# --- Damage ---


@pytest.mark.parametrize("name", [*WRITERS, "x.npz", "x.npy"])
def test_damage_names_the_file(tmp_path, damages, name):
    path, contents = tmp_path / name, pictures(4)
    if name in WRITERS:
        WRITERS[name](path, contents)
    else:
        (np.savez_compressed if name == "x.npz" else np.save)(path, array(4, 6, 7, 3))
    content, refused = path.read_bytes(), 0
    for damaged in damages(content, 60):
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images = open_images(path)
                for row in images:
                    to_rgb(row)
        except ValueError as error:
            assert str(path) in str(error), error
            refused += 1
    assert refused >= 10
    for nothing in (b"", b"no such file"):
        path.write_bytes(nothing)
        with pytest.raises(ValueError, match=name):
            open_images(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        open_images(path)


def test_damage_of_a_zip_file_of_lzma_names_the_image(tmp_path):
    path = write_zip(tmp_path / "x.zip", pictures(1), zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip: a/000\.png can't be read: "):
        open_images(path)[0]


def test_zip_files_with_a_password_and_without_images(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.txt": b"x"})
    with pytest.raises(ValueError, match=r"x\.zip: holds no image files among 1"):
        open_images(path)
    with pytest.raises(ValueError, match="is a zip file and has no column; got 'image'"):
        open_images(path, "image")
    write_zip(path, pictures(1))
    content = bytearray(path.read_bytes())
    for head, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(head) + flags] |= 1  # encrypted
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.zip: a/000\.png can't be read: .*password"):
        open_images(path)[0]


# --- Use ---


def test_encoders_take_them_as_they_take_folders(tmp_path):
    contents = pictures()
    encoder = make_encoder(lambda images: np.stack([np.asarray(i, np.float64).mean((0, 1)) + 1 for i in images]))
    folder = tmp_path / "folder"
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    expected = encoder.encode(folder)
    for name, write in WRITERS.items():
        write(tmp_path / name, contents)
        assert encoder.encode(str(tmp_path / name), batch_size=4).equal(expected)
    assert len(set_of_images(tmp_path / "plain.tar")) == N


def test_what_is_read_forwards_is_opened_as_seldom_as_can_be():
    opened = []

    def items(start):
        opened.append(start)
        return iter(range(start, 20))

    reader = ForwardReader(items, [0, 10])
    assert [reader.get(n) for n in (0, 1, 5, 9, 10, 11, 19)] == [0, 1, 5, 9, 10, 11, 19] and opened == [0]
    assert [reader.get(n) for n in (12, 3, 15)] == [12, 3, 15] and opened == [0, 10, 0, 10]
    with pytest.raises(EOFError, match="ends before image 20"):
        reader.get(20)
    assert reader.get(0) == 0
