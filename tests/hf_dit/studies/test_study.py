import inspect
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image

from hf_dit.commands import sample as sample_command
from hf_dit.models.dit import DiTModel
from hf_dit.publishing.publish import read_study
from hf_dit.sampling.export import export_pipeline
from hf_dit.sampling.pictures import image_grid
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.studies import cells as cells_module
from hf_dit.studies import study as study_module
from hf_dit.studies import study_report
from hf_dit.studies.axes import SCHEDULERS
from hf_dit.studies.cells import image_generators
from hf_dit.studies.schedulers import sampling_scheduler
from hf_dit.studies.study import class_ids, run_study
from hf_dit.studies.study_report import study_markdown
from tests import ROOT

SCRIPT = ROOT / "scripts" / "sample_dit.py"
NAMES = {0: "tench, Tinca tinca", 1: "cat", 2: "dog"}
SHORT = {"guidance_scales": (0, 1, 3), "steps": (2, 4)}


def make_pipeline(scheduler=None, seed=0, **config):
    """A pipeline in pixel space whose model has random weights everywhere: a new one's output is zero."""
    torch.manual_seed(seed)
    model = DiTModel.from_name("dit-micro-2", **{"sample_size": 8, "in_channels": 3, "num_classes": 5, **config})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    names = NAMES if model.config.num_classes else None
    return DiTImagePipeline(model.eval(), scheduler or DDIMScheduler(), id2label=names)


def pixels(folder, study, **values):
    """(images, H, W, 3) uint8 of the one cell with these values."""
    (cell,) = [cell for cell in study["cells"] if all(cell[name] == value for name, value in values.items())]
    return np.stack([np.asarray(Image.open(folder / image)) for image in cell["images"]])


@pytest.fixture
def calls(monkeypatch):
    """What the pipeline was called with, as (guidance scale, steps, scheduler, attention of the first layer)."""
    made = []
    call = DiTImagePipeline.__call__

    def spy(self, *args, **kwargs):
        processor = self.transformer.transformer_blocks[0].attn.processor.spec
        made.append((kwargs["guidance_scale"], kwargs["num_inference_steps"], type(self.scheduler), processor))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(DiTImagePipeline, "__call__", spy)
    return made


# --------------------------------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("base", [DDIMScheduler, DDPMScheduler, diffusers.DPMSolverMultistepScheduler])
def test_every_scheduler_has_the_noise_schedule_and_spacing_of_the_pipelines_own(name, base):
    # Given or left at the class's defaults, which differ between classes, all values are those of the first.
    for given in ({}, {"beta_start": 0.001, "beta_end": 0.015, "timestep_spacing": "trailing"}):
        own = base(**given)
        scheduler = sampling_scheduler(name, own, learn_sigma=True)
        assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod)
        for key in ("prediction_type", "num_train_timesteps", "steps_offset"):
            assert scheduler.config[key] == own.config[key], key
        spacing = own.config.timestep_spacing
        replaced = name in ("dpmsolver++", "unipc") and spacing == "leading"
        assert scheduler.config.timestep_spacing == ("trailing" if replaced else spacing)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 50, 250, 500, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_scheduler_goes_from_noise_to_the_end_in_any_number_of_steps(name, steps, spacing):
    scheduler = sampling_scheduler(name, DDIMScheduler(timestep_spacing=spacing), learn_sigma=True)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.unique()
    stride = 1000 // steps
    assert len(timesteps) == steps and timesteps.max() >= 999 - stride + 1 and timesteps.min() <= stride


def test_only_ancestral_sampling_takes_the_learned_variance():
    learned = DDPMScheduler(variance_type="learned_range")
    assert sampling_scheduler("ddpm", DDIMScheduler(), learn_sigma=True).config.variance_type == "learned_range"
    assert sampling_scheduler("ddpm", learned, learn_sigma=False).config.variance_type == "fixed_small"
    large = DDPMScheduler(variance_type="fixed_large")
    assert sampling_scheduler("ddpm", large, learn_sigma=False).config.variance_type == "fixed_large"
    for name, cls in SCHEDULERS.items():
        if name != "ddpm" and "variance_type" in inspect.signature(getattr(diffusers, cls).__init__).parameters:
            assert sampling_scheduler(name, learned, learn_sigma=True).config.variance_type is None
    with pytest.raises(ValueError, match="schedulers must be among ddim, .*; got 'plms'"):
        sampling_scheduler("plms", learned, learn_sigma=True)


def test_image_generators_differ_between_images_and_seeds_but_not_with_the_count():
    drawn = [[torch.rand(1, generator=g).item() for g in image_generators(seed, 20)] for seed in (0, 1)]
    assert len({*drawn[0], *drawn[1]}) == 40
    assert drawn[0][:3] == [torch.rand(1, generator=g).item() for g in image_generators(0, 3)]
    with pytest.raises(ValueError, match="seed must be 0 or more; got -1"):
        image_generators(-1, 2)


# ------------------------------------------------------------------------------------------------------------ studies


@pytest.mark.parametrize("schedulers", [("ddim",), ("ddpm", "euler_ancestral")])
def test_a_cell_is_what_the_pipeline_gives_from_the_same_noise(tmp_path, schedulers):
    pipeline = make_pipeline()
    study = run_study(
        pipeline,
        [4, "cat"],
        guidance_scales=(0, 1, 2.5),
        steps=(3,),
        schedulers=schedulers,
        images_per_class=2,
        batch_size=3,
        seed=5,
        output_dir=tmp_path,
    )
    assert study["settings"]["class_labels"] == [4, 1]
    for scheduler in schedulers:
        for scale in (0, 1, 2.5):
            direct = DiTImagePipeline(
                pipeline.transformer, sampling_scheduler(scheduler, pipeline.scheduler, learn_sigma=True)
            )
            expected = direct(
                [4, 1, 4, 1], guidance_scale=scale, num_inference_steps=3, generator=image_generators(5, 4)
            ).images
            got = pixels(tmp_path, study, scheduler=scheduler, guidance_scale=scale)
            # Batches of other sizes round differently.
            assert np.abs(got.astype(int) - np.stack([np.asarray(image) for image in expected])).max() <= 1
            assert got.std() > 10


def test_without_batches_the_images_are_bit_for_bit_those_of_a_call(tmp_path):
    pipeline = make_pipeline()
    study = run_study(pipeline, [0, 1, 2], guidance_scales=(1,), steps=(4,), output_dir=tmp_path)
    direct = pipeline([0, 1, 2], guidance_scale=1, num_inference_steps=4, generator=image_generators(0, 3)).images
    assert np.array_equal(pixels(tmp_path, study), np.stack([np.asarray(image) for image in direct]))


def test_every_cell_starts_from_the_same_noise(tmp_path, monkeypatch):
    inputs, starts = [], []
    forward, call = DiTModel.forward, DiTImagePipeline.__call__

    def spy_on_forward(self, hidden_states, *args, **kwargs):
        inputs.append(hidden_states[:2].clone())  # of a guided batch, the conditional rows of both images
        return forward(self, hidden_states, *args, **kwargs)

    def spy_on_call(self, *args, **kwargs):
        inputs.clear()
        result = call(self, *args, **kwargs)
        starts.append(inputs[0])
        return result

    monkeypatch.setattr(DiTModel, "forward", spy_on_forward)
    monkeypatch.setattr(DiTImagePipeline, "__call__", spy_on_call)
    run_study(make_pipeline(), [0, 1], **SHORT, attentions=("full", "na3"), output_dir=tmp_path)
    noise = torch.cat([torch.randn(1, 3, 8, 8, generator=generator) for generator in image_generators(0, 2)])
    assert len(starts) == 1 + 2 * 2 * 3 * 2  # a trial, and two calls for each of 12 cells
    for start in starts[1:]:
        assert torch.equal(start, noise)


def test_figures_and_files_of_a_study(tmp_path):
    pipeline = make_pipeline()
    folder = tmp_path / "new" / "study"
    study = run_study(pipeline, [0, 1, 2], **SHORT, schedulers=("ddim", "heun"), output_dir=folder)
    assert json.loads((folder / "study.json").read_text()) == study
    assert study["axes"] == {
        "attentions": ["full"],
        "schedulers": ["ddim", "heun"],
        "guidance_scales": [0, 1, 3],
        "steps": [2, 4],
    }
    order = [
        (cell["attention"], cell["scheduler"], cell["guidance_scale"], cell["num_inference_steps"])
        for cell in study["cells"]
    ]
    assert order == [("full", s, g, n) for s in ("ddim", "heun") for g in (0, 1, 3) for n in (2, 4)]
    for cell in study["cells"]:
        guided, steps = cell["guidance_scale"] == 3, cell["num_inference_steps"]
        evaluations_of_a_step = 2 if guided else 1
        calls = steps if cell["scheduler"] == "ddim" else 2 * steps - 1  # second order, but for the last step
        assert cell["model_evaluations"] == 3 * evaluations_of_a_step * calls
        assert cell["seconds"] > 0 and cell["images_per_second"] == pytest.approx(3 / cell["seconds"])
        assert cell["timestep_spacing"] == "leading" and cell["timesteps"]["number"] == calls
        assert cell["timesteps"]["first"] == 1000 - 1000 // steps and cell["timesteps"]["last"] == 0
        assert cell["versions"]["torch"] == torch.__version__ and cell["hardware"].startswith("cpu")
        assert (cell["peak_memory_kind"] is None) == (cell["peak_memory_bytes"] is None)
        assert cell["peak_memory_bytes"] is None or cell["peak_memory_bytes"] > 50 * 2**20
        assert cell["change_from_first_attention"] is None
        last = pixels(folder, study, **{k: cell[k] for k in ("scheduler", "guidance_scale")}, num_inference_steps=4)
        own = np.stack([np.asarray(Image.open(folder / image)) for image in cell["images"]])
        assert cell["change_from_most_steps"] == pytest.approx(np.abs(own.astype(float) - last).mean())
    table = (folder / "study.md").read_text()
    assert table == study_markdown(study) + "\n" and table.count("\n| full | ") == 12
    assert "change from 4 steps" in table and "change from full" not in table
    assert study["settings"]["dtype"] == "float32" and study["settings"]["seed"] == 0
    assert [path for path in folder.rglob("*") if "tmp" in path.name] == []

    assert study["pictures"] == ["study_full_ddim.png", "study_full_heun.png"]
    sheet = 3 * 96 + 2 * 2  # a row of three images of 8 x 8 pixels, 12 times as large
    with Image.open(folder / "study_full_heun.png") as grid:
        assert 2 * sheet < grid.width < 2 * sheet + 250 and 3 * 96 < grid.height < 3 * 96 + 150
        large = pixels(folder, study, scheduler="heun", guidance_scale=3, num_inference_steps=4)[0]
        large, array = large.repeat(12, 0).repeat(12, 1), np.asarray(grid)
        windows = np.lib.stride_tricks.sliding_window_view(array, (12, 12, 3))[..., 0, :, :, :]
        found = np.argwhere((windows == large[:12, :12]).all((-1, -2, -3)))
        assert any(np.array_equal(array[y : y + 96, x : x + 96], large) for y, x in found)


def test_names_of_rows_columns_and_title(tmp_path, monkeypatch):
    drawn = []

    def spy(images, rows, columns, **kwargs):
        drawn.append((rows, columns, kwargs))
        return image_grid(images, rows, columns, **kwargs)

    monkeypatch.setattr(study_report, "image_grid", spy)
    run_study(make_pipeline(), ["dog", 0, 4], **SHORT, output_dir=tmp_path / "a")
    rows, columns, texts = drawn[0]
    assert (rows, columns) == (3, 2) and texts["column_names"] == ["2 steps", "4 steps"]
    assert texts["row_names"] == ["guidance 0\n(unconditional)", "guidance 1\n(conditional)", "guidance 3"]
    assert texts["title"].startswith("attention full, scheduler ddim (leading), seed 0")
    assert texts["title"].endswith("dog, tench, class 4")
    # Guided in three of four channels, or in some timesteps only, scale 0 is something else.
    run_study(make_pipeline(), [0], **SHORT, guidance_interval=(0, 300), output_dir=tmp_path / "b")
    assert drawn[1][2]["row_names"] == ["guidance 0", "guidance 1", "guidance 3"]


def test_attentions_are_set_in_turn_and_given_back(tmp_path, calls):
    pipeline = make_pipeline(attention="na3,full")
    before = pipeline.transformer.attn_processors
    scheduler = pipeline.scheduler
    study = run_study(
        pipeline, [0], guidance_scales=(1,), steps=(2, 3), attentions=(None, "full", " swa2"), output_dir=tmp_path
    )
    assert study["axes"]["attentions"] == ["na3,full", "full", "swa2"]
    assert [spec for scale, _, _, spec in calls if scale == 1] == ["na3"] * 4 + ["full"] * 4 + ["swa2"] * 4
    after = pipeline.transformer.attn_processors
    assert all(after[name] is before[name] for name in before) and pipeline.scheduler is scheduler
    assert pipeline.transformer.config.attention == "na3,full" and pipeline.num_model_evaluations == 0
    assert study["pictures"] == [f"study_{name}_ddim.png" for name in ("na3_full", "full", "swa2")]
    for cell in study["cells"]:
        own = pixels(tmp_path, study, **{name: cell[name] for name in ("attention", "num_inference_steps")})
        first = pixels(tmp_path, study, attention="na3,full", num_inference_steps=cell["num_inference_steps"])
        assert cell["change_from_first_attention"] == pytest.approx(np.abs(own.astype(float) - first).mean())
        assert (cell["change_from_first_attention"] > 0) == (cell["attention"] != "na3,full")
    assert "change from na3,full" in study_markdown(study)


def test_attention_is_given_back_after_an_error_too(tmp_path, monkeypatch):
    pipeline = make_pipeline()
    before = pipeline.transformer.attn_processors

    def broken(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "run_cell", broken)
    with pytest.raises(KeyboardInterrupt):
        run_study(pipeline, [0], **SHORT, attentions=("na3",), output_dir=tmp_path)
    after = pipeline.transformer.attn_processors
    assert all(after[name] is before[name] for name in before)


def test_a_killed_study_is_taken_up_where_it_was(tmp_path, monkeypatch, calls):
    whole = run_study(make_pipeline(), [0, 1], **SHORT, output_dir=tmp_path / "whole")
    calls.clear()
    write_json, written = cells_module.write_json, []

    def killed(path, content):
        if Path(path).parent.name == "cells":
            written.append(path)
            if len(written) == 4:
                raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(cells_module, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(make_pipeline(), [0, 1], **SHORT, output_dir=tmp_path / "killed")
    begun = json.loads((tmp_path / "killed" / "study.json").read_text())
    assert len(begun["cells"]) == 3 and begun["settings"] == whole["settings"]
    kept = begun["cells"][0]["seconds"]
    calls.clear()
    study = run_study(make_pipeline(), [0, 1], **SHORT, output_dir=tmp_path / "killed")
    assert [call[:2] for call in calls[1:]] == [(1, 2), (1, 4), (3, 2), (3, 2), (3, 2), (3, 4)]  # warm-up, cell
    assert study["cells"][0]["seconds"] == kept
    for cell, other in zip(study["cells"], whole["cells"], strict=True):
        for image in cell["images"]:
            assert (tmp_path / "killed" / image).read_bytes() == (tmp_path / "whole" / image).read_bytes()
        assert cell["change_from_most_steps"] == other["change_from_most_steps"]
    calls.clear()
    assert run_study(make_pipeline(), [0, 1], **SHORT, output_dir=tmp_path / "killed") == study
    assert calls == []


def test_a_study_grows_and_replaces_an_image_that_is_gone(tmp_path, calls):
    run_study(make_pipeline(), [0], guidance_scales=(1,), steps=(2,), output_dir=tmp_path)
    calls.clear()
    study = run_study(make_pipeline(), [0], guidance_scales=(1, 2), steps=(2, 3), output_dir=tmp_path)
    assert [call[:2] for call in calls[1:]] == [(1, 2), (1, 3), (2, 2), (2, 2), (2, 2), (2, 3)]
    assert len(study["cells"]) == 4
    gone = tmp_path / study["cells"][3]["images"][0]
    content = gone.read_bytes()
    gone.unlink()
    calls.clear()
    run_study(make_pipeline(), [0], guidance_scales=(1, 2), steps=(2, 3), output_dir=tmp_path)
    assert [call[:2] for call in calls[1:]] == [(2, 2), (2, 3)] and gone.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"class_labels": [1]}, r"class_labels was \[0\] and is \[1\]"),
        ({"images_per_class": 2}, "images_per_class was 1 and is 2"),
        ({"cfg_channels": 2}, "cfg_channels was 'all' and is 2"),
        ({"guidance_interval": (10, 500)}, r"guidance_interval was None and is \[10, 500\]"),
        ({"pipeline": make_pipeline(seed=1)}, "weights was"),
        ({"pipeline": make_pipeline(DDIMScheduler(timestep_spacing="trailing"))}, "trained_with was"),
    ],
)
def test_a_folder_with_another_study_is_refused(tmp_path, calls, change, message):
    arguments = {"pipeline": make_pipeline(), "class_labels": [0], "guidance_scales": (1,), "steps": (2,)}
    run_study(**arguments, output_dir=tmp_path)
    calls.clear()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for study in (tmp_path / "study.json", None):  # told by the study, and without it by its cells
        with pytest.raises(ValueError, match=f"{tmp_path.name}.* holds another study: .*{message}"):
            run_study(**arguments | change, output_dir=tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before and calls == []
        if study is not None:
            del before[study]
            study.unlink()


def test_an_unconditional_model_and_grey_images(tmp_path):
    pipeline = make_pipeline(num_classes=None, in_channels=1, learn_sigma=False, sample_size=(4, 6))
    study = run_study(
        pipeline, guidance_scales=(1,), steps=(2,), schedulers=("ddpm",), images_per_class=3, output_dir=tmp_path
    )
    assert study["settings"]["class_labels"] is None and study["cells"][0]["model_evaluations"] == 6
    assert pixels(tmp_path, study).shape == (3, 4, 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"guidance_scales": ()}, ValueError, "guidance_scales must be one or more different"),
        ({"guidance_scales": (1, 1.0)}, ValueError, "guidance_scales must be one or more different"),
        ({"guidance_scales": (1, float("nan"))}, ValueError, "guidance_scales must be finite; got nan"),
        ({"steps": (0,)}, ValueError, "steps must be whole numbers of 1 or more; got 0"),
        ({"steps": (2.5,)}, ValueError, "steps must be whole numbers"),
        ({"steps": (2, 1001)}, ValueError, "steps must be at most the 1000 of the training; got 1001"),
        ({"schedulers": ("plms",)}, ValueError, "schedulers must be among ddim"),
        ({"attentions": ("full", None)}, ValueError, "attentions must be one or more different"),
        ({"attentions": ("sparse",)}, ValueError, "attention item 'sparse' is not known"),
        ({"attentions": ("full", "xformers:full")}, (RuntimeError, ImportError), "xformers"),
        ({"class_labels": [5]}, ValueError, r"class_labels must be different classes, ids of 0 to 4; got \[5\]"),
        ({"class_labels": [0, 0]}, ValueError, "class_labels must be different classes"),
        ({"class_labels": []}, ValueError, "class_labels must be different classes"),
        ({"class_labels": ["cow"]}, ValueError, "class 'cow' is not among"),
        ({"class_labels": None}, ValueError, "class_labels are missing"),
        ({"seed": -1}, ValueError, "seed must be 0 or more"),
        ({"images_per_class": 0}, ValueError, "images_per_class must be 1 or more; got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more; got 0"),
        ({"cfg_channels": 4}, ValueError, "cfg_channels must be"),
        ({"guidance_interval": (5, 2)}, ValueError, "guidance_interval must be"),
        ({"pipeline": make_pipeline(class_dropout_prob=0)}, ValueError, "no null class"),
        ({"pipeline": make_pipeline(num_classes=None)}, ValueError, "the model is unconditional"),
    ],
)
def test_bad_arguments_end_before_the_first_cell(tmp_path, change, error, message):
    arguments = {"pipeline": make_pipeline(), "class_labels": [0], "guidance_scales": (1, 2), "steps": (2,)}
    with pytest.raises(error, match=message):
        run_study(**arguments | change, output_dir=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_class_ids_of_ids_names_and_synonyms():
    assert class_ids(make_pipeline(), [np.int64(3), "Tinca tinca", "dog"]) == [3, 0, 2]
    with pytest.raises(TypeError, match="float"):
        class_ids(make_pipeline(), [1.7])


# ------------------------------------------------------------------------------------------------------------- script


@pytest.fixture
def run(monkeypatch, capsys):
    script = vars(sample_command)

    def call(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        script["main"]()
        return capsys.readouterr().out

    return call


def test_the_script_runs_the_default_guidance_and_all_classes(run, tmp_path, calls):
    make_pipeline().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    text = run("--model_name_or_path", tmp_path / "model", "--num_inference_steps", 2, 3, "--output_dir", out)
    study = json.loads((out / "study.json").read_text())
    assert study["axes"]["guidance_scales"] == [0, 1, 4, 10] and study["settings"]["class_labels"] == [0, 1, 2, 3, 4]
    assert study_markdown(study) in text and str(out / "study.png") in text and (out / "study.png").exists()


@pytest.mark.parametrize("kind", ["saved", "exported", "stock"])
def test_the_script_loads_each_kind_of_pipeline(run, tmp_path, kind):
    flags = ["--num_inference_steps", 2, "--guidance_scales", 2, "--device", "cpu", "--output_dir", tmp_path / "out"]
    if kind == "stock":
        stock = stock_pipeline()
        stock.save_pretrained(tmp_path / "model")
        index = json.loads((tmp_path / "model" / "model_index.json").read_text())  # diffusers does not save the names
        index["id2label"] = {"1": "cat", "11": "cow"}
        (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
        expected = DiTImagePipeline.from_diffusers(stock)
    else:
        expected = make_pipeline(attention="na3")
        (export_pipeline if kind == "exported" else DiTImagePipeline.save_pretrained)(expected, tmp_path / "model")
    run("--model_name_or_path", tmp_path / "model", "--class_labels", "cat", 11 if kind == "stock" else 3, *flags)
    study = json.loads((tmp_path / "out" / "study.json").read_text())
    assert study["settings"]["class_labels"] == [1, 11 if kind == "stock" else 3]
    assert study["axes"]["attentions"] == ["full" if kind == "stock" else "na3"]
    images = expected(
        study["settings"]["class_labels"], guidance_scale=2, num_inference_steps=2, generator=image_generators(0, 2)
    ).images
    assert np.array_equal(pixels(tmp_path / "out", study), np.stack([np.asarray(image) for image in images]))


def stock_pipeline():
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=12,
    )
    embedder = model.transformer_blocks[0].norm1.emb.state_dict()
    model.transformer_blocks[1].norm1.emb.load_state_dict(embedder)  # trained ones are equal
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return DiTPipeline(model.eval(), vae.eval(), DDIMScheduler(clip_sample=False), id2label={1: "cat", 11: "cow"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--guidance_scales", "nan"], "guidance_scales must be finite"),
        (["--num_inference_steps", "0"], "steps must be whole numbers of 1 or more"),
        (["--num_inference_steps", "5", "5"], "steps must be one or more different"),
        (["--schedulers", "plms"], "schedulers must be among ddim"),
        (["--images_per_class", "0"], "--images_per_class must be 1 or more"),
        (["--batch_size", "0"], "--batch_size must be 1 or more"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--cfg_channels", "some"], "--cfg_channels must be all, or a number"),
        (["--guidance_interval", "1"], "--guidance_interval must be two numbers"),
        (["--guidance_interval", "9", "1"], "--guidance_interval must be two numbers"),
        (["--dtype", "int8"], "invalid choice"),
        (["--device", "somewhere"], "somewhere"),
        (["--device", "cuda"], "torch sees no CUDA device"),
    ],
)
def test_bad_flags_end_before_a_model_is_read(run, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        run("--model_name_or_path", "/nowhere", *flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_what_is_no_pipeline_and_labels_that_are_none(run, tmp_path, capsys):
    make_pipeline().save_pretrained(tmp_path)
    for flags, message in (
        (["--class_labels", "cow"], "--class_labels: class 'cow' is not among"),
        (["--class_labels", "7"], "--class_labels: class_labels must be different classes, ids of 0 to 4"),
        (["--model_name_or_path", str(tmp_path / "nothing")], "--model_name_or_path"),
    ):
        with pytest.raises(SystemExit):
            run("--model_name_or_path", tmp_path, "--output_dir", tmp_path / "out", *flags)
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(SystemExit):
        run("--model_name_or_path", tmp_path)
    assert "must hold a DiTImagePipeline or a DiTPipeline; got 'StableDiffusionPipeline'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ workers, damage, strangers


def test_workers_share_a_study(tmp_path, monkeypatch):
    one = {"attentions": ("full", "na3"), "guidance_scales": (1, 3), "steps": (2, 3)}
    whole = run_study(make_pipeline(), [0, 1], **one, output_dir=tmp_path / "whole")
    # The workers of this test are threads, which have one number of a process.
    own = "hf_common.files.temporary_name"
    monkeypatch.setattr(own, lambda path: path.with_name(f".{path.name}.{threading.get_ident()}.tmp"))
    made, run_cell = [], study_module.run_cell
    monkeypatch.setattr(study_module, "run_cell", lambda *given: made.append(given[1]) or run_cell(*given))
    with ThreadPoolExecutor(3) as pool:
        work = [
            pool.submit(run_study, make_pipeline(), [0, 1], **one, output_dir=tmp_path / "shared") for _ in range(3)
        ]
        studies = [each.result() for each in work]
    assert len(made) == len(set(made)) == 8
    assert studies[0] == studies[1] == studies[2] == json.loads((tmp_path / "shared" / "study.json").read_text())
    for cell in whole["cells"]:
        for image in cell["images"]:
            assert (tmp_path / "shared" / image).read_bytes() == (tmp_path / "whole" / image).read_bytes()


def test_a_dead_workers_cell_is_taken_over(tmp_path):
    cell = cells_module.Cell("full", "ddim", 1.0, 2)
    code = "import sys, time; from hf_common.locks import try_lock; lock = try_lock(sys.argv[1]); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(600)", str(tmp_path / "cells" / ".locks" / cell.folder)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"1\n"
        with ThreadPoolExecutor(1) as pool:
            call = {"guidance_scales": (1, 2), "steps": (2,), "output_dir": tmp_path}
            work = pool.submit(run_study, make_pipeline(), [0], **call)
            while not list((tmp_path / "cells").glob("*.json")):  # the other one is done
                assert not work.done()
            assert not (tmp_path / "cells" / f"{cell.folder}.json").exists()
            other.kill()
            assert len(work.result(timeout=60)["cells"]) == 2
    finally:
        other.kill()
        other.communicate()


def changed(content, rng):
    """Bytes with a flip, a cut, a block of zeros, or with a number or word of another type."""
    content, place = bytearray(content), int(rng.integers(len(content)))
    match rng.integers(4):
        case 0:
            content[place] ^= 1 << int(rng.integers(8))
        case 1:
            del content[place:]
        case 2:
            content[place : place + 16] = bytes(len(content[place : place + 16]))
        case 3:
            words = list(re.finditer(rb'(?<=: )("[^"]*"|[\d.]+|null)', content)) or [re.match(rb"", content)]
            word = words[int(rng.integers(len(words)))]
            content[word.start() : word.end()] = [b'"../x"', b"-1", b"null", b"[]", b"1e400"][int(rng.integers(5))]
    return bytes(content)


@pytest.mark.parametrize("kind", ["study.json", "cell", "picture"])
def test_damaged_files_are_named_or_made_again(tmp_path, kind):
    call = {"guidance_scales": (1,), "steps": (2, 3), "output_dir": tmp_path}
    study = run_study(make_pipeline(), [0], **call)
    cell = cells_module.Cell("full", "ddim", 1.0, 2)
    path = {
        "study.json": tmp_path / "study.json",
        "cell": tmp_path / "cells" / f"{cell.folder}.json",
        "picture": tmp_path / study["cells"][0]["images"][0],
    }[kind]
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        path.write_bytes(changed(whole, rng))
        try:
            if kind == "study.json":
                result = read_study(tmp_path)
                assert set(result["pictures"]) == {"study.png"} and study_markdown(result)
            else:
                result = cells_module.finished_cell(tmp_path, cell, study["settings"])
                assert result is None or result.keys() == study["cells"][0].keys() - {
                    "change_from_most_steps",
                    "change_from_first_attention",
                }
                refused += result is None
        except ValueError as error:
            assert (str(path) in str(error) or "holds another study" in str(error)) and len(str(error)) <= 700
            refused += 1
    assert refused > 100
    if kind != "study.json":
        path.write_bytes(whole[:40])
        again = run_study(make_pipeline(), [0], **call)
        assert again["cells"][0]["images"] == study["cells"][0]["images"]
        Image.open(tmp_path / study["cells"][0]["images"][0]).load()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "study_x.png", 3])
def test_pictures_of_a_study_are_those_of_its_axes(tmp_path, name):
    study = run_study(make_pipeline(), [0], guidance_scales=(1,), steps=(2,), output_dir=tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({**study, "pictures": [name]}))
    with pytest.raises(ValueError, match="study.json"):
        read_study(tmp_path)


def test_a_window_larger_than_the_grid_is_said(tmp_path):
    with pytest.warns(UserWarning, match="attention 'na9' is full attention on a grid of 4 x 4 tokens"):
        study = run_study(
            make_pipeline(), [0], attentions=("na3", "na9"), guidance_scales=(1,), steps=(2,), output_dir=tmp_path
        )
    assert study["sees_all"] == ["na9 is full attention on a grid of 4 x 4 tokens"]
    assert "na9 is full attention on a grid of 4 x 4 tokens." in (tmp_path / "study.md").read_text()
