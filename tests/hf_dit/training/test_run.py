import itertools
import json
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
from accelerate.state import AcceleratorState, DistributedType, GradientState
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training import run as training_module
from hf_dit.training.arguments import DiTTrainingArguments, model_overrides
from hf_dit.training.figures import smoothed
from hf_dit.training.images import image_format, load_images, open_rows
from hf_dit.training.network import open_network, training_scheduler
from hf_dit.training.objectives.make import make_objective
from hf_dit.training.records import read_training
from hf_dit.training.run import train_dit
from hf_dit.training.stream import PixelSamples, TrainingStream
from tests import ROOT
from tests.processes import run_process

from .small import COLOURS, arguments, picture, write_parquet


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
    objective = make_objective(training_scheduler(args, True, latents=False))
    schedule = objective.schedule
    torch.manual_seed(0)
    network = open_network(model, (3, 8, 8), 3).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0)
    average = {name: value.double().clone() for name, value in network.state_dict().items()}
    for step in range(steps):
        items = [stream[position] for position in range(step * batch, (step + 1) * batch)]
        clean, noise = (torch.stack([item[name] for item in items]) for name in ("clean", "noise"))
        timesteps = torch.tensor([item["timestep"] for item in items])
        labels = torch.tensor([3 if item["drop"] else item["label"] for item in items])
        output = network(objective.add_noise(clean, noise, timesteps), timesteps, labels, torch.zeros(batch).bool())
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
    line = flags(colours, tmp_path / "processes", **changes, **split)
    done = run_process(ROOT / "scripts/train_dit.py", *line, processes=2)
    assert done.returncode == 0, done.stderr
    for name in ("accumulated", "processes"):
        results = json.loads((tmp_path / name / "results.json").read_text())
        assert results["settings"] == one["settings"] and results["settings"]["global_batch"] == 4
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-4)
        for key, value in weights(tmp_path / "one").items():
            torch.testing.assert_close(weights(tmp_path / name)[key], value, rtol=0, atol=1e-5)
    assert results["processes"] == 2
    assert (tmp_path / "processes" / "checkpoint-6" / "random_states_1.pkl").exists()


def test_a_loader_that_another_training_left_in_mid_epoch_changes_no_step(colours, tmp_path):
    changes = {"train_batch_size": 1, "gradient_accumulation_steps": 4}
    train_dit(*arguments(colours, tmp_path / "alone", **changes))
    left = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(range(2)))
    rows = iter(left)
    list(itertools.islice(rows, 2))  # its last batch is out, its end was never asked for
    assert GradientState().end_of_dataloader
    train_dit(*arguments(colours, tmp_path / "after", **changes))
    assert losses(tmp_path / "after") == losses(tmp_path / "alone")
    for key, value in weights(tmp_path / "alone").items():
        assert torch.equal(weights(tmp_path / "after")[key], value)


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
    killed = run_process(KILLED, *line, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folders = sorted(path.name for path in (tmp_path / "killed").iterdir() if path.is_dir())
    assert folders == [".checkpoint-8.tmp", "checkpoint-4", "checkpoint-6"]

    with pytest.raises(ValueError, match="holds this run, begun; go on with --resume_from_checkpoint last"):
        train_dit(*arguments(colours, tmp_path / "killed", **changes))
    with pytest.raises(ValueError, match="resume_from_checkpoint must be 'last' or one of"):
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
    with pytest.raises(
        ValueError, match="does not fit data and flags: it has learn_sigma=True, not False; num_classes=3, not"
    ):
        train_dit(*arguments(colours, tmp_path / "other", **start, unconditional=True, learn_sigma=False))


def test_a_flow_that_another_objective_goes_on_from_is_named(tmp_path, colours):
    model = DiTModel.from_name("dit-micro-2", sample_size=8, in_channels=3, num_classes=3, learn_sigma=False)
    DiTImagePipeline(model, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "flow")
    with pytest.raises(ValueError, match="learn_sigma=False, not True; it was trained with --objective flow$"):
        train_dit(*arguments(colours, tmp_path / "run", model=str(tmp_path / "flow")))


def test_other_classes_take_a_new_label_table_and_leave_the_rest(colours, tmp_path, capsys):
    """From 10 classes to the 3 of the images, by the folder of a pipeline: what is not of a class is the same."""
    torch.manual_seed(3)
    old = DiTModel.from_name("dit-micro-2", sample_size=8, in_channels=3, num_classes=10)
    for parameter in old.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    DiTImagePipeline(old, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "old")
    start = {"model": str(tmp_path / "old"), "max_train_steps": 1, "learning_rate": 1e-12}
    results = train_dit(*arguments(colours, tmp_path / "run", **start))
    assert "label table of 3 classes drawn anew in place of 10" in capsys.readouterr().out
    assert results["config"]["num_classes"] == 3
    new = DiTModel.from_pretrained(tmp_path / "run", subfolder="transformer").eval()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        null, before = (m(x, t, torch.tensor([n, n])).sample for m, n in ((new, 3), (old.eval(), 10)))
        torch.testing.assert_close(null, before)
        assert not torch.allclose(new(x, t, torch.tensor([0, 1])).sample, before, atol=1e-4)
    table = new.class_embedding.weight[:3]
    assert table.std().item() == pytest.approx(0.02, rel=0.3)
    # The same seed, the same table; and a run of another objective says so.
    again = arguments(colours, tmp_path / "again", **start, prediction_type="v_prediction")
    train_dit(*again)
    assert "was trained to predict epsilon, now v_prediction" in capsys.readouterr().out
    same = DiTModel.from_pretrained(tmp_path / "again", subfolder="transformer").class_embedding.weight[:3]
    torch.testing.assert_close(table, same)


@pytest.mark.parametrize(
    "objective",
    [
        {"prediction_type": "flow", "flow_times": "logit_normal", "flow_shift": 1.5},
        {"prediction_type": "v_prediction", "snr_gamma": 5.0, "rescale_betas_zero_snr": True},
    ],
)
def test_other_objectives_are_trained_stopped_and_gone_on_with(objective, colours, tmp_path):
    changes, flow = {**objective, "random_flip": True}, objective["prediction_type"] == "flow"
    results = train_dit(*arguments(colours, tmp_path / "whole", **changes, max_train_steps=6))
    assert results["config"]["learn_sigma"] is results["settings"]["learn_sigma"] is not flow
    assert ("vb" in results["history"][0]) is not flow
    assert objective.items() <= results["settings"].items()
    assert read_training(tmp_path / "whole" / "results.json") == results
    for steps in (3, 6):
        again = {"max_train_steps": steps, "resume_from_checkpoint": "last", "checkpointing_steps": 3}
        train_dit(*arguments(colours, tmp_path / "parts", **changes, **again))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    pipeline = DiTImagePipeline.from_pretrained(tmp_path / "whole")
    kept = {"shift": 1.5} if flow else {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert kept.items() <= dict(pipeline.scheduler.config).items()
    assert pipeline("red", num_inference_steps=2).images[0].size == (8, 8)
    assert (tmp_path / "whole" / "samples").is_dir()


def test_images_decoded_at_their_visit_train_the_same_weights(colours, tmp_path):
    changes = {"random_flip": True, "max_train_steps": 9}
    train_dit(*arguments(colours, tmp_path / "memory", **changes))
    train_dit(*arguments(colours, tmp_path / "visit", **changes, keep_in_memory=False, dataloader_num_workers=2))
    memory, visit = weights(tmp_path / "memory"), weights(tmp_path / "visit")
    assert all(torch.equal(memory[name], visit[name]) for name in memory)
    settings = [json.loads((tmp_path / name / "settings.json").read_text()) for name in ("memory", "visit")]
    assert settings[0] == settings[1]


def test_a_fused_optimizer_makes_the_same_steps(colours, tmp_path):
    plain = train_dit(*arguments(colours, tmp_path / "plain"))
    fused = train_dit(*arguments(colours, tmp_path / "fused", optim="adamw_torch_fused"))
    assert fused["settings"]["optim"] == "adamw_torch_fused" and "optim" not in plain["settings"]
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "fused")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_an_optimizer_that_is_not_installed_is_named(colours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="needs bitsandbytes: pip install bitsandbytes"):
        train_dit(*arguments(colours, tmp_path, optim="adamw_bnb_8bit"))
    with pytest.raises(ValueError, match="optim must be one of .*'adamw_torch_fused'"):
        arguments(colours, tmp_path, optim="sgd")


@pytest.mark.slow
def test_compiled_blocks_train_to_the_same_weights(colours, tmp_path):
    changes = {"max_train_steps": 3, "learn_sigma": False}
    train_dit(*arguments(colours, tmp_path / "plain", **changes))
    train_dit(*arguments(colours, tmp_path / "compiled", **changes, torch_compile=True))
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


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
    with pytest.raises(ValueError, match="configured to FSDP; each process must hold the whole model, or its part"):
        train_dit(*parts)
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp`, which does nothing on CPUs
    with pytest.raises(ValueError, match=r"its own FSDP \(ACCELERATE_USE_FSDP\); launch without it .* with --fsdp of"):
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
        ({"prediction_type": "velocity"}, "prediction_type must be one of"),
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
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="report_to='wandb' needs a package: pip install wandb"):
        DiTTrainingArguments(report_to="wandb")


def test_overrides_are_read_as_json():
    assert model_overrides(" num_layers=4 , dropout=0.5,attention_bias=false") == {
        "num_layers": 4,
        "dropout": 0.5,
        "attention_bias": False,
    }
    assert model_overrides(None) == model_overrides("") == {}


def test_the_smoothed_loss_is_the_mean_of_the_last_fifth():
    rows = smoothed([{"step": step, "loss": float(step)} for step in range(1, 13)])
    assert [row["smoothed"] for row in rows] == [1, 2, 3, 4, 5, 5.5, 6.5, 7.5, 8.5, 9.5, 10, 11]
    assert rows[5] == {"step": 6, "loss": 6.0, "smoothed": 5.5}
