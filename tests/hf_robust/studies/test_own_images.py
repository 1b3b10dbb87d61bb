"""Runs on photographs of all sizes: exact over batches, processes and kills, like those on images in memory."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_robust.data.load import load_image_splits
from hf_robust.reports.plots import plot_curves
from hf_robust.reports.tables import details_table, results_table
from hf_robust.studies.flags import DataArguments, ModelArguments
from hf_robust.studies.images import prepared_images
from hf_robust.studies.publish import read_run, run_card
from tests import ROOT
from tests.processes import run_process

TRAIN = ROOT / "scripts/train_robust.py"
COMMON = ["--validation_split", "0.25", "--resolution", "16", "--num_train_epochs", "2", "--report_to", "none"]
SMALL = ["--model", "cnn_small", "--config_overrides", "batch_norm=false", "--learning_rate", "0.02"]
KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from hf_robust.studies import run
made = run.make_trainer

def make_trainer(*args, **kwargs):
    trainer = made(*args, **kwargs)
    step = int(os.environ["KILL_AT"])
    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
    trainer.add_callback(Kill())
    return trainer

run.make_trainer = make_trainer
from hf_robust.commands.train import main
main()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes, bright and dark, 20 images each, of sizes from 12 to 40 pixels."""
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, low in (("bright", 120), ("dark", 0)):
        (folder / label).mkdir()
        for place in range(20):
            size = draw.integers(12, 41, 2)
            pixels = draw.integers(low, low + 136, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{place}.png")
    return folder


def run(output, photos, *flags, processes=1, kill_at=None, status=0, common=COMMON):
    words = ["--dataset", photos, "--output_dir", output, *common, *flags, "--use_cpu"]
    words += ["--ddp_backend", "gloo"] if processes > 1 else []
    what = TRAIN if kill_at is None else KILLED
    done = run_process(what, *words, processes=processes, KILL_AT=str(kill_at))
    assert done.returncode == status, done.stderr[-3000:]
    return done


def weights(folder):
    return load_file(folder / "model.safetensors")


def difference(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["nce+rce", "gjs", "elr"])
def test_batches_processes_and_kills_change_nothing(tmp_path, photos, loss):
    flags = [*SMALL, "--loss", loss]
    run(tmp_path / "a", photos, *flags, "--per_device_train_batch_size", "8")
    run(tmp_path / "b", photos, *flags, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4")
    run(tmp_path / "c", photos, *flags, "--per_device_train_batch_size", "4", processes=2)
    assert difference(tmp_path / "a", tmp_path / "b") < 2e-6
    assert difference(tmp_path / "a", tmp_path / "c") < 2e-6
    flags += ["--per_device_train_batch_size", "8", "--save_strategy", "steps", "--save_steps", "1"]
    run(tmp_path / "d", photos, *flags)
    run(tmp_path / "e", photos, *flags, kill_at=5, status=-9)
    run(tmp_path / "e", photos, *flags, "--resume_from_checkpoint", "last", "--dataloader_num_workers", "1")
    assert difference(tmp_path / "d", tmp_path / "e") == 0 == difference(tmp_path / "a", tmp_path / "d")
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "de"]
    assert results[0]["history"] == results[1]["history"] and results[0]["noise"] == results[1]["noise"]
    assert results[0]["settings"]["resolution"] == 16 and "keep_in_memory" not in results[0]["settings"]


@pytest.mark.parametrize(("augmentation", "draft"), [(None, False), ("random_resized_crop_draft", True)])
def test_lower_scales_are_of_training_and_of_those_who_ask(photos, augmentation, draft):
    data = DataArguments(dataset=str(photos), resolution=16, augmentation=augmentation)
    splits = load_image_splits(data.dataset, validation_split=0.25, keep_in_memory=False)
    prepared = prepared_images(data, ModelArguments(), splits).splits
    assert prepared.train.augment and prepared.train.draft is draft
    assert not prepared.test.augment and not prepared.test.draft


def test_labels_that_were_held_out_are_called_given(tmp_path, photos):
    one = [*SMALL, "--augmentation", "none"]
    run(tmp_path / "a", photos, *one)
    settings = json.loads((tmp_path / "a/settings.json").read_text())
    assert settings["validation_split"] == 0.25 and not {"skip_corrupt", "keep_in_memory"} & settings.keys()
    results = read_run(tmp_path / "a/results.json")
    assert results["noise"]["test_labels"] == "given"
    for text in (results_table([results]), details_table([results]), run_card([results], "someone/mine")):
        assert "clean test set" not in text and "given labels" in text
    (axes, *_) = plot_curves(results).axes
    assert axes.get_title() == "Held-out images, given labels"
    run(tmp_path / "b", photos, *one, "--noise", "symmetric_20")
    noisy = read_run(tmp_path / "b/results.json")
    assert "test_labels" not in noisy["noise"] and "clean test set" in results_table([noisy])


def test_images_of_one_size_train_the_same_in_memory_or_not(tmp_path):
    draw = np.random.default_rng(1)
    for label, low in (("bright", 120), ("dark", 0)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for place in range(12):
            pixels = draw.integers(low, low + 136, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{place}.png")
    flags = ["--model", "cnn_small", "--validation_split", "0.25", "--loss", "gjs", "--num_train_epochs", "2"]
    flags += ["--per_device_train_batch_size", "5", "--report_to", "none"]
    for name, more in (("memory", []), ("files", ["--keep_in_memory", "false"])):
        run(tmp_path / name, tmp_path / "data", *flags, *more, common=[])
    assert difference(tmp_path / "memory", tmp_path / "files") == 0


def test_a_pretrained_model_keeps_its_processor_at_the_resolution(tmp_path, photos):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    run(tmp_path / "a", photos, "--model", tmp_path / "vit", "--learning_rate", "0.01")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "a")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    assert model.config.id2label == {0: "bright", 1: "dark"}
    with Image.open(photos / "bright/3.png") as image:
        pixels = processor(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 16, 16) and model(pixels).logits.shape == (1, 2)


def test_bad_input_is_one_line(tmp_path, photos):
    small = ["--model", "cnn_small"]
    for flags, message in (
        (["--resolution", "0"], "resolution must be 1 or more; got 0"),
        (["--validation_split", "2"], "validation_split must be a share in (0, 1); got 2.0"),
        (["--noise", "instance_20"], "looks at the pixels of all images"),
    ):
        done = run(tmp_path / "x", photos, *small, *flags, status=2)
        assert message in done.stderr.splitlines()[-1]
