import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

from hf_common.arguments import parse_overrides
from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training import latents as latents_module
from hf_dit.training import run as training_module
from hf_dit.training.arguments import DataArguments, DiTTrainingArguments, ModelArguments
from hf_dit.training.figures import smoothed
from hf_dit.training.images import ImageFormat, image_format, load_images, open_rows, prepare_image
from hf_dit.training.latents import LatentMoments, cached_latents, latent_size
from hf_dit.training.network import noise_scheduler, open_network
from hf_dit.training.objectives import NoiseSchedule, add_noise
from hf_dit.training.run import train_dit
from hf_dit.training.stream import PixelSamples, StepBatches, TrainingStream, epoch_order
from tests import ROOT

COLOURS = {"blue": (40, 60, 210), "green": (50, 190, 60), "red": (220, 50, 40)}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def picture(colour, height=8, width=8, seed=0):
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def write_parquet(folder, columns, features):
    folder.mkdir(parents=True, exist_ok=True)
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of Parquet: 30 images of 8 x 8 pixels, sorted by their three classes."""
    labels = [label for label in range(3) for _ in range(10)]
    columns = {
        "image": [picture(list(COLOURS.values())[label], seed=i) for i, label in enumerate(labels)],
        "label": labels,
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))}
    return write_parquet(tmp_path_factory.mktemp("colours"), columns, features)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A folder with an autoencoder that halves the sides: 8 x 8 x 3 -> 4 x 4 x 4."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        scaling_factor=0.3,
        shift_factor=2.0,
    ).save_pretrained(folder)
    return str(folder)


def arguments(dataset, output_dir, **changes):
    """The three dataclasses of a small training, with changed fields."""
    values = {
        "dataset_name": dataset,
        "model": "dit-micro-2",
        "output_dir": str(output_dir),
        "use_cpu": True,
        "train_batch_size": 4,
        "max_train_steps": 6,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "checkpointing_steps": 0,
        "save_images_steps": 0,
        "sample_steps": 2,
        "num_sample_images": 3,
        "sample_guidance_scales": [1.0, 4.0],
        **changes,
    }
    if values["dataset_name"] is None:
        del values["dataset_name"]
    kinds = (DataArguments, ModelArguments, DiTTrainingArguments)
    return [kind(**{k: v for k, v in values.items() if k in kind.__dataclass_fields__}) for kind in kinds]


def flags(dataset, output_dir, **changes):
    """The same as a command line."""
    line = []
    for part in arguments(dataset, output_dir, **changes):
        for name, value in vars(part).items():
            if isinstance(value, bool):
                line += [f"--{name}", str(value)]
            elif value is not None:
                line += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return line


def weights(output_dir):
    return load_file(Path(output_dir) / "transformer" / "diffusion_pytorch_model.safetensors")


def losses(output_dir):
    results = json.loads((Path(output_dir) / "results.json").read_text())
    return [[row[part] for part in ("step", "loss", "mse", "vb")] for row in results["history"]]


# --- the stream


@pytest.mark.parametrize("length", [1, 2, 7, 30])
def test_each_epoch_visits_every_image_once(length):
    stream = TrainingStream(PixelSamples(torch.zeros(length, 3, 2, 2, dtype=torch.uint8)), None, seed=3)
    orders = [[stream.index(epoch * length + place) for place in range(length)] for epoch in range(3)]
    assert all(sorted(order) == list(range(length)) for order in orders)
    assert length < 7 or orders[0] != orders[1] != orders[2]
    assert length < 7 or list(epoch_order(4, 0, length)) != orders[0]


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(12, 1, 1), (1, 4, 3), (2, 3, 2), (3, 1, 4)])
def test_processes_and_micro_batches_share_the_positions_of_a_step(batch, accumulation, processes):
    taken = {}
    for process in range(processes):
        sampler = StepBatches(
            range(5, 8), batch_size=batch, accumulation=accumulation, processes=processes, process=process
        )
        assert len(list(sampler)) == len(sampler) == 3 * accumulation
        for number, positions in enumerate(sampler):
            taken.setdefault(5 + number // accumulation, []).extend(positions)
    assert all(sorted(taken[step]) == list(range(12 * step, 12 * step + 12)) for step in (5, 6, 7))


def test_a_sample_depends_on_seed_and_position_alone():
    images = torch.randint(256, (9, 3, 4, 6), dtype=torch.uint8)
    labels = torch.arange(9) % 4

    def stream(seed=0, **changes):
        return TrainingStream(PixelSamples(images), labels, seed=seed, **changes)

    one, other = stream(), stream()
    backwards = [other[p] for p in reversed(range(40))][::-1]
    loader = torch.utils.data.DataLoader(
        stream(), batch_sampler=StepBatches(range(5), batch_size=4, accumulation=2), num_workers=2
    )
    loaded = {name: torch.cat([batch[name] for batch in loader]) for name in one[0]}
    for position in range(40):
        for name, value in one[position].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(backwards[position][name]))
            assert torch.equal(torch.as_tensor(value), loaded[name][position])
        place = one.index(position)
        assert one[position]["label"] == labels[place]
        torch.testing.assert_close(one[position]["clean"], images[place] / 127.5 - 1)

    flipped = stream(random_flip=True)
    for position in range(40):  # a flag changes what it names
        a, b = one[position], flipped[position]
        assert torch.equal(a["noise"], b["noise"]) and a["timestep"] == b["timestep"] and a["drop"] == b["drop"]
        assert torch.equal(b["clean"], a["clean"]) or torch.equal(b["clean"], a["clean"].flip(2))
    mirrored = sum(not torch.equal(one[p]["clean"], flipped[p]["clean"]) for p in range(40))
    assert 8 <= mirrored <= 32
    assert not torch.equal(one[0]["noise"], stream(seed=1)[0]["noise"])
    assert not torch.equal(one[0]["noise"], one[9]["noise"])


def test_labels_are_dropped_and_timesteps_drawn_at_the_right_rates():
    left_and_right = torch.tensor([0, 255], dtype=torch.uint8).expand(7, 3, 1, 2)
    count = 6000
    for probability in (0.0, 0.1, 0.5):
        stream = TrainingStream(
            PixelSamples(left_and_right),
            torch.zeros(7, dtype=torch.int64),
            seed=0,
            num_timesteps=10,
            class_dropout_prob=probability,
            random_flip=True,
        )
        items = [stream[position] for position in range(count)]
        drop = np.array([item["drop"] for item in items])
        flip = np.array([item["clean"][0, 0, 0] == 1 for item in items])
        assert abs(drop.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / count)
        assert abs(flip.mean() - 0.5) <= 2 / np.sqrt(count)
        assert abs((drop & flip).mean() - probability / 2) <= 2 / np.sqrt(count)  # neither tells the other
    timesteps = np.bincount([item["timestep"] for item in items], minlength=10)
    assert len(timesteps) == 10 and np.abs(timesteps - count / 10).max() < 5 * np.sqrt(count / 10)
    noise = torch.stack([item["noise"] for item in items])
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert TrainingStream(PixelSamples(left_and_right), None, seed=0)[0].keys() == {"clean", "noise", "timestep"}


# --- images


def test_the_middle_square_is_scaled():
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("red", (10, 0, 20, 10))
    pixels = prepare_image(wide, ImageFormat((4, 4), resized=True))
    assert pixels.shape == (3, 4, 4) and pixels.dtype == np.uint8
    assert (pixels == np.array([255, 0, 0])[:, None, None]).all()
    ramp = Image.fromarray(np.add.outer(np.arange(31) * 4, np.arange(21) * 3).astype(np.uint8)).convert("RGB")
    expected = ramp.crop((0, 5, 21, 26)).resize((7, 7), Image.Resampling.BICUBIC)
    assert np.array_equal(
        prepare_image(ramp, ImageFormat((7, 7), resized=True)), np.asarray(expected).transpose(2, 0, 1)
    )


def test_modes_become_rgb():
    form = ImageFormat((2, 2), resized=False)
    assert (prepare_image(Image.new("L", (2, 2), 77), form) == 77).all()
    assert (prepare_image(Image.new("1", (2, 2), 1), form) == 255).all()
    half = prepare_image(Image.new("RGBA", (2, 2), (200, 0, 0, 0)), form)
    assert (half == 255).all()  # nothing shows: white
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert (prepare_image(palette, form) == 255).all()
    for transparency in ({}, {"transparency": 0}):
        for mode in ("I", "I;16"):
            image = Image.new(mode, (2, 2), 32896)
            image.info |= transparency
            assert (prepare_image(image, form) == 128).all()
        image = Image.new("F", (2, 2))
        image.info |= transparency
        with pytest.raises(ValueError, match="mode 'F'; convert it to RGB"):
            prepare_image(image, form)


def test_sizes_that_are_refused(tmp_path):
    images = [picture((9, 9, 9), 12, 12), picture((9, 9, 9), 8, 12), picture((9, 9, 9), 7, 20)]
    folder = write_parquet(tmp_path / "sizes", {"picture": images}, {"picture": datasets.Image()})
    data = DataArguments(dataset_name=folder, unconditional=True, resolution=8)

    def load(**changes):
        changed = DataArguments(**{**vars(data), **changes})
        rows = open_rows(changed)
        return load_images(rows, image_format(rows, changed))

    with pytest.raises(ValueError, match="image 2: has 7x20 pixels .* fewer than --resolution 8"):
        load()
    assert load(allow_upscale=True).images.shape == (3, 3, 8, 8)
    assert load(resolution=7).images.shape == (3, 3, 7, 7)
    with pytest.raises(ValueError, match="image 1: has 8x12 .* no square"):
        load(center_crop=False)
    with pytest.raises(ValueError, match="image 1: has 8x12 .* the first image 12x12; .* --resolution"):
        load(resolution=None)


def test_a_folder_of_images_with_a_corrupt_one(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(3):
            picture(colour, 6, 9, seed=number).save(tmp_path / name / f"{number}.png")
    data = DataArguments(train_data_dir=str(tmp_path))
    rows = open_rows(data)
    loaded = load_images(rows, image_format(rows, data))
    assert rows.label_names == list(COLOURS) and loaded.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert loaded.images.shape == (9, 3, 6, 9) and loaded.skipped == 0  # no square, as it is
    assert np.array_equal(loaded.images[4].permute(1, 2, 0), np.asarray(picture(COLOURS["green"], 6, 9, seed=1)))

    broken = tmp_path / "green" / "1.png"
    broken.write_bytes(broken.read_bytes()[:90])
    rows = open_rows(data)
    with pytest.raises(ValueError, match=r"image 4 \(.*green.1\.png\) can't be decoded: .* --skip_corrupt"):
        load_images(rows, image_format(rows, data))
    loaded = load_images(rows, image_format(rows, data), skip_corrupt=True)
    assert loaded.skipped == 1 and loaded.labels.tolist() == [0] * 3 + [1] * 2 + [2] * 3


def test_labels_of_every_kind_and_bad_ones(tmp_path):
    image = {"img": datasets.Image()}
    images = [picture((9, 9, 9))] * 3

    def rows(name, columns, features, **changes):
        folder = write_parquet(tmp_path / name, {"img": images, **columns}, {**image, **features})
        return open_rows(DataArguments(dataset_name=folder, **changes))

    number, text = datasets.Value("int64"), datasets.Value("string")
    named = datasets.ClassLabel(names=["a", "b"])
    integers = rows("integers", {"labels": [2, 0, 2]}, {"labels": number})
    assert integers.labels.tolist() == [2, 0, 2] and integers.label_names == ["0", "1", "2"]
    strings = rows("strings", {"kind": ["z", "b", "z"]}, {"kind": text}, label_column_name="kind")
    assert strings.labels.tolist() == [1, 0, 1] and strings.label_names == ["b", "z"]
    two = {"fine": [0, 1, 0], "coarse": [1, 1, 0]}
    chosen = rows("two", two, {"fine": named, "coarse": named}, label_column_name="coarse")
    assert chosen.labels.tolist() == [1, 1, 0] and chosen.label_names == ["a", "b"]
    assert rows("none", {}, {}, unconditional=True).labels is None

    with pytest.raises(ValueError, match=r"more than one: \['fine', 'coarse'\]"):
        rows("two", two, {"fine": named, "coarse": named})
    with pytest.raises(ValueError, match="none in .*'img'"):
        rows("none", {}, {})
    with pytest.raises(ValueError, match="no label for image 1, and 2 in all"):
        rows("missing", {"label": [0, -1, None]}, {"label": named})
    with pytest.raises(ValueError, match="label_column_name must be one of"):
        rows("integers", {"labels": [2, 0, 2]}, {"labels": number}, label_column_name="label")
    with pytest.raises(ValueError, match="must hold class labels, integers or strings"):
        rows("floats", {"label": [0.5, 1.0, 2.0]}, {"label": datasets.Value("float32")})
    with pytest.raises(ValueError, match=r"in \[0, 3\]; got -2 to 3"):
        rows("negative", {"label": [-2, 0, 3]}, {"label": number})
    with pytest.raises(
        ValueError, match=r"image_column_name must be one of the columns of type Image, \['img'\]; got 'image'"
    ):
        rows("integers", {"labels": [2, 0, 2]}, {"labels": number}, image_column_name="image")


def test_a_share_of_the_images_is_of_all_classes(colours):
    data = DataArguments(dataset_name=colours, max_train_samples=12)
    rows, again = open_rows(data), open_rows(data)
    assert set(rows.labels) == {0, 1, 2} and list(rows.numbers) == list(again.numbers)
    everything = load_images(open_rows(DataArguments(dataset_name=colours)), ImageFormat((8, 8), False))
    some = load_images(rows, ImageFormat((8, 8), False))
    assert torch.equal(some.images, everything.images[rows.numbers])
    assert torch.equal(some.labels, everything.labels[rows.numbers])
    with pytest.raises(ValueError, match="max_train_samples=31 is more than the data set's 30"):
        open_rows(DataArguments(dataset_name=colours, max_train_samples=31))


# --- latents


def test_latents_are_encoded_once_and_drawn_at_each_visit(colours, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "SHARD_ROWS", 16)  # two files
    rows = open_rows(DataArguments(dataset_name=colours))
    form, model = ImageFormat((8, 8), False), AutoencoderKL.from_pretrained(vae).eval()
    folder = cached_latents(rows, form, model, tmp_path, mirrored=True)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name] and len(list(folder.iterdir())) == 2

    moments = LatentMoments(folder, model.config)
    assert len(moments) == 30 and moments.shape == (4, 4, 4) and moments.rows.tolist() == list(range(30))
    pixels = load_images(rows, form).images / 127.5 - 1
    for flip in (False, True):
        for index in (0, 15, 16, 29):
            with torch.no_grad():
                seen = pixels[index : index + 1]
                expected = model.encode(seen.flip(3) if flip else seen).latent_dist
            draws = torch.stack([moments.draw(index, flip, np.random.default_rng(i)) for i in range(400)])
            unscaled = draws / 0.3 + 2
            error = (unscaled.mean(0) - expected.mean[0]).abs() / expected.std[0]
            assert error.max() < 5 / np.sqrt(400)
            assert (unscaled.std(0) / expected.std[0] - 1).abs().max() < 0.2

    def refuse(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(AutoencoderKL, "encode", refuse)
    rows = open_rows(DataArguments(dataset_name=colours))
    assert cached_latents(rows, form, AutoencoderKL.from_pretrained(vae), tmp_path, mirrored=True) == folder
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(rows, form, model, tmp_path, mirrored=False)
    other = AutoencoderKL.from_pretrained(vae)
    other.encoder.conv_in.bias.data[0] += 1
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(rows, form, other, tmp_path, mirrored=True)
    assert len(list(tmp_path.iterdir())) == 1  # what failed leaves nothing
    with pytest.raises(ValueError, match="multiples of 2"):
        latent_size(model, (8, 7))


def test_training_on_latents(colours, vae, tmp_path):
    changes = {"vae": vae, "latent_cache_dir": str(tmp_path / "cache"), "random_flip": True}
    results = train_dit(*arguments(colours, tmp_path / "run", **changes))
    assert results["sample_shape"] == [4, 4, 4] and results["train_images"] == 30
    (folder,) = (tmp_path / "cache").iterdir()
    written = folder.stat().st_mtime_ns
    train_dit(*arguments(colours, tmp_path / "again", **changes))
    assert folder.stat().st_mtime_ns == written and losses(tmp_path / "run") == losses(tmp_path / "again")
    pipeline = DiTImagePipeline.from_pretrained(tmp_path / "run")
    assert pipeline.scheduler.config.clip_sample is False
    (image,) = pipeline("red", num_inference_steps=2).images
    assert image.size == (8, 8)


# --- the loop


def test_the_loop_equals_plain_pytorch(colours, tmp_path):
    steps, batch = 5, 6
    parts = arguments(colours, tmp_path / "run", max_train_steps=steps, train_batch_size=batch, random_flip=True)
    results = train_dit(*parts)
    data, model, args = parts
    rows = open_rows(data)
    loaded = load_images(rows, image_format(rows, data))
    stream = TrainingStream(PixelSamples(loaded.images), loaded.labels, seed=0, random_flip=True)
    schedule = NoiseSchedule.from_scheduler(noise_scheduler(args, True, latents=False))
    torch.manual_seed(0)
    network = open_network(model, (3, 8, 8), 3).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0)
    average = {name: value.double().clone() for name, value in network.state_dict().items()}
    for step in range(steps):
        items = [stream[position] for position in range(step * batch, (step + 1) * batch)]
        clean, noise = (torch.stack([item[name] for item in items]) for name in ("clean", "noise"))
        timesteps = torch.tensor([item["timestep"] for item in items])
        labels = torch.tensor([3 if item["drop"] else item["label"] for item in items])
        output = network(add_noise(schedule, clean, noise, timesteps), timesteps, labels, torch.zeros(batch).bool())
        mse = (output.sample[:, :3] - noise).square().mean()
        fraction = (output.sample[:, 3:] + 1) / 2
        low, high = (
            values[timesteps].view(-1, 1, 1, 1) for values in (schedule.log_variance_min, schedule.log_variance_max)
        )
        log_variance = fraction * high + (1 - fraction) * low
        scale = (schedule.posterior_clean * schedule.noise / schedule.signal)[timesteps].view(-1, 1, 1, 1)
        distance = scale * (output.sample[:, :3].detach() - noise)
        assert timesteps.min() > 0  # the bound's term at 0 is another, tested elsewhere
        kl = (log_variance - low - 1 + (low - log_variance).exp() + distance.square() * (-log_variance).exp()) / 2
        loss = mse + kl.mean() / np.log(2)
        assert results["history"][step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.9999, 1 - (1 + step) ** -0.75)
        for name, value in network.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value.double()
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-4, atol=2e-5)


def test_the_loss_falls_and_classes_have_their_colours(colours, tmp_path):
    train_dit(
        *arguments(
            colours,
            tmp_path,
            train_batch_size=32,
            max_train_steps=250,
            learning_rate=3e-3,
            logging_steps=25,
            ema_max_decay=0.97,
            save_images_steps=200,
        )
    )
    history = losses(tmp_path)
    assert history[-1][0] == 250 and history[-1][1] < 0.25 * history[0][1]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-0000200.png", "step-0000250.png"]
    assert Image.open(tmp_path / "loss_curve.png").width > 500
    pipeline = DiTImagePipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.id2label == dict(enumerate(COLOURS))
    assert pipeline.scheduler.config.variance_type == "learned_range" and pipeline.scheduler.config.clip_sample
    generator = torch.Generator().manual_seed(0)
    images = pipeline(["blue"] * 4 + ["green"] * 4 + ["red"] * 4, num_inference_steps=25, generator=generator).images
    means = np.stack([np.asarray(image).mean((0, 1)) for image in images]).reshape(3, 4, 3).mean(1)
    assert means.argmax(axis=1).tolist() == [2, 1, 0]  # blue, green, red are channels 2, 1, 0


def test_accumulation_and_two_processes_give_the_weights_of_one_batch(colours, tmp_path):
    changes = {"random_flip": True, "max_grad_norm": 0.5, "checkpointing_steps": 3, "lr_scheduler": "cosine"}
    one = train_dit(*arguments(colours, tmp_path / "one", **changes))
    split = {"train_batch_size": 1, "gradient_accumulation_steps": 4}
    train_dit(*arguments(colours, tmp_path / "accumulated", **changes, **split))
    split = {"train_batch_size": 1, "gradient_accumulation_steps": 2}
    command = ["--nproc_per_node", "2", "--standalone", "scripts/train_dit.py"]
    command += flags(colours, tmp_path / "processes", **changes, **split)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=300,
    )
    for name in ("accumulated", "processes"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["settings"] == one["settings"] and results["settings"]["global_batch"] == 4
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-4)
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / name)[key], value, rtol=0, atol=1e-5)
    assert results["processes"] == 2
    assert (tmp_path / "processes" / "checkpoint-6" / "random_states_1.pkl").exists()


KILLED = """
import os, signal, sys
import hf_dit.training.loop as trainer

publish = trainer.publish_checkpoint

def killed(folder, step, limit):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return publish(folder, step, limit)

trainer.publish_checkpoint = killed
sys.argv[0] = "scripts/train_dit.py"
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
"""


def test_a_killed_run_goes_on_to_the_very_same_end(colours, tmp_path):
    # With dropout, a decaying learning rate and rows of the history that no checkpoint ends.
    changes = {
        "config_overrides": "dropout=0.1",
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "max_train_steps": 11,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 4,
    }
    train_dit(*arguments(colours, tmp_path / "whole", **changes))

    line = flags(colours, tmp_path / "killed", **changes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", KILLED, *line], cwd=ROOT, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folders = sorted(path.name for path in (tmp_path / "killed").iterdir() if path.is_dir())
    assert folders == [".checkpoint-8.tmp", "checkpoint-4", "checkpoint-6"]

    with pytest.raises(ValueError, match="holds this run, begun; go on with --resume_from_checkpoint latest"):
        train_dit(*arguments(colours, tmp_path / "killed", **changes))
    with pytest.raises(ValueError, match="resume_from_checkpoint must be 'latest' or one of"):
        train_dit(*arguments(colours, tmp_path / "killed", **changes, resume_from_checkpoint="checkpoint-8"))
    with pytest.raises(ValueError, match=r"another run: learning_rate=0.5 \(it has 0.001\), seed=1 \(it has 0\)"):
        train_dit(*arguments(colours, tmp_path / "killed", **{**changes, "learning_rate": 0.5, "seed": 1}))
    train_dit(*arguments(colours, tmp_path / "killed", **changes, resume_from_checkpoint="latest"))

    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for name in ("transformer", "checkpoint-10/transformer", "checkpoint-10/transformer_ema"):
        path = Path(name) / "diffusion_pytorch_model.safetensors"
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    for run in ("killed", "whole"):
        folders = sorted(path.name for path in (tmp_path / run).glob("*checkpoint*"))
        assert folders == ["checkpoint-10", "checkpoint-8"]
    with pytest.raises(ValueError, match="finished after 11 steps"):
        train_dit(*arguments(colours, tmp_path / "killed", **changes, resume_from_checkpoint="latest"))


def test_a_finished_run_can_be_made_longer_also_with_another_split(colours, tmp_path):
    train_dit(*arguments(colours, tmp_path / "whole", max_train_steps=8))
    begun = {"max_train_steps": 5, "checkpointing_steps": 2, "checkpoints_total_limit": 0}
    train_dit(*arguments(colours, tmp_path / "longer", **begun))
    shutil.copytree(tmp_path / "longer", tmp_path / "split")
    results = train_dit(*arguments(colours, tmp_path / "longer", max_train_steps=8, resume_from_checkpoint="latest"))
    assert results["steps"] == 8 and losses(tmp_path / "longer") == losses(tmp_path / "whole")
    changes = {"train_batch_size": 1, "gradient_accumulation_steps": 4, "max_train_steps": 8}
    oldest = str(tmp_path / "split" / "checkpoint-2")
    train_dit(*arguments(colours, tmp_path / "split", **changes, resume_from_checkpoint=oldest))
    np.testing.assert_allclose(losses(tmp_path / "split"), losses(tmp_path / "whole"), rtol=1e-4)
    for key, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "longer")[key], value)
        torch.testing.assert_close(weights(tmp_path / "split")[key], value, rtol=0, atol=1e-5)


def test_resuming_on_other_images_is_refused(colours, tmp_path):
    columns = {"image": [picture((9, 9, 9), seed=i) for i in range(5)]}
    changes = {"unconditional": True, "max_train_steps": 2, "checkpointing_steps": 2}
    folder = write_parquet(tmp_path / "data", columns, {"image": datasets.Image()})
    train_dit(*arguments(folder, tmp_path / "run", **changes))
    columns["image"] = columns["image"][:4]
    write_parquet(tmp_path / "data", columns, {"image": datasets.Image()})
    with pytest.raises(ValueError, match="was trained on 5 images; there are now 4"):
        changed = {**changes, "max_train_steps": 4, "resume_from_checkpoint": "latest"}
        train_dit(*arguments(folder, tmp_path / "run", **changed))


def test_accelerate_launch_trains_without_classes(colours, tmp_path):
    line = flags(
        colours,
        tmp_path,
        unconditional=True,
        learn_sigma=False,
        prediction_type="sample",
        ddpm_beta_schedule="squaredcos_cap_v2",
        use_ema=False,
        mixed_precision="bf16",
        gradient_checkpointing=True,
        dataloader_num_workers=1,
        attention="na3*1,full",
        num_epochs=0.5,
        resume_from_checkpoint="latest",
    )
    at = line.index("--max_train_steps")
    del line[at : at + 2]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    done = subprocess.run(
        [*launch, "scripts/train_dit.py", *line], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    assert "has no checkpoint yet: starting at step 0" in done.stdout and str(tmp_path) in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 4 and "vb" not in results["history"][0]  # half of 30 images in batches of 4
    pipeline = DiTImagePipeline.from_pretrained(tmp_path)
    assert pipeline.transformer.config.num_classes is None and pipeline.transformer.config.attention == "na3,full"
    assert pipeline.scheduler.config.variance_type == "fixed_small"
    assert pipeline.scheduler.config.prediction_type == "sample"
    (image,) = pipeline(guidance_scale=1, num_inference_steps=2).images
    assert image.size == (8, 8)


def test_going_on_from_a_trained_model(colours, tmp_path):
    DiTModel.from_name("dit-micro-2", sample_size=8, in_channels=3, num_classes=3).save_pretrained(tmp_path / "model")
    start = {"model": str(tmp_path / "model"), "max_train_steps": 1, "learning_rate": 1e-12}
    train_dit(*arguments(colours, tmp_path / "run", **start, attention="swa3"))
    expected = load_file(tmp_path / "model" / "diffusion_pytorch_model.safetensors")
    for key, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, expected[key])
    assert DiTModel.from_pretrained(tmp_path / "run", subfolder="transformer").config.attention == "swa3"
    with pytest.raises(ValueError, match="does not fit data and flags: it has num_classes=3, not None; learn_sigma"):
        train_dit(*arguments(colours, tmp_path / "other", **start, unconditional=True, learn_sigma=False))


# --- bad arguments, before long work


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(colours, tmp_path):
    with pytest.raises(RuntimeError, match="the loss is nan at step [234]; try a lower learning_rate"):
        changes = {"learning_rate": 1e30, "logging_steps": 6, "checkpointing_steps": 5}
        train_dit(*arguments(colours, tmp_path, **changes))
    assert not (tmp_path / "checkpoint-5").exists() and not (tmp_path / "results.json").exists()


def test_attention_that_cannot_train_here_is_refused_before_the_data_are_read(colours, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("data were read")

    monkeypatch.setattr(training_module, "open_rows", refuse)
    with pytest.raises(RuntimeError, match="flex:full"):
        train_dit(*arguments(colours, tmp_path, resolution=8, attention="flex:full"))
    with pytest.raises(ValueError, match="attention item 'na8x'"):
        train_dit(*arguments(colours, tmp_path, resolution=8, attention="na8x"))
    with pytest.raises(ValueError, match="multiples of patch_size=2, got 9 x 9"):
        train_dit(*arguments(colours, tmp_path, resolution=9))
    assert not list(tmp_path.iterdir())


def test_what_accelerate_is_configured_to_is_refused_where_it_would_change_the_steps(colours, tmp_path, monkeypatch):
    parts = arguments(colours, tmp_path, gradient_accumulation_steps=2)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="configured to FSDP; each process must hold the whole model"):
        train_dit(*parts)
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 2, but accelerate is configured to 3"):
        train_dit(*parts)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_left_alone(colours, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds files that are no run of this script"):
        train_dit(*arguments(colours, tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        train_dit(*arguments(colours, tmp_path / "thesis.tex"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": None}, "one of dataset_name and train_data_dir"),
        ({"train_data_dir": "/nowhere"}, "one of dataset_name and train_data_dir"),
        ({"dataset_name": None, "train_data_dir": "/nowhere"}, "there is no folder '/nowhere'"),
        ({"resolution": 0}, "resolution must be at least 1"),
        ({"unconditional": True, "label_column_name": "label"}, "unconditional takes no label_column_name"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob must lie in \[0, 1\)"),
        ({"config_overrides": "num_layers"}, "must be name=value,...; got 'num_layers'"),
        ({"config_overrides": "num_classes=3"}, "config_overrides may set .*'num_layers'.*; got 'num_classes'"),
        ({"model": "some/model", "config_overrides": "num_layers=3"}, "config_overrides changes a size"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"train_batch_size": 0}, "train_batch_size must be 1 or more"),
        ({"max_train_steps": 0}, "max_train_steps must be 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate must be more than 0 and finite; got nan"),
        ({"ema_max_decay": 1.0}, r"ema_max_decay must lie in \[0, 1\)"),
        ({"adam_weight_decay": -0.1}, "adam_weight_decay must be 0 or more"),
        ({"lr_warmup_steps": 5}, "lr_warmup_steps=5 has no effect on lr_scheduler='constant'"),
        ({"checkpoints_total_limit": -1}, "checkpoints_total_limit must be 0 or more"),
        ({"lr_scheduler": "step"}, "lr_scheduler must be one of .*'cosine'"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of"),
        ({"prediction_type": "v_prediction"}, "prediction_type must be one of"),
        ({"sample_guidance_scales": []}, "sample_guidance_scales must be one or more finite"),
        ({"sample_guidance_scales": [float("inf")]}, "sample_guidance_scales must be one or more finite"),
        ({"ddpm_num_steps": 10, "sample_steps": 11}, "sample_steps must be at most ddpm_num_steps=10"),
        ({"report_to": "file"}, "report_to must be one of"),
    ],
)
def test_bad_flags(colours, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**{"dataset": colours, "output_dir": tmp_path, **changes})


def test_guidance_without_a_null_class_is_refused(colours, tmp_path):
    with pytest.raises(ValueError, match="class_dropout_prob=0 trains no null class"):
        train_dit(*arguments(colours, tmp_path, class_dropout_prob=0.0))
    train_dit(*arguments(colours, tmp_path, class_dropout_prob=0.0, sample_guidance_scales=[1.0], max_train_steps=1))
    model = DiTModel.from_pretrained(tmp_path, subfolder="transformer")
    assert model.class_embedding.num_embeddings == 3


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("hf_dit.training.arguments.TRACKERS", {"wandb": lambda: False})
    with pytest.raises(ImportError, match="report_to='wandb' needs a package: pip install wandb"):
        DiTTrainingArguments(report_to="wandb")


def test_overrides_are_read_as_json():
    assert parse_overrides(" num_layers=4 , dropout=0.5,attention_bias=false") == {
        "num_layers": 4,
        "dropout": 0.5,
        "attention_bias": False,
    }
    assert parse_overrides(None) == parse_overrides("") == {}


def test_the_smoothed_loss_is_the_mean_of_the_last_fifth():
    rows = smoothed([{"step": step, "loss": float(step)} for step in range(1, 13)])
    assert [row["smoothed"] for row in rows] == [1, 2, 3, 4, 5, 5.5, 6.5, 7.5, 8.5, 9.5, 10, 11]
    assert rows[5] == {"step": 6, "loss": 6.0, "smoothed": 5.5}
