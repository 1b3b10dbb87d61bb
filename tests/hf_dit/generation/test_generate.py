"""Generations: what an image depends on, what it does not, what is refused, and what is said of it."""

import inspect
import json
import re
import shlex
import subprocess
import sys

import datasets
import evaluate
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from evaluate_metrics import register_encoder
from evaluate_metrics.core.moments import Moments
from hf_common.locks import locked
from hf_dit.commands import generate as command
from hf_dit.generation import run as run_module
from hf_dit.generation.arguments import GenerateArguments
from hf_dit.generation.run import generate_images
from hf_dit.generation.sampling import Sampler, all_class_names
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.studies.cells import image_generators
from hf_dit.studies.schedulers import sampling_scheduler
from tests import ROOT
from tests.processes import run_process

from .small import CMMD, arguments, contents, flags, save_model

FORMS = ("png", "parquet", "samples.npz")
ALL = {"format": ["png", "parquet", "npz"]}
SCRIPT = ROOT / "scripts" / "generate_dit.py"


def pixels(folder):
    """(N, H, W, C) uint8 of the PNG files."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "png").rglob("*.png"))])


# -------------------------------------------------------------------------------------------- what an image depends on


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_images_are_what_the_pipeline_gives_from_the_noise_of_a_study(model, tmp_path, scheduler):
    changes = {"scheduler": scheduler, "num_inference_steps": 3, "seed": 5, "guidance_interval": [100.0, 900.0]}
    results = generate_images(arguments(model, tmp_path, **changes, cfg_channels="2"))
    pipeline = DiTImagePipeline.from_pretrained(model)
    direct = DiTImagePipeline(pipeline.transformer, sampling_scheduler(scheduler, pipeline.scheduler, True))
    expected = []
    for start in (0, 4, 8):
        labels = [number % 5 for number in range(start, start + 4)]
        expected += direct(
            labels,
            guidance_scale=1.5,
            num_inference_steps=3,
            guidance_interval=(100, 900),
            cfg_channels=2,
            generator=image_generators(5, 12)[start : start + 4],
        ).images
    assert np.array_equal(pixels(tmp_path), np.stack([np.asarray(image) for image in expected[:10]]))
    assert results["settings"]["guidance_scale"] == 1.5 and results["images_per_class"] == [2] * 5


def test_the_first_images_of_a_longer_run_are_those_of_a_shorter_one(model, tmp_path):
    for count in (3, 10, 13):
        generate_images(arguments(model, tmp_path / str(count), num_images=count, scheduler="ddpm"))
    longest = pixels(tmp_path / "13")
    for count in (3, 10):
        assert np.array_equal(pixels(tmp_path / str(count)), longest[:count])


def test_another_batch_size_changes_rounding_at_most(model, tmp_path):
    for size in (1, 4, 7):
        generate_images(arguments(model, tmp_path / str(size), batch_size=size, scheduler="ddpm"))
    reference = pixels(tmp_path / "4").astype(int)
    for size in (1, 7):
        assert np.abs(pixels(tmp_path / str(size)) - reference).max() <= 1
    assert not np.array_equal(reference[0], reference[5])  # of one class


def test_a_flow_is_sampled_by_euler_and_noise_of_no_generator_is_the_batchs(tmp_path):
    flow = save_model(tmp_path / "flow", FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), learn_sigma=False)
    results = generate_images(arguments(flow, tmp_path / "a"))
    assert results["settings"]["scheduler"] == "euler"
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    generate_images(arguments(flow, tmp_path / "b"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert contents(tmp_path / "a", "png") == contents(tmp_path / "b", "png")


def test_labels_by_name_drawn_and_in_proportions(model, tmp_path):
    changes = {"class_labels": ["dog", "3"], "class_counts": [1, 4]}
    results = generate_images(arguments(model, tmp_path / "turn", **changes))
    assert results["images_per_class"] == [0, 0, 2, 8, 0] and results["settings"]["class_labels"] == [2, 3]
    results = generate_images(arguments(model, tmp_path / "drawn", class_sampling="drawn", num_images=40))
    assert sum(results["images_per_class"]) == 40 and len(set(results["images_per_class"])) > 1


def test_a_model_without_classes(unconditional, tmp_path):
    results = generate_images(arguments(unconditional, tmp_path, **ALL))
    assert results["images_per_class"] is None and results["settings"]["guidance_scale"] == 1
    rows = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / ".cache"))
    assert rows.column_names == ["image"] and len(rows) == 10
    assert np.array_equal(np.stack([np.asarray(image) for image in rows["image"]]), pixels(tmp_path))
    assert "| classes | none |" in (tmp_path / "README.md").read_text()


def test_names_of_classes_are_all_different(model):
    pipeline = DiTImagePipeline.from_pretrained(model)
    pipeline.register_to_config(id2label={"0": "crane", "1": "cat", "3": "crane"})
    assert all_class_names(pipeline) == ["crane (0)", "cat", "class 2", "crane (3)", "class 4"]


def test_pixels_that_are_no_numbers_are_told(model, tmp_path, monkeypatch):
    def broken(self, batch, **arguments):
        output = call(self, batch, **arguments)
        if "output_type" not in arguments and batch.labels[0] == 4:
            output.images[2, 0, 0, 0] = np.nan
        return output

    call = Sampler._call
    monkeypatch.setattr(Sampler, "_call", broken)
    with pytest.raises(RuntimeError, match="image 6 has pixels that are no numbers; with --dtype float32"):
        generate_images(arguments(model, tmp_path))
    assert not (tmp_path / "results.json").exists()


# ------------------------------------------------------------------------------------------------------------- scores


def mean_colour(images):
    return torch.tensor([image.resize((1, 1)).getpixel((0, 0)) for image in images]) / 255


@pytest.fixture
def real(tmp_path):
    (tmp_path / "real").mkdir()
    for place, colours in enumerate(np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)):
        Image.fromarray(colours).save(tmp_path / "real" / f"{place}.png")
    register_encoder("mean-colour", mean_colour)
    return str(tmp_path / "real")


def test_scores_and_moments_are_those_of_the_files(model, tmp_path, real):
    scores = {"score_metric": CMMD, "score_arguments": "encoder=mean-colour", "score_references": real}
    file = tmp_path / "images.safetensors"
    results = generate_images(arguments(model, tmp_path / "out", **scores, save_moments=str(file), num_images=70))
    metric = evaluate.load(CMMD, encoder="mean-colour")
    assert results["scores"] == metric.compute(predictions=str(tmp_path / "out" / "png"), references=real)
    (moments, metadata), (expected, own) = Moments.load(file), metric.moments(str(tmp_path / "out" / "png"))
    assert moments.n == 70 and torch.equal(moments.sum, expected.sum) and torch.equal(moments.outer, expected.outer)
    assert own.items() <= metadata.items()
    # Moments as references, and no files.
    scores |= {"score_references": str(file), "format": ["none"]}
    results = generate_images(arguments(model, tmp_path / "none", **scores, num_images=70))
    assert results["scores"]["cmmd"] == 0 and results["forms"] == {}
    names = sorted(path.name for path in (tmp_path / "none").iterdir() if path.name != ".lock")
    assert names == ["README.md", "results.json", "settings.json"]
    assert "cmmd against images.safetensors" in (tmp_path / "none" / "README.md").read_text()


def raising(error):
    """A function that raises it, whatever it gets."""

    def function(*_):
        raise error

    return function


def test_an_encoder_of_ones_own_is_named_by_its_file(model, tmp_path, real):
    path = tmp_path / "own_encoder_of_colours.py"
    path.write_text(f"import torch\n\n\n{inspect.getsource(mean_colour)}")
    scores = {"score_metric": CMMD, "score_references": real}
    own, registered = (
        generate_images(arguments(model, tmp_path / name, **scores, score_arguments=f"encoder={encoder}"))["scores"]
        for name, encoder in (("own", f"{path}:mean_colour"), ("registered", "mean-colour"))
    )
    assert own["cmmd"] == registered["cmmd"] and own["n_predictions"] == 10


def test_an_encoder_that_is_not_there_is_told_before_the_first_sample(model, tmp_path, real, monkeypatch):
    monkeypatch.setattr(Sampler, "sample", lambda *_: pytest.fail("sampled"))
    wrong = {"score_metric": CMMD, "score_arguments": "encoder=/nowhere"}
    for number, asked in enumerate(({"score_references": real}, {"save_moments": str(tmp_path / "m.safetensors")})):
        with pytest.raises((ValueError, OSError), match="nowhere"):
            generate_images(arguments(model, tmp_path / str(number), **wrong, **asked))


def test_a_score_that_fails_keeps_the_images(model, tmp_path, real, monkeypatch):
    scores = {"score_metric": CMMD, "score_arguments": "encoder=mean-colour", "score_references": real}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(run_module, "score_images", raising(OSError("full")))
        generate_images(arguments(model, tmp_path / "out", **scores))
    monkeypatch.setattr(Sampler, "sample", lambda *_: pytest.fail("sampled again"))
    results = generate_images(arguments(model, tmp_path / "out", **scores))
    assert results["scores"]["n_predictions"] == 10 and results["images_per_second"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_metric": "/nowhere/metric"}, "--score_metric '/nowhere/metric' can't be loaded"),
        ({"score_config": "clap"}, r"can't be loaded: the configuration must be one of \('clip'"),
        ({"score_arguments": "enocder=clip"}, "--score_arguments: .* takes no 'enocder'; did you mean 'encoder'"),
        ({"score_arguments": "clip"}, "--score_arguments must be name=value,...; got 'clip'"),
        ({"score_arguments": "encoder=no.py:encode"}, "encoder 'no.py:encode' can't be imported: FileNotFoundError"),
    ],
)
def test_metrics_are_loaded_before_the_model(tmp_path, real, changes, message):
    scores = {"score_metric": CMMD, "score_references": real} | changes
    with pytest.raises(ValueError, match=message):
        generate_images(arguments("/nowhere", tmp_path / "out", **scores))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ refusals


def test_other_settings_are_refused_by_name_before_the_model_is_loaded(model, tmp_path, monkeypatch):
    generate_images(arguments(model, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_pipeline", lambda *_: pytest.fail("loaded"))
        for changes, words in (
            ({"seed": 1}, r"seed=1 \(it has 0\)"),
            ({"batch_size": 5}, r"batch_size=5 \(it has 4\)"),
            ({"guidance_scale": 2.0, "num_images": 11}, r"guidance_scale=2.0 \(it has 1.5\), num_images=11 \(it has"),
            ({"scheduler": "ddpm"}, r"scheduler='ddpm' \(it has 'ddim'\)"),
        ):
            with pytest.raises(ValueError, match=f"output_dir .* holds another run: {words}"):
                generate_images(arguments(model, tmp_path, **changes))
    with pytest.raises(ValueError, match=r"class_labels=\[1\] \(it has None\)"):
        generate_images(arguments(model, tmp_path, class_labels=["cat"]))
    other = save_model(tmp_path / ".other", attention="na3")
    with pytest.raises(ValueError, match=r"attention='na3' \(it has 'full'\)"):
        generate_images(arguments(other, tmp_path))


def test_a_finished_run_is_left_alone(model, tmp_path, monkeypatch):
    first = generate_images(arguments(model, tmp_path, guidance_scale=1.5))
    before = contents(tmp_path, "png", "README.md", "results.json")
    monkeypatch.setattr(Sampler, "sample", lambda *_: pytest.fail("sampled again"))
    assert generate_images(arguments(model, tmp_path)) == json.loads(json.dumps(first))
    assert contents(tmp_path, "png", "README.md", "results.json") == before
    with pytest.raises(ValueError, match=r"holds these images, finished, with format=\['png'\]; got \['npz'\]"):
        generate_images(arguments(model, tmp_path, format=["npz"]))


def test_a_folder_of_something_else_and_one_that_is_in_use(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that are no run of this script"):
        generate_images(arguments("/nowhere", tmp_path))
    with locked(tmp_path / "used"), pytest.raises(ValueError, match="is being written by another process"):
        generate_images(arguments(model, tmp_path / "used"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_labels": ["cow"]}, "--class_labels: class 'cow' is not among"),
        ({"class_labels": ["7"]}, "--class_labels: class_labels must be different classes, ids of 0 to 4"),
        ({"class_counts": [1, 2]}, "class_counts must be one for each of the 5 classes; got 2"),
        ({"scheduler": "NoSuchScheduler"}, "schedulers must be among"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be from 1 to 1000"),
        ({"cfg_channels": "4"}, "cfg_channels"),
        ({"attention": "na0"}, "--attention: kernel_size must be 1 or more"),
        ({"guidance_interval": [5.0, 2000.0]}, "guidance_interval must be"),
    ],
)
def test_what_the_model_can_not_do_leaves_no_folder(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generate_images(arguments(model, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_what_models_without_classes_or_colours_can_not_do(unconditional, tmp_path):
    for changes, message in (
        ({"class_labels": ["1"]}, "the model is unconditional"),
        ({"class_folders": True}, "--class_folders: the model is unconditional"),
        ({"guidance_scale": 2.0}, "no null class|unconditional"),
        ({"model_name_or_path": "/nowhere"}, "--model_name_or_path: .*nowhere"),
        ({"model_name_or_path": save_model(tmp_path / "four", in_channels=4)}, "1 or 3 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_images(arguments(unconditional, tmp_path / "out", **changes))


def test_arguments_by_name():
    with pytest.raises(TypeError, match="there is no flag 'image_count'"):
        GenerateArguments.from_flags(model_name_or_path="x", image_count=3)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images", "0"], "--num_images must be 1 or more; got 0"),
        (["--seed", "-1"], "--seed must be 0 or more; got -1"),
        (["--batch_size", "0"], "--batch_size must be 1 or more; got 0"),
        (["--num_inference_steps", "0"], "--num_inference_steps must be 1 or more; got 0"),
        (["--guidance_scale", "nan"], "--guidance_scale must be finite; got nan"),
        (["--guidance_interval", "3"], "--guidance_interval must be two numbers"),
        (["--cfg_channels", "some"], "--cfg_channels must be all, or a number"),
        (["--scheduler", "ddimm"], "did you mean 'ddim'"),
        (["--class_counts", "0", "0"], "--class_counts must be 0 or more each, and not all 0"),
        (["--class_labels", "1", "--class_counts", "1", "1"], "--class_counts must be one for each of 1"),
        (["--class_sampling", "sorted"], "invalid choice: 'sorted'"),
        (["--format", "jpeg"], "--format must be of png, parquet, npz, or none alone; got 'jpeg'"),
        (["--format", "none"], "--format none leaves nothing without a --score_metric"),
        (["--format", "npz", "--class_folders"], "--class_folders is for --format png"),
        (["--images_per_shard", "0"], "--images_per_shard must be 1 or more"),
        (["--score_references", "."], "--score_metric goes with --score_references"),
        (["--score_metric", "x"], "--score_metric goes with --score_references"),
        (["--score_metric", "x", "--score_references", "/nowhere"], "there is no folder or file '/nowhere'"),
        (["--score_metric", "x", "--save_moments", "m.npz"], "--save_moments must end with .safetensors"),
        (["--score_config", "clip"], "--score_config and --score_arguments need a --score_metric"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_flags_are_one_line_before_anything_is_loaded(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--model_name_or_path", "/nowhere", *words])
    monkeypatch.setitem(sys.modules, "hf_dit.generation.run", None)  # an import of it would fail
    with pytest.raises(SystemExit) as end:
        command.run()
    errors = capsys.readouterr().err
    assert end.value.code == 2 and errors.count("\n") == 1 and message in errors, errors


def test_the_command_of_the_card_makes_the_same_bytes(model, tmp_path, monkeypatch, capsys):
    changes = {"class_labels": ["dog", "tench"], "guidance_interval": [10.0, 500.0], "class_folders": True, **ALL}
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags(model, tmp_path / "out", **changes)])
    command.run()
    assert re.search(r"^10 images, [\d.e+]+ images/s: ", capsys.readouterr().out, re.MULTILINE)
    before = contents(tmp_path / "out", *FORMS)
    card = (tmp_path / "out" / "README.md").read_text()
    words = shlex.split(re.search(r"```bash\nhf-dit generate(.*?)```", card, re.DOTALL)[1].replace("\\\n", " "))
    (tmp_path / "out").rename(tmp_path / "first")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    command.run()
    assert contents(tmp_path / "out", *FORMS) == before
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["class_labels"] == [2, 0] and results["images_per_class"] == [5, 0, 5, 0, 0]
    for words in ("# 10 images of classes", "between timesteps [10.0, 500.0]", "| dog | 5 |"):
        assert words in card
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["label"].names == ["tench, Tinca tinca", "cat", "dog", "class 3", "class 4"]


def test_a_learned_variance_is_what_ddpm_samples_with(tmp_path):
    learned = save_model(tmp_path / "model", DDPMScheduler(variance_type="learned_range"), learn_sigma=True)
    results = generate_images(arguments(learned, tmp_path / "out", scheduler="ddpm"))
    assert results["settings"]["trained_with"]["variance_type"] == "learned_range"


def test_accelerate_launches_the_module(model, tmp_path):
    words = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "hf_dit", "generate"]
    done = subprocess.run(
        [sys.executable, *words, *flags(model, tmp_path / "out", num_images=3)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "3 images, " in done.stdout and len(pixels(tmp_path / "out")) == 3


def test_an_error_on_several_processes_ends_all(model, tmp_path):
    done = run_process(SCRIPT, *flags(model, tmp_path, class_labels=["cow"]), processes=2, timeout=120)
    assert done.returncode == 2 and "class 'cow' is not among" in done.stderr
