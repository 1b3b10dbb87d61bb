import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_common.files import (
    publish_folder,
    replace_bytes,
    replace_text,
    replacing,
    save_figure,
    save_picture,
    slug,
    temporary_name,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_text_bytes_and_json_replace_what_is_there(tmp_path):
    path = tmp_path / "new" / "file.json"
    for write, content, found in (
        (replace_text, "grün\n", "grün\n".encode()),
        (replace_bytes, b"\x00\xff", b"\x00\xff"),
        (write_json, {"a": [1, None]}, b'{\n "a": [\n  1,\n  null\n ]\n}\n'),
    ):
        write(path, content)
        assert path.read_bytes() == found and names(tmp_path) == ["file.json", "new"]


@pytest.mark.parametrize("content", [float("nan"), float("inf"), {1, 2}])
def test_what_is_no_json_leaves_the_old_file(content, tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"value": content})
    assert json.loads((tmp_path / "a.json").read_text()) == 1 and names(tmp_path) == ["a.json"]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old" and names(tmp_path) == [temporary.name, "weights"]
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["weights"]


def test_a_kill_while_writing_leaves_the_old_file_and_a_temporary_one(tmp_path):
    path = tmp_path / "weights"
    path.write_text("old")
    code = """
import os, signal, sys
from hf_common.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=env).returncode == -9
    (left,) = tmp_path.glob(".*.tmp")
    assert path.read_text() == "old" and names(tmp_path) == [left.name, "weights"]


def test_the_content_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    calls, paths = [], {}
    opened, synced, renamed = os.open, os.fsync, os.replace

    def open_file(path, flags, *mode, **options):
        handle = opened(path, flags, *mode, **options)
        paths[handle] = str(path)
        return handle

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(paths[handle]), synced(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), renamed(a, b)))
    replace_text(tmp_path / "a", "text")
    assert calls == [str(temporary_name(tmp_path / "a")), "rename", str(tmp_path)]
    calls.clear()
    folder = tmp_path / ".new.tmp"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("1")
    publish_folder(folder, tmp_path / "new")
    assert set(calls[:-2]) == {str(folder), str(folder / "inner"), str(folder / "inner" / "file")}
    assert calls[-2:] == ["rename", str(tmp_path)]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for text in ("first", "second"):
        folder = tmp_path / ".new.tmp"
        folder.mkdir()
        (folder / text).write_text(text)
        publish_folder(folder, tmp_path / "new")
        assert names(tmp_path) == sorted(["new", text])


def test_pictures_and_figures_in_the_format_of_their_names(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_picture(Image.fromarray(pixels), tmp_path / "deep" / "picture.png")
    assert (np.asarray(Image.open(tmp_path / "deep" / "picture.png")) == pixels).all()
    figure = Figure(figsize=(2, 1))
    for name, head in {"a.png": b"\x89PNG", "a.pdf": b"%PDF", "a.svg": b"<?xml"}.items():
        save_figure(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)
    assert Image.open(tmp_path / "a.png").size == (300, 150)
    assert not list(tmp_path.rglob(".*"))


def test_characters_without_a_glyph_are_told_once(tmp_path):
    figure = Figure(figsize=(2, 1))
    figure.suptitle("猫犬, 猫")
    with pytest.warns(UserWarning) as told:
        save_figure(figure, tmp_path / "a.png")
    assert [str(warning.message)[:38] for warning in told] == ["a.png: 2 characters of names are boxes"]


def test_files_of_their_owner_alone_become_those_of_the_umask(tmp_path):
    """As safetensors writes them."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        (tmp_path / ".new" / "inner").mkdir(parents=True)
        os.close(os.open(tmp_path / ".new" / "inner" / "b", os.O_CREAT | os.O_WRONLY, 0o600))
        publish_folder(tmp_path / ".new", tmp_path / "new")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "new/inner/b")] == [0o640, 0o640]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("na7*6,full", "na7_6_full"),
        ("10*nce + 0.1*rce", "10_nce_+_0.1_rce"),
        ("gce(q=0.7)", "gce_q=0.7"),
        ("../up", ".._up"),
        ("xformers:full", "xformers_full"),
    ],
)
def test_slug(text, found):
    assert slug(text) == found
