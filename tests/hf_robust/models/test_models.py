import itertools
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    ViTImageProcessorPil,
    pipeline,
)

# transformers 5.17 exports it from the top only where torchvision is installed
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hf_robust
from hf_robust.models import (
    MODELS,
    Cnn8Config,
    CnnSmallConfig,
    ResNetCifarConfig,
    convert_resnet20,
    load_model,
    make_image_processor,
)
from hf_robust.noise.cifar10 import CIFAR10_CLASSES

ROOT = Path(hf_robust.__file__).parents[1]


def images(batch=4, size=32, seed=0):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def count(model):
    return sum(p.numel() for p in model.parameters())


def conv_bn(c_in, c_out, kernel=3, bias=False):
    return c_out * (c_in * kernel**2 + bias) + 2 * c_out


def linear(n_in, n_out):
    return n_in * n_out + n_out


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_resnet20_has_the_270_thousand_parameters_of_the_paper():
    assert count(load_model("resnet20_cifar", num_labels=10)) == 269_722


def test_resnet18_has_the_known_number_of_parameters():
    assert count(load_model("resnet18_cifar", num_labels=10)) == 11_173_962


def test_cnn8_parameters_in_closed_form():
    widths = [3, 64, 64, 128, 128, 196, 196]
    convolutions = sum(conv_bn(a, b, bias=True) for a, b in itertools.pairwise(widths))
    assert count(load_model("cnn8", num_labels=10)) == convolutions + linear(3136, 256) + 2 * 256 + linear(256, 10)


@pytest.mark.parametrize(
    "num_labels, image_size, width", [(2, 32, 1), (10, 32, 1), (7, 9, 1), (10, 32, 2), (10, 32, 4)]
)
def test_cnn_small_parameters_in_closed_form(num_labels, image_size, width):
    first, second, hidden = 32 * width, 64 * width, 128 * width
    flat = second * ((image_size // 2 + 1) // 2) ** 2
    shape = {"num_labels": num_labels, "image_size": image_size} | ({} if width == 1 else {"width": width})
    normalised, bare = load_model("cnn_small", **shape), load_model("cnn_small", **shape, batch_norm=False)
    head = linear(hidden, num_labels)
    assert count(normalised) == conv_bn(3, first) + conv_bn(first, second) + flat * hidden + 2 * hidden + head
    assert count(bare) == linear(27, first) + linear(9 * first, second) + linear(flat, hidden) + head
    assert bare(images(size=image_size)).logits.shape[1] == num_labels


def test_the_bare_network_has_no_batch_norm():
    norms = [
        m for m in load_model("cnn_small", num_labels=10).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert [type(m) for m in norms] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm1d]
    bare = load_model("cnn_small", num_labels=10, batch_norm=False)
    assert not [m for m in bare.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not list(bare.buffers())


# --- the same function as independent code -------------------------------------------------------------------------


def copy_in_order(source, target):
    """Weights and statistics of the layers of `source` into those of `target`, in the order of definition."""
    kinds = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)
    pairs = [[m for m in net.modules() if isinstance(m, kinds)] for net in (source, target)]
    for one, other in zip(*pairs, strict=True):
        assert type(one) is type(other)
        other.load_state_dict(one.state_dict())


def cnn_small_by_hand(batch_norm):
    norm = (lambda layer, n: [layer(n)]) if batch_norm else (lambda layer, n: [])
    bias = not batch_norm
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=bias),
        *norm(nn.BatchNorm2d, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=bias),
        *norm(nn.BatchNorm2d, 64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4096, 128, bias=bias),
        *norm(nn.BatchNorm1d, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def cnn8_by_hand():
    def conv(a, b):
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *conv(3, 64),
        *conv(64, 64),
        nn.MaxPool2d(2),
        *conv(64, 128),
        *conv(128, 128),
        nn.MaxPool2d(2),
        *conv(128, 196),
        *conv(196, 196),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "name, overrides, by_hand",
    [
        ("cnn_small", {}, lambda: cnn_small_by_hand(True)),
        ("cnn_small", {"batch_norm": False}, lambda: cnn_small_by_hand(False)),
        ("cnn8", {}, cnn8_by_hand),
    ],
)
def test_plain_networks_equal_a_sequential(name, overrides, by_hand, training):
    torch.manual_seed(0)
    model, reference = load_model(name, num_labels=10, **overrides), by_hand()
    model(images(16))  # running statistics other than those of the start
    copy_in_order(model, reference)
    model, reference, pixels = model.double(), reference.double(), images(8, seed=1).double()
    model.train(training)
    reference.train(training)
    torch.testing.assert_close(model(pixels).logits, reference(pixels), rtol=1e-12, atol=1e-12)


def resnet_by_hand(weights, pixels, widths, depths, shortcut):
    """The forward pass in evaluation mode, from a state dict, with F alone; option A by an explicit loop."""

    def norm(x, name):
        w = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        mean, var, scale, shift = (v[:, None, None] for v in w)
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = norm(F.conv2d(pixels, weights["conv1.weight"], padding=1), "bn1").relu()
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if y.shape != x.shape and shortcut == "A":
                bridge, first = torch.zeros_like(y), (width - x.shape[1]) // 2
                for channel in range(x.shape[1]):
                    bridge[:, first + channel] = x[:, channel, ::2, ::2]
                x = bridge
            elif y.shape != x.shape:
                x = F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=stride)
                x = norm(x, f"{name}.shortcut.1")
            x = (x + y).relu()
    return x.flatten(2).mean(-1) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.mark.parametrize(
    "name, widths, depths, shortcut",
    [
        ("resnet20_cifar", (16, 32, 64), (3, 3, 3), "A"),
        ("resnet18_cifar", (64, 128, 256, 512), (2, 2, 2, 2), "B"),
    ],
)
def test_resnets_equal_plain_functional_code(name, widths, depths, shortcut):
    torch.manual_seed(0)
    model = load_model(name, num_labels=10)
    with torch.no_grad():
        for _ in range(3):
            model(images(8))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # scales and shifts other than 1 and 0
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model, pixels = model.double().eval(), images(2, seed=1).double()
        expected = resnet_by_hand(model.state_dict(), pixels, widths, depths, shortcut)
        torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-9, atol=1e-9)


# --- initial weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_seed_alone_decides_the_initial_weights(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(load_model(name, num_labels=10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not any(torch.equal(states[0][key], states[2][key]) for key in states[0] if states[0][key].ndim > 1)


def assert_uniform(tensor, bound):
    values = tensor.detach().flatten()
    assert values.abs().max() <= bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_initial_distributions():
    torch.manual_seed(0)
    bare = load_model("cnn_small", num_labels=10, batch_norm=False)
    assert_uniform(bare.conv2.weight, 288**-0.5)
    assert_uniform(bare.linear1.weight, 4096**-0.5)
    assert bare.linear1.bias.abs().max() <= 4096**-0.5
    cnn8 = load_model("cnn8", num_labels=10)
    assert_uniform(cnn8.features[3].weight, (6 / 576) ** 0.5)  # He, fan-in
    assert_uniform(cnn8.linear1.weight, (6 / (3136 + 256)) ** 0.5)  # Xavier
    assert_uniform(cnn8.linear1.bias, 3136**-0.5)
    resnet = load_model("resnet18_cifar", num_labels=10)
    for convolution in (resnet.layer4[1].conv2, resnet.layer2[0].shortcut[0]):
        fan_in = convolution.weight[0].numel()
        assert convolution.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert convolution.weight.abs().max() > 3 * (2 / fan_in) ** 0.5  # normal, not uniform
    assert_uniform(resnet.linear.weight, 512**-0.5)
    for model in (cnn8, resnet):
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all((m.weight == 1).all() and (m.bias == 0).all() and (m.running_var == 1).all() for m in norms)


# --- output and loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [2, 7, 100])
@pytest.mark.parametrize("name", MODELS)
def test_loss_is_cross_entropy(name, num_labels):
    torch.manual_seed(0)
    model = load_model(name, num_labels=num_labels).eval()
    labels = torch.tensor([0, num_labels - 1, 1, -100])
    output = model(images(), labels=labels)
    assert output.logits.shape == (4, num_labels)
    reference = output.logits.log_softmax(-1)[range(3), labels[:3]]
    torch.testing.assert_close(output.loss, -reference.mean())
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    scaled = model(images(), labels=labels, num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(scaled, -reference.sum() / 8)
    assert model(images()).loss is None
    as_tuple = model(images(), labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = load_model(name, num_labels=10).double()
    model(images(8).double(), labels=torch.arange(8)).loss.backward()
    # The batch norm behind cnn8's layers cancels their biases; every other gradient is more than rounding.
    cancelled = {f"features.{i}.bias" for i in (0, 3, 7, 10, 14, 17)} | {"linear1.bias"} if name == "cnn8" else set()
    assert {key for key, p in model.named_parameters() if p.grad is None or p.grad.norm() < 1e-9} == cancelled


def test_images_of_another_size():
    small = load_model("cnn_small", num_labels=3, image_size=8)
    assert small(images(size=8)).logits.shape == (4, 3)
    assert load_model("cnn8", num_labels=3, image_size=24)(images(size=24)).logits.shape == (4, 3)
    for name in ("resnet18_cifar", "resnet20_cifar"):
        assert load_model(name, num_labels=3, image_size=24)(images(size=17)).logits.shape == (4, 3)


@pytest.mark.parametrize("name", MODELS)
def test_wrong_pixels_are_refused(name):
    model = load_model(name, num_labels=10)
    size = "32, 32" if name in ("cnn_small", "cnn8") else "H, W"
    wrong = [images()[:, :1], images()[0], images().flatten(1)]
    if name in ("cnn_small", "cnn8"):
        wrong += [images(size=28), images()[..., :31]]
    for pixels in wrong:
        with pytest.raises(ValueError) as error:
            model(pixels)
        assert f"(B, 3, {size})" in str(error.value) and str(tuple(pixels.shape)) in str(error.value)
    with pytest.raises(TypeError, match="floating point.*uint8"):
        model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    "config, fields, message",
    [
        (CnnSmallConfig, {"image_size": 1}, "image_size must be a whole number from 2 to 4096, got 1$"),
        (CnnSmallConfig, {"num_channels": 0}, "num_channels must be a whole number from 1 to 4096, got 0"),
        (CnnSmallConfig, {"width": 0}, "width must be a whole number from 1 to 256, got 0"),
        (CnnSmallConfig, {"image_size": 10**12}, "image_size must be .*, got 1000000000000$"),
        (
            CnnSmallConfig,
            {"image_size": 4096, "width": 256},
            "and width=256 make a layer of .* weights",
        ),
        (CnnSmallConfig, {"batch_norm": "no"}, "batch_norm must be True or False, got 'no'"),
        (Cnn8Config, {"image_size": 7}, "image_size must be a whole number from 8 to 2048, got 7"),
        (Cnn8Config, {"num_channels": 0}, "num_channels must be a whole number from 1 to 4096, got 0"),
        (Cnn8Config, {"num_channels": "3"}, "num_channels must be a whole number from 1 to 4096, got '3'"),
        (Cnn8Config, {"image_size": math.nan}, "image_size must be .*, got nan"),
        (ResNetCifarConfig, {"depths": [3, 3]}, "one entry per stage"),
        (ResNetCifarConfig, {"depths": [3, 0, 3]}, r"depths must be whole numbers from 1 to 16384, got \[3, 0, 3\]"),
        (ResNetCifarConfig, {"depths": [3, True, 3]}, "depths must be whole numbers"),
        (ResNetCifarConfig, {"depths": 3}, "depths must be a list with an entry for each stage, got 3"),
        (ResNetCifarConfig, {"depths": [9000, 3, 3]}, "make 9006 blocks"),
        (ResNetCifarConfig, {"hidden_sizes": [16, 10**12, 64]}, "hidden_sizes must be whole numbers"),
        (ResNetCifarConfig, {"hidden_sizes": [16, 32, 16_000]}, "of 1.4e.10 weights, more than"),
        (ResNetCifarConfig, {"embedding_size": None}, "embedding_size must be whole numbers .*, got None"),
        (ResNetCifarConfig, {"shortcut": "C"}, "shortcut must be 'A' or 'B', got 'C'"),
        (ResNetCifarConfig, {"hidden_sizes": [16, 31, 64]}, "even number.*31"),
    ],
)
def test_wrong_configs_are_refused(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


# --- load_model, saving --------------------------------------------------------------------------------------------

RELOAD = """
import sys, torch
from transformers import AutoModelForImageClassification
import hf_robust.models
from hf_robust.models import load_model
pixels = torch.load(sys.argv[1])
with torch.no_grad():
    for folder in sys.argv[2:]:
        for model in (AutoModelForImageClassification.from_pretrained(folder), load_model(folder, num_labels=3)):
            assert not model.training
            torch.save((type(model).__name__, model(pixels).logits, model.config.id2label), folder + "/reloaded.pt")
            expected = torch.load(folder + "/logits.pt")
            assert torch.equal(model(pixels).logits, expected), folder
"""


def test_saved_models_load_exactly_in_a_fresh_process(tmp_path):
    pixels = images()
    torch.save(pixels, tmp_path / "pixels.pt")
    names = {0: "a", 1: "b", 2: "c"}
    variants = [(name, name, {}) for name in MODELS] + [("bare", "cnn_small", {"batch_norm": False})]
    folders = []
    for folder, name, overrides in variants:
        model = load_model(name, num_labels=3, id2label=names, **overrides)
        with torch.no_grad():
            model(images(16, seed=1))  # running statistics other than those of the start
            model.eval().save_pretrained(tmp_path / folder)
            torch.save(model(pixels).logits, tmp_path / folder / "logits.pt")
        assert (tmp_path / folder / "model.safetensors").exists()
        folders.append(str(tmp_path / folder))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "pixels.pt"), *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, name, _ in variants:
        kind, _, id2label = torch.load(tmp_path / folder / "reloaded.pt")
        expected = {"cnn_small": "CnnSmall", "cnn8": "Cnn8"}.get(name, "ResNetCifar") + "ForImageClassification"
        assert kind == expected and id2label == names


def test_another_number_of_classes_draws_the_head_alone_afresh(tmp_path):
    torch.manual_seed(0)
    saved = load_model("resnet20_cifar", num_labels=4)
    saved.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_labels=6, id2label=dict(enumerate("abcdef")))
    state, before = loaded.state_dict(), saved.state_dict()
    assert loaded.config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}
    assert all(torch.equal(state[key], before[key]) for key in state if not key.startswith("linear."))
    assert state["linear.weight"].shape == (6, 64)
    assert_uniform(state["linear.weight"], 64**-0.5)


def test_a_damaged_head_is_not_replaced_in_silence(tmp_path):
    load_model("resnet20_cifar", num_labels=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b", "2": "c"}, {"a": 0, "b": 1, "c": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="can't be loaded as its config says: .*ignore_mismatched_sizes"):
        load_model(tmp_path, num_labels=3)


def test_weights_that_a_file_lacks_are_not_drawn_in_silence(tmp_path):
    config = AutoConfig.for_model(
        "vit",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        num_labels=3,
    )
    saved = AutoModelForImageClassification.from_config(config)
    saved.save_pretrained(tmp_path / "whole")
    state = load_file(tmp_path / "whole" / "model.safetensors")
    # As the file has it, and the model.
    for lost, named in (
        ("layer.1.attention", "k_proj"),
        ("classifier.bias", "classifier"),
        ("layernorm", "layernorm"),
    ):
        kept = {name: tensor for name, tensor in state.items() if lost not in name}
        assert kept.keys() < state.keys()
        save_file(kept, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"does not hold all weights of ViTForImageClassification: .*{named}"):
            load_model(tmp_path / "whole", num_labels=3)
    # Another shape beyond the head is damage also where the head is to be another.
    widened = "layer.0.intermediate.dense.weight"
    wide = {name: tensor.repeat(2, 1) if name.endswith(widened) else tensor for name, tensor in state.items()}
    assert any(wide[name].shape != state[name].shape for name in state)
    save_file(wide, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not hold all weights of ViTForImageClassification"):
        load_model(tmp_path / "whole", num_labels=5)


def test_a_backbone_gets_a_head_to_be_trained_but_none_to_be_scored(tmp_path):
    config = AutoConfig.for_model(
        "vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8
    )
    backbone = AutoModel.from_config(config)
    backbone.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_labels=2)  # as many as a config has that says nothing of classes
    for name, tensor in backbone.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(loaded.state_dict()[f"vit.{name}"], tensor)
    with pytest.raises(ValueError, match="does not hold all weights.*classifier.bias, classifier.weight"):
        load_model(tmp_path, num_labels=2, fresh_head=False)
    save_model = AutoModelForImageClassification.from_config(config)
    save_model.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="does not hold all weights.*classifier"):
        load_model(tmp_path / "classifier", num_labels=3, fresh_head=False)
    assert load_model(tmp_path / "classifier", num_labels=3).config.num_labels == 3


TINY_CLIP = {
    "vision_config": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "text_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def without(folder, part):
    """Take the weights whose names have `part` out of the file of a saved model."""
    path = folder / "model.safetensors"
    state = load_file(path)
    kept = {name: tensor for name, tensor in state.items() if part not in name}
    assert kept.keys() < state.keys()
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["clip", "siglip", "metaclip_2"])  # their backbone has another name than its prefix
@pytest.mark.parametrize("num_labels", [3, 5])
def test_a_family_whose_backbone_is_not_its_prefix_is_checked_as_well(family, num_labels, tmp_path):
    config = AutoConfig.for_model(family, num_labels=3, **TINY_CLIP)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "whole")
    AutoModel.from_config(config).save_pretrained(tmp_path / "backbone")
    for folder in (tmp_path / "whole", tmp_path / "backbone"):
        saved, loaded = load_file(folder / "model.safetensors"), load_model(folder, num_labels=num_labels)
        own = {name: tensor for name, tensor in loaded.state_dict().items() if name.startswith("vision_model.")}
        assert own and all(torch.equal(tensor, saved[name]) for name, tensor in own.items())
        without(folder, "layers.1.")
        with pytest.raises(ValueError, match="does not hold all weights of .*vision_model.encoder.layers.1"):
            load_model(folder, num_labels=num_labels)


@pytest.mark.parametrize("architectures", [None, []])
def test_a_file_that_does_not_say_what_it_holds_must_hold_all(architectures, tmp_path):
    load_model("cnn_small", num_labels=3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    if architectures is not None:
        config["architectures"] = architectures
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path, num_labels=4).config.num_labels == 4
    without(tmp_path, "linear2")
    with pytest.raises(ValueError, match="does not hold all weights"):
        load_model(tmp_path, num_labels=3)


def test_a_folder_that_lacks_a_shard_or_has_a_damaged_index_is_refused(tmp_path):
    model = load_model("cnn_small", num_labels=3)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_text()
    for damaged in (whole[: len(whole) // 2], "[1]", '{"metadata": {}}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match="can't be loaded"):
            load_model(tmp_path, num_labels=3)
    index.write_text(whole)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match="can't be loaded"):
        load_model(tmp_path, num_labels=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_saved_in_half_precision_is_loaded_in_single(dtype, tmp_path):
    model = load_model("cnn_small", num_labels=3).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_labels=3)
    assert loaded.dtype == torch.float32
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.float().state_dict().items())
    assert load_model(tmp_path, num_labels=3, dtype=dtype).dtype == dtype


def test_weights_that_the_model_has_not_are_refused(tmp_path):
    config = AutoConfig.for_model("vit", num_labels=3, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                  intermediate_size=8, image_size=8, patch_size=4)  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds weights that ViTForImageClassification has not: .*layers.1"):
        load_model(tmp_path, num_labels=3, num_hidden_layers=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id2label": {"0": "a", "3": "b", "6": "c"}}, "id2label of its config must name 0..2"),
        ({"num_attention_heads": 0}, "can't be loaded"),
        ({"patch_size": 0}, "can't be loaded"),
    ],
)
def test_a_config_that_can_not_be_is_one_error(changes, said, tmp_path):
    config = AutoConfig.for_model("vit", num_labels=3, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                  intermediate_size=8, image_size=8, patch_size=4)  # fmt: skip
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match="num_labels must lie in"):
        load_model("cnn_small", num_labels=10**30)


def test_names_of_classes():
    assert load_model("cnn_small", num_labels=2).config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = load_model("cnn_small", num_labels=2, id2label={0: "cat", 1: "dog"}).config
    assert config.id2label == {0: "cat", 1: "dog"} and config.label2id == {"cat": 0, "dog": 1}


@pytest.mark.parametrize(
    "error, message, name, arguments",
    [
        (
            ValueError,
            "no/such/folder.*neither one of.*cnn_small.*cnn8.*resnet18_cifar.*resnet20_cifar",
            "no/such/folder",
            {},
        ),
        (
            ValueError,
            r"no config field \['batchnorm'\].*batch_norm.*image_size.*num_channels",
            "cnn_small",
            {"batchnorm": 1},
        ),
        (ValueError, "num_labels must lie in 2..10000000, got 1", "cnn_small", {"num_labels": 1}),
        (TypeError, "num_labels must be an int, got '3'", "cnn_small", {"num_labels": "3"}),
        (
            ValueError,
            r"id2label must have the keys 0..2, got \[1, 2, 3\]",
            "cnn8",
            {"id2label": {1: "a", 2: "b", 3: "c"}},
        ),
        (TypeError, "name_or_path must be a str or a path, got int", 3, {}),
    ],
)
def test_load_model_refuses(error, message, name, arguments):
    with pytest.raises(error, match=message):
        load_model(name, **{"num_labels": 3, **arguments})


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither one of.*cnn_small"):
        load_model(tmp_path, num_labels=3)


def test_a_transformers_model_loads_from_a_folder(tmp_path):
    config = AutoConfig.for_model(
        "resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    saved = AutoModelForImageClassification.from_config(config).eval()
    saved.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, num_labels=3)
    assert type(loaded) is type(saved)
    assert torch.equal(loaded(images()).logits, saved(images()).logits)


# --- image processor and conversion --------------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels_of(array):
    scaled = torch.from_numpy(array).permute(0, 3, 1, 2).double() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_image_processor_normalises_and_survives_saving(tmp_path):
    make_image_processor(MEAN, STD, 32).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert isinstance(processor, ViTImageProcessorPil)
    array = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels = processor([Image.fromarray(a) for a in array], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.double(), pixels_of(array), rtol=1e-5, atol=1e-5)
    other = processor(Image.fromarray(array[0, :20, :30, 0]), return_tensors="pt")["pixel_values"]  # grey, 20 x 30
    assert other.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    "mean, std, size, message",
    [
        ((0.5,), STD, 32, r"mean must have three entries.*\[0.5\]"),
        (MEAN, (0.2, 0.2), 32, "std must have three entries"),
        (MEAN, (0.2, 0.0, 0.2), 32, "std must be positive"),
        (MEAN, STD, 0, "size must be at least 1, got 0"),
    ],
)
def test_image_processor_refuses(mean, std, size, message):
    with pytest.raises(ValueError, match=message):
        make_image_processor(mean, std, size)


def checkpoint():
    """A ResNet-20 checkpoint as published ones are: no counters of batches."""
    torch.manual_seed(3)
    state = load_model("resnet20_cifar", num_labels=10).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def test_conversion_keeps_every_tensor():
    state = checkpoint()
    model = convert_resnet20(state)
    assert not model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert model.config.id2label == dict(enumerate(CIFAR10_CLASSES))


def test_conversion_refuses_other_tensors():
    state = checkpoint()
    missing = {key: value for key, value in state.items() if key != "layer2.0.conv1.weight"}
    with pytest.raises(ValueError, match="not a CIFAR-10 ResNet-20(.|\n)*Missing key.*layer2.0.conv1.weight"):
        convert_resnet20(missing)
    with pytest.raises(ValueError, match="Unexpected key.*fc.weight"):
        convert_resnet20({**state, "fc.weight": torch.zeros(10, 64)})
    with pytest.raises(ValueError, match="size mismatch for linear.weight"):
        convert_resnet20({**state, "linear.weight": torch.zeros(100, 64)})


SCRIPT = ROOT / "scripts" / "convert_resnet20.py"


def test_script_writes_a_folder_that_a_pipeline_loads(tmp_path):
    state = checkpoint()
    save_file(state, tmp_path / "in.safetensors")
    command = [sys.executable, SCRIPT, "--weights", tmp_path / "in.safetensors", "--output_dir", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "269,722 parameters" in done.stdout

    classifier = pipeline("image-classification", model=str(tmp_path / "out"))
    array = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = {row["label"]: row["score"] for row in classifier(Image.fromarray(array[0]), top_k=10)}
    logits = resnet_by_hand({k: v.double() for k, v in state.items()}, pixels_of(array), (16, 32, 64), (3, 3, 3), "A")
    expected = dict(zip(CIFAR10_CLASSES, logits.softmax(-1)[0].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-4)


def test_script_refuses_absent_weights_and_a_folder_in_use(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    save_file(checkpoint(), tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match="--weights must be an existing .safetensors file, got '.*absent"):
        script["main"](script["ConvertArguments"](str(tmp_path / "absent.safetensors"), str(tmp_path / "new")))
    with pytest.raises(ValueError, match="--output_dir must be new or empty"):
        script["main"](script["ConvertArguments"](str(tmp_path / "in.safetensors"), str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_the_number_of_labels_is_any_integer(tmp_path):
    model = load_model("cnn_small", num_labels=np.int64(3), id2label={0: "a", 1: "b", 2: "c"})
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), num_labels=np.int32(3)).config.id2label == {0: "a", 1: "b", 2: "c"}
