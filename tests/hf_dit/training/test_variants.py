"""Variants of the network from the command line to images."""

import pytest
import torch
from accelerate.state import AcceleratorState

from hf_dit.models.dit import DiTModel
from hf_dit.sampling.pipeline import DiTImagePipeline
from hf_dit.training.run import train_dit

from .small import arguments


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "overrides",
    [
        "conditioning=in_context,qk_norm=rms_norm,position=rope,mlp=swiglu",
        "conditioning=cross_attention,embedders=separate",
        "conditioning=adaln",
    ],
)
def test_a_variant_is_trained_saved_and_gone_on_with(overrides, colours, tmp_path):
    changes = {"attention": "na3", "save_images_steps": 3, "checkpointing_steps": 3}
    results = train_dit(*arguments(colours, tmp_path / "a", config_overrides=overrides, **changes))
    given = dict(part.split("=") for part in overrides.split(","))
    assert results["config"].items() >= given.items()
    pipeline = DiTImagePipeline.from_pretrained(tmp_path / "a")
    assert pipeline.transformer.config.items() >= (given | {"attention": "na3"}).items()
    (image,) = pipeline("red", num_inference_steps=2).images
    assert image.size == (8, 8)
    model = str(tmp_path / "a" / "transformer")
    train_dit(*arguments(colours, tmp_path / "b", model=model, **changes))
    before, after = DiTModel.from_pretrained(model), DiTModel.from_pretrained(tmp_path / "b" / "transformer")
    assert after.config.conditioning == given["conditioning"]
    changed = {
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    }
    assert len(changed) > 0.9 * len(after.state_dict())


def test_attention_that_takes_no_tokens_in_context_is_refused_before_training(colours, tmp_path):
    changes = {"config_overrides": "conditioning=in_context", "attention": "flex:na3"}
    with pytest.raises(ValueError, match="attention 'flex:na3' takes no tokens beside"):
        train_dit(*arguments(colours, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
