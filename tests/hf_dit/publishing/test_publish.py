"""Trained pipelines on a Hub: what is published, by whom it can be loaded, and what is refused."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from hf_common import hub as hub_module
from hf_common.hub import push_folder
from hf_dit import DiTImagePipeline, DiTModel, export_pipeline
from hf_dit.publishing.publish import REPOSITORY_FILES, read_scores, read_study, write_repository
from hf_dit.publishing.words import in_words
from hf_dit.sampling.export import load_pipeline
from hf_dit.studies.study import run_study
from hf_dit.training.loop import DiTTrainer
from tests import ROOT

SCRIPTS = ROOT / "scripts"
REPO = "user/dit-colours"
FILES = {
    ".gitattributes", "README.md", "model_index.json", "dit_image_pipeline.py", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors", "transformer/dit_model.py", "scheduler/scheduler_config.json",
    "results.json", "loss_curve.png", "samples.png",
}  # fmt: skip
COLOURS = {"blue": (40, 60, 210), "green": (50, 190, 60), "red": (220, 50, 40)}
PUSH = ["--push_to_hub", "--hub_model_id", REPO]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of Parquet: 30 images of 8 x 8 pixels in three classes."""
    rng = np.random.default_rng(0)
    labels = [label for label in range(3) for _ in range(10)]
    pixels = [np.array(list(COLOURS.values())[label]) + rng.normal(0, 12, (8, 8, 3)) for label in labels]
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in pixels], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(COLOURS))}),
    )
    folder = tmp_path_factory.mktemp("data") / "colours"
    folder.mkdir()
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def flags(colours, output_dir):
    return [
        "--dataset_name", colours, "--model", "dit-micro-2", "--train_batch_size", "4", "--max_train_steps", "3",
        "--learning_rate", "1e-2", "--logging_steps", "1", "--checkpointing_steps", "2", "--sample_steps", "2",
        "--num_sample_images", "3", "--use_cpu", "--output_dir", output_dir,
    ]  # fmt: skip


def call(script, *arguments):
    """The script in this process, as from a command line."""
    argv = sys.argv
    sys.argv = [script, *map(str, arguments), "--debug"]  # raises what it would tell in a line
    try:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    finally:
        sys.argv = argv
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    call("train_dit.py", *flags(colours, folder))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A finished run of the test's own."""
    return shutil.copytree(trained, tmp_path / "run")


def snippet(card):
    return card.split("## How to use")[1].split("```python\n")[1].split("```")[0]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_cards_example_draws_the_same_images_where_this_package_is_not_installed(hub, run):
    with torch.no_grad():  # weights at which attention matters
        pipeline = DiTImagePipeline.from_pretrained(run)
        generator = torch.Generator().manual_seed(5)
        for parameter in pipeline.transformer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    pipeline.save_pretrained(run)
    write_repository(run, run / "out", REPO)
    push_folder(run / "out", REPO, names=REPOSITORY_FILES)
    assert set(hub.server.repo("model", REPO).files) == FILES

    card = ModelCard.load(REPO)
    card.validate()
    code = snippet(card.text)
    assert f'from_pretrained("{REPO}", trust_remote_code=True)' in code
    assert '["blue", "red"]' in code and 'set_attn_processor("na3")' in code
    hub.server.requests.clear()
    printed = hub.run(code + "\nprint(type(pipeline).__module__)", OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert printed.strip().startswith("diffusers_modules.")
    assert not [path for _, _, path in hub.server.downloads() if path.endswith((".png", "results.json"))]

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    drawn = hub.home.parent / "cwd"
    images = {}
    for name, attention in (("sample", "full"), ("sample-na3", "na3")):
        pipeline.transformer.set_attn_processor(attention)
        images[name] = pipeline(["blue", "red"], generator=torch.Generator().manual_seed(0)).images[0]
        assert np.array_equal(pixels(drawn / f"{name}.png"), np.asarray(images[name])), name
    assert not np.array_equal(*map(np.asarray, images.values()))


def test_weights_and_latents_come_back_as_they_were(hub, tmp_path):
    torch.manual_seed(0)
    model = DiTModel.from_name("dit-micro-2", sample_size=8, num_classes=5, attention="swa5,na3")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    pipeline = DiTImagePipeline(
        model.eval(), DDIMScheduler(clip_sample=False), id2label={1: "crane", 2: "crane, bird"}
    )
    pipeline.set_progress_bar_config(disable=True)
    export_pipeline(pipeline, tmp_path / "exported")
    push_folder(tmp_path / "exported", "user/exported", names=REPOSITORY_FILES)
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    for cls in (DiffusionPipeline, DiTImagePipeline):
        with pytest.raises(ValueError, match="trust_remote_code"):
            cls.from_pretrained("user/exported")
        loaded = cls.from_pretrained("user/exported", trust_remote_code=True)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.transformer.state_dict()[name], tensor), name
        assert loaded.id2label == pipeline.id2label and loaded.transformer.config.attention == "swa5,na3"
        wanted, got = (
            p("bird", generator=torch.Generator().manual_seed(0), **arguments).images for p in (pipeline, loaded)
        )
        assert torch.equal(got, wanted) and got.std() > 0.01
    assert type(DiTModel.from_pretrained("user/exported", subfolder="transformer")) is DiTModel
    sampled = load_pipeline("user/exported", torch.float32)
    assert type(sampled) is DiTImagePipeline and sampled.id2label == pipeline.id2label


def test_a_run_on_latents_without_classes_is_published_with_its_autoencoder(hub, colours, tmp_path, monkeypatch):
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), norm_num_groups=2,
    ).save_pretrained(tmp_path / "small-vae")  # fmt: skip
    run = tmp_path / "run"
    latents = ["--vae", tmp_path / "small-vae", "--latent_cache_dir", tmp_path / "latents", "--unconditional"]
    call("train_dit.py", *flags(colours, run), *PUSH, *latents)
    files = hub.server.repo("model", REPO).files
    assert set(files) == FILES | {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    card = ModelCard.load(REPO)
    card.validate()
    assert "latents of the autoencoder `small-vae`, 4 x 4 x 4" in card.text
    monkeypatch.chdir(tmp_path)
    exec(snippet(card.text), scope := {})
    assert len(scope["images"]) == 2 and Image.open(tmp_path / "sample.png").size == (8, 8)


def test_one_command_trains_and_publishes_and_sends_nothing_the_second_time(hub, colours, tmp_path, monkeypatch):
    run = tmp_path / "run"
    command = ["train_dit.py", *flags(colours, run), *PUSH, "--hub_private_repo", "--hub_token", "hf_user"]
    call(*command)
    repository = hub.server.repo("model", REPO)
    assert set(repository.files) == FILES and repository.private
    assert len(repository.commits) == 2  # the Hub's own first one, and one of ours
    assert (run / "checkpoint-2").exists() and not list(run.glob(".hub-*"))
    assert repository.files["samples.png"] == (run / "samples" / "step-0000003.png").read_bytes()
    assert repository.files["loss_curve.png"] == (run / "loss_curve.png").read_bytes()
    published, kept = json.loads(repository.files["results.json"]), json.loads((run / "results.json").read_text())
    assert published["settings"].pop("dataset_name") == "colours" and kept["settings"].pop("dataset_name") != "colours"
    assert published == kept
    for name, content in repository.files.items():
        for private in (tmp_path, colours.parent, Path.home(), SCRIPTS.parent, "hf_user"):
            assert str(private).encode() not in content, name
    card = repository.files["README.md"].decode()
    assert "--dataset_name colours" in card and "`colours` was a folder" in card
    assert f"{kept['loss']:.3g}" in card or f"{kept['history'][-1]['smoothed']:.3g}" in card

    def train(self):
        raise AssertionError("trains again")

    monkeypatch.setattr(DiTTrainer, "train", train)
    hub.server.requests.clear()
    head = repository.head
    call(*command)
    assert hub.server.uploaded_bytes() == 0 and repository.head == head
    with pytest.raises(ValueError, match="finished after 3 steps.*--push_to_hub"):
        call("train_dit.py", *flags(colours, run))
    with pytest.raises(ValueError, match="another run: seed=1"):
        call(*command, "--seed", "1")


def test_a_push_that_failed_is_made_good_by_the_same_command_without_training(hub, colours, run, monkeypatch):
    monkeypatch.setattr(hub_module, "WAITS", (0.0, 0.0))
    written = (run / "results.json").stat().st_mtime_ns
    command = ["train_dit.py", *flags(colours, run), *PUSH]
    fault = hub.server.fail("POST", "/commit/", status=503, times=99)
    with pytest.raises(ConnectionError, match=f"{REPO}.*failed 3 times"):
        call(*command)
    assert set(hub.server.repo("model", REPO).files) <= {".gitattributes"} and not list(run.glob(".hub-*"))
    fault.times = 0
    call(*command)
    assert set(hub.server.repo("model", REPO).files) == FILES
    assert (run / "results.json").stat().st_mtime_ns == written


def test_two_processes_make_one_commit(hub, colours, tmp_path):
    launch = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, SCRIPTS / "train_dit.py", *flags(colours, tmp_path / "run"), *PUSH]
    env = hub.env(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("published:") == 1
    repository = hub.server.repo("model", REPO)
    assert set(repository.files) == FILES and len(repository.commits) == 2
    assert "torchrun --nproc_per_node 2 scripts/train_dit.py" in repository.files["README.md"].decode()


def test_study_and_scores_are_published_with_the_model(hub, colours, run, tmp_path, monkeypatch):
    pipeline = DiTImagePipeline.from_pretrained(run)
    study = run_study(
        pipeline, [0, 1, 2], output_dir=tmp_path / "study", guidance_scales=(1.0, 2.0), steps=(2, 4),
        attentions=(None, "na3"), images_per_class=2,
    )  # fmt: skip
    cells = tmp_path / "study" / "cells" / "full_ddim_guidance2.0_steps4"
    (tmp_path / "mean_colour.py").write_text(
        "import numpy as np\n\n\ndef encode(images):\n"
        "    return np.stack([[*np.asarray(i.convert('RGB')).mean((0, 1)), 9.0] for i in images]).astype(np.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = ["--metrics", "cmmd", "fd", "--encoders", "mean_colour:encode", "--use_cpu", "--use_cache", "false"]
    references = ["--references", colours]
    call("evaluate_images.py", "--predictions", cells, *references, *common, "--output_dir", tmp_path / "scores")
    call(
        "evaluate_images.py", "--predictions", colours, "--predictions_split", "train[:10]", *references, *common,
        "--output_dir", tmp_path / "real",
    )  # fmt: skip
    command = ["train_dit.py", *flags(colours, run), *PUSH, "--hub_study_dir", tmp_path / "study"]
    call(*command, "--hub_score_dirs", tmp_path / "scores", tmp_path / "real")
    files = hub.server.repo("model", REPO).files
    assert set(files) == FILES | {"study.json", "study_full_ddim.png", "study_na3_ddim.png", "scores.json"}
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    card = ModelCard.load(REPO)
    card.validate()
    (score,) = json.loads((tmp_path / "scores" / "results.json").read_text())["scores"]
    entries = {result.metric_name: result for result in card.data.eval_results}
    unbiased = entries["CMMD, unbiased"]
    assert unbiased.metric_value == pytest.approx(score["cmmd_unbiased"], rel=1e-4)
    assert unbiased.metric_args["standard_error"] == pytest.approx(score["standard_error"], rel=1e-4)
    assert unbiased.metric_args["encoder"] == "mean_colour:encode" and unbiased.metric_args["n"] == 6
    assert unbiased.metric_args["guidance_scale"] == 2 and unbiased.metric_args["num_inference_steps"] == 4
    assert unbiased.dataset_type == "colours"
    assert len(card.data.eval_results) == 3  # real images are no result of the model
    assert re.search(r"\| \*real: colours train\\\[:10\\\]\* \|", card.text)
    for cell in study["cells"]:
        assert f"| {in_words(1 / cell['images_per_second'], None, 2)} s" in card.text
    settings = '{"guidance_scale": 2.0, "num_inference_steps": 4}'
    assert settings in snippet(card.text)  # those with the best score

    other = tmp_path / "other"
    shutil.copytree(run, other)
    changed = DiTModel.from_pretrained(other / "transformer")
    with torch.no_grad():
        changed.proj_out.bias.add_(1)
    changed.save_pretrained(other / "transformer")
    for extra in ({"study_dir": tmp_path / "study"}, {"score_dirs": [tmp_path / "scores"]}):
        with pytest.raises(ValueError, match="must be of the weights in .*other"):
            write_repository(other, tmp_path / "out", REPO, **extra)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (["--hub_model_id", "colours"], ValueError, "user/name.*colours"),
        (["--hub_model_id", "user/a-dataset"], ValueError, "is a dataset"),
        (["--hub_model_id", "user/other"], ValueError, "unet/config.json"),
        (["--hub_model_id", "someone/colours"], PermissionError, "someone/colours.*'user'"),
        (["--hub_token", "hf_wrong"], PermissionError, "token"),
        (["--hub_token", "hf_read"], PermissionError, "can't write"),
        (["--hub_study_dir", "nowhere"], ValueError, "nowhere.*sample_dit.py"),
        (["--hub_score_dirs", "nowhere"], ValueError, "nowhere.*evaluate_images.py"),
    ],
)
def test_what_can_not_be_published_is_refused_before_the_training(hub, colours, tmp_path, changes, error, says):
    hub.server.create_repo("dataset", "user/a-dataset")
    hub.server.create_repo("model", "user/other", files={"model_index.json": b"{}", "unet/config.json": b"{}"})
    with pytest.raises(error, match=says):
        call("train_dit.py", *flags(colours, tmp_path / "run"), *PUSH, *changes)
    assert not (tmp_path / "run").exists()
    assert {request.method for request in hub.server.requests} <= {"GET", "HEAD"}


def test_without_a_token_nothing_begins(hub, colours, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="no token.*hf auth login"):
        call("train_dit.py", *flags(colours, tmp_path / "run"), *PUSH)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--push_to_hub"], "push_to_hub needs hub_model_id.*None"),
        (["--hub_model_id", REPO], "hub_model_id has no effect without push_to_hub"),
        (["--hub_private_repo"], "hub_private_repo has no effect without push_to_hub"),
    ],
)
def test_flags_that_belong_together(colours, tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        call("train_dit.py", *flags(colours, tmp_path / "run"), *changes)
    assert not (tmp_path / "run").exists()


def test_a_study_that_was_interrupted_is_not_published(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"pictures": [], "cells": []}))
    with pytest.raises(ValueError, match="not finished"):
        read_study(tmp_path)
    with pytest.raises(ValueError, match="evaluate_images.py"):
        read_scores([tmp_path])
