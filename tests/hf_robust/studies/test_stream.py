"""Runs on streamed photographs: as exact as others, and what a stream can't do is said before anything is read."""

import json

import numpy as np
import pytest
from PIL import Image

from .test_own_images import SMALL, difference, run

COMMON = ["--resolution", "16", "--report_to", "none"]
STREAM = [*SMALL, "--streaming", "--shuffle_buffer", "16", "--max_steps", "9", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def split_photos(tmp_path_factory):
    """Two classes, bright and dark, 20 training and 6 test images each, of sizes from 12 to 40 pixels."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for label, low in (("bright", 120), ("dark", 0)):
            (folder / split / label).mkdir(parents=True)
            for place in range(count):
                size = draw.integers(12, 41, 2)
                pixels = draw.integers(low, low + 136, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{place}.png")
    return folder


def stream(output, photos, *flags, **options):
    return run(output, photos, *STREAM, *flags, common=COMMON, **options)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nce+rce", "gjs"])
def test_batches_processes_workers_and_kills_change_nothing(tmp_path, split_photos, loss):
    """9 steps of 8 images go through 40 images twice."""
    flags = ["--loss", loss]
    stream(tmp_path / "a", split_photos, *flags, "--per_device_train_batch_size", "8")
    small = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"]
    stream(tmp_path / "b", split_photos, *flags, *small, "--dataloader_num_workers", "1")
    stream(tmp_path / "c", split_photos, *flags, "--per_device_train_batch_size", "4", processes=2)
    assert difference(tmp_path / "a", tmp_path / "b") < 2e-6
    assert difference(tmp_path / "a", tmp_path / "c") < 2e-6
    flags += ["--per_device_train_batch_size", "8", "--save_strategy", "steps", "--save_steps", "1"]
    stream(tmp_path / "e", split_photos, *flags, kill_at=7, status=-9)
    stream(tmp_path / "e", split_photos, *flags, "--resume_from_checkpoint", "last")
    assert difference(tmp_path / "a", tmp_path / "e") == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ae"]
    assert results[0]["history"] == results[1]["history"]
    assert results[0]["noise"] == {"rate": None} and results[0]["train_images"] is None
    assert results[0]["test_images"] == 12 and results[0]["label_names"] == ["bright", "dark"]
    assert (tmp_path / "a/curves.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_steps", "-1"], "max_steps must be 1 or more where images are streamed"),
        (["--loss", "elr"], "remembers something of each training image"),
        (["--noise", "symmetric_20"], "noise='symmetric_20' needs all training images"),
        (["--validation_split", "0.1"], "validation_split='0.1' needs all training images"),
        (["--augmentation", "crop"], "augmentation must be none or random_resized_crop"),
        (["--shuffle_buffer", "0"], "shuffle_buffer must be 1 or more"),
        (["--dataset", "digits"], "is not streamed"),
        (["--text_column_name", "text"], "asks for texts"),
        (["--loss", "forward", "--transition_matrix", "true"], "needs the clean labels of all images"),
        (["--test_split_name", "validation"], "has no split 'validation'"),
    ],
)
def test_what_a_stream_can_not_do_is_one_line(tmp_path, split_photos, flags, message):
    done = stream(tmp_path / "x", split_photos, *flags, status=2)
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x" / "results.json").exists()


@pytest.mark.slow
def test_a_fresh_network_needs_a_resolution(tmp_path, split_photos):
    done = run(tmp_path / "x", split_photos, *STREAM, status=2, common=["--report_to", "none"])
    assert "say to which square streamed images are brought" in done.stderr.splitlines()[-1]
