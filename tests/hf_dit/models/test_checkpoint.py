"""Checkpoints of the paper's code as files: what its train.py writes, safetensors, and what is no checkpoint."""

import argparse
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from hf_dit import DiTImagePipeline, DiTModel
from hf_dit.training.network import load_vae
from tests.hf_dit.models.test_dit import inputs, reference_dit, reference_weights


class Other:
    """Of a class that is not let in."""


def checkpoint_of_training(**overrides):
    """As train.py of the paper's code saves it: the wrapped model, its average, an optimizer's state and arguments."""
    raw = {f"module.{name}": tensor for name, tensor in reference_weights(seed=1).items()}
    return {
        "model": raw,
        "ema": reference_weights(),
        "opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256),
        **overrides,
    }


def says(model, weights):
    sample, timestep, labels = inputs()
    with torch.no_grad():
        out = model(sample, timestep, labels).sample
    torch.testing.assert_close(out, reference_dit(weights, sample, timestep, labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "before 1.6"])
def test_a_checkpoint_of_a_training_gives_its_average_and_says_so(legacy, tmp_path):
    path = tmp_path / "0400000.pt"
    torch.save(checkpoint_of_training(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.warns(UserWarning, match=r"0400000.pt: took the weights under 'ema', not model, opt, args"):
        model = DiTModel.from_original(str(path), 2)
    says(model, reference_weights())
    path.unlink()  # nothing is left on the disk
    says(model, reference_weights())


def test_a_dict_of_a_training_is_taken_too():
    with pytest.warns(UserWarning, match="^took the weights under 'ema', not model, opt, args"):
        says(DiTModel.from_original(checkpoint_of_training(), 2), reference_weights())
    without = checkpoint_of_training()
    del without["ema"]
    with pytest.warns(UserWarning, match="^took the weights under 'model', not opt, args"):
        says(DiTModel.from_original(without, 2), reference_weights(seed=1))


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_weights_alone(name, prefix, tmp_path):
    weights = {prefix + key: tensor for key, tensor in reference_weights().items()}
    (save_file if name.endswith("safetensors") else torch.save)(weights, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DiTModel.from_original(tmp_path / name, num_attention_heads=2, attention="full")
    says(model, reference_weights())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    says(DiTModel.from_original(tmp_path / name, 2), reference_weights())  # the file is as it was


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.pt"):
        DiTModel.from_original(tmp_path / "no.pt", 2)
    with pytest.raises(ValueError, match=r"state_dict must be the path of a file, .* is a folder; from_pretrained"):
        DiTModel.from_original(tmp_path, 2)
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": Other()}, tmp_path / "object.pt")
    torch.save({"x_embedder.proj.weight": 3}, tmp_path / "number.pt")
    torch.save(checkpoint_of_training(), tmp_path / "cut.pt")
    content = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    for name, content in (
        ("text.pt", b"hello"),
        ("empty.pt", b""),
        ("text.safetensors", b"hello"),
        ("e.ckpt", b"\x80"),
    ):
        (tmp_path / name).write_bytes(content)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError) as caught:
            DiTModel.from_original(path, 2)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message and len(message) <= 300, message


def test_arguments_that_ask_for_other_weights_are_refused():
    for name, value in (
        ("conditioning", "adaln"),
        ("qk_norm", "rms_norm"),
        ("mlp", "swiglu"),
        ("embedders", "separate"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must be .* for weights of the paper's code.* got '{value}'"):
            DiTModel.from_original(reference_weights(), 2, **{name: value})
    assert DiTModel.from_original(reference_weights(), 2, qk_norm=None, attention="na3").config.attention == "na3"


def test_a_saved_model_that_lacks_weights_is_refused(tmp_path):
    model = DiTModel.from_name("dit-micro-2", sample_size=8)
    model.save_pretrained(tmp_path / "whole")
    DiTImagePipeline(model, DDIMScheduler()).save_pretrained(tmp_path / "pipeline")
    for folder in (tmp_path / "whole", tmp_path / "pipeline" / "transformer"):
        path = folder / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        loaded, info = DiTModel.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and torch.equal(loaded.proj_out.bias, weights["proj_out.bias"])
        del weights["proj_out.bias"], weights["proj_out.weight"]
        save_file(weights, path, metadata={"format": "pt"})
    lacking = "of this DiTModel lack proj_out.bias and 1 more weights"
    with pytest.raises(ValueError, match=f"{tmp_path / 'whole'}: the files {lacking}"):
        DiTModel.from_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match=lacking):
        DiTImagePipeline.from_pretrained(tmp_path / "pipeline")


def test_models_of_other_classes_are_not_taken_for_these(tmp_path):
    stock = DiTTransformer2DModel(
        sample_size=8, num_layers=1, num_attention_heads=1, attention_head_dim=8, num_embeds_ada_norm=2
    )
    stock.save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="the files of this DiTModel lack"):
        DiTModel.from_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="vae must be .* of an AutoencoderKL; got .*stock: a DiTTransformer2DModel"):
        load_vae(str(tmp_path / "stock"))
    with pytest.raises(ValueError, match="vae must be a folder or Hub id of an AutoencoderKL; got"):
        load_vae(str(tmp_path))
