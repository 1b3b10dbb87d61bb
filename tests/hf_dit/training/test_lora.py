"""Training an adapter on a frozen model: weights, files, resumes, other classes."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training.arguments import ModelArguments
from hf_dit.training.lora import LORA_FILE
from hf_dit.training.run import train_dit

from .small import arguments

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folders of pipelines of random weights with 3 and with 10 classes."""
    folders = {}
    for classes in (3, 10):
        torch.manual_seed(classes)
        model = DiTModel.from_name("dit-micro-2", sample_size=8, in_channels=3, num_classes=classes)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        folders[classes] = tmp_path_factory.mktemp("base") / str(classes)
        DiTImagePipeline(model, DDPMScheduler(variance_type="learned_range")).save_pretrained(folders[classes])
    return folders


def images(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        [0, 2], guidance_scale=2, num_inference_steps=3, latents=latents, generator=generator, output_type="latent"
    ).images


def test_the_saved_pipeline_is_the_base_with_the_adapter_that_is_saved_beside_it(base, colours, tmp_path):
    changes = {"model": str(base[3]), "lora_rank": 2, "lora_alpha": 8, "learning_rate": 1e-2}
    results = train_dit(*arguments(colours, tmp_path, **changes))
    assert results["settings"]["lora_rank"] == 2
    width, layers = 32, 2
    assert results["trained_parameters"] == layers * 4 * 2 * 2 * width  # four projections, two factors
    before = load_file(base[3] / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert changed == {name for name in before if name.endswith(targets)}

    pipeline = DiTImagePipeline.from_pretrained(base[3])
    plain = images(pipeline)
    pipeline.load_lora_weights(tmp_path, weight_name=LORA_FILE)
    adapted, saved = images(pipeline), images(DiTImagePipeline.from_pretrained(tmp_path))
    torch.testing.assert_close(adapted, saved, rtol=1e-3, atol=1e-4)
    assert (adapted - plain).abs().max() > 1e-3


def test_an_adapter_is_trained_as_by_hand(base, colours, tmp_path):
    """With a rank as large as the width and all else frozen, the loss falls, and the base stays as it was."""
    changes = {"model": str(base[3]), "lora_rank": 32, "learning_rate": 1e-2, "max_train_steps": 30}
    history = train_dit(*arguments(colours, tmp_path, **changes))["history"]
    assert sum(row["mse"] for row in history[-5:]) < sum(row["mse"] for row in history[:5])


@pytest.mark.parametrize("classes", [3, 10])
def test_a_resumed_training_ends_with_the_same_adapter(classes, base, colours, tmp_path):
    changes = {"model": str(base[classes]), "lora_rank": 2, "learning_rate": 1e-2}
    whole = train_dit(*arguments(colours, tmp_path / "whole", **changes))
    for steps in (3, 6):
        again = {"max_train_steps": steps, "resume_from_checkpoint": "last", "checkpointing_steps": 3}
        parts = train_dit(*arguments(colours, tmp_path / "parts", **changes, **again))
    assert parts["history"] == whole["history"]
    for name in (LORA_FILE, "transformer/diffusion_pytorch_model.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_classes_are_trained_beside_the_adapter(base, colours, tmp_path):
    changes = {"model": str(base[10]), "lora_rank": 2, "learning_rate": 1e-2}
    results = train_dit(*arguments(colours, tmp_path, **changes))
    assert results["config"]["num_classes"] == 3
    assert results["trained_parameters"] == 2 * 4 * 2 * 2 * 32 + 4 * 32  # and the table of 3 classes and none
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["num_classes"] == 3
    assert images(DiTImagePipeline.from_pretrained(tmp_path)).isfinite().all()


def test_bad_arguments(base):
    for given, message in (
        ({"lora_rank": 4}, "lora_rank must be 1 or more, for a trained model; got 4 for model='dit-s-2'"),
        ({"model": str(base[3]), "lora_rank": 0}, "lora_rank must be 1 or more"),
        ({"model": str(base[3]), "lora_alpha": 4}, "lora_alpha must be 1 or more, beside a lora_rank"),
        ({"model": str(base[3]), "lora_rank": 2, "lora_alpha": -1}, "lora_alpha must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelArguments(**given)
