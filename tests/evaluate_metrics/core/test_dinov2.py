"""The protocol of FD-DINOv2: pictures and positions against their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, ViTConfig, ViTImageProcessorPil, ViTModel

from evaluate_metrics.core.dinov2 import resized_positions, squeezed
from evaluate_metrics.core.encoders import make_encoder, register_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny DINOv2 with a grid of 37 x 37 positions, whose processor crops, as the published checkpoints'."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("dinov2")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1}
    Dinov2Model(Dinov2Config(**shape, image_size=518, patch_size=14)).save_pretrained(place)
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(place)
    return place


def picture(width=60, height=40):
    draw = np.random.default_rng(width)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def bicubic(values, factor, out):
    """1-d cubic convolution (a = -0.75) at (i + 0.5) / factor - 0.5, edges repeated, in float64."""
    result = np.zeros((out, *values.shape[1:]))
    for i in range(out):
        place = (i + 0.5) / factor - 0.5
        first = int(np.floor(place))
        for tap in range(-1, 3):
            t = abs(place - first - tap)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3
            weight = near if t <= 1 else far
            result[i] += weight * values[min(max(first + tap, 0), len(values) - 1)]
    return result


def test_positions_are_resized_by_the_factor_with_a_tenth():
    """Not to 16 x 16: then the factor is 16 / 37, and the values are some percent apart."""
    rows = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    grid = rows[0, 1:].double().reshape(37, 37, 3).numpy()
    smooth = np.stack([np.convolve(grid[..., c].ravel(), np.ones(9) / 9, "same").reshape(37, 37) for c in range(3)], 2)
    rows[0, 1:] = torch.from_numpy(smooth).reshape(-1, 3)
    found = resized_positions(rows, 16)
    factor = (16 + 0.1) / 37
    expected = bicubic(bicubic(smooth, factor, 16).swapaxes(0, 1), factor, 16).swapaxes(0, 1)
    assert found.shape == (1, 257, 3) and torch.equal(found[0, 0], rows[0, 0])
    np.testing.assert_allclose(found[0, 1:].reshape(16, 16, 3).numpy(), expected, atol=1e-4)
    plain = bicubic(bicubic(smooth, 16 / 37, 16).swapaxes(0, 1), 16 / 37, 16).swapaxes(0, 1)
    assert np.linalg.norm(plain - expected) > 0.01 * np.linalg.norm(expected)
    assert resized_positions(found, 16) is found


def test_the_whole_picture_is_squeezed():
    image = picture()
    small = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)).astype(np.float64) / 255
    expected = (small - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(squeezed(image).permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_the_preset_is_the_class_token_of_these_pictures_and_positions(folder):
    encoder = make_encoder(f"fd-dinov2:{folder}", device="cpu")
    assert not encoder.normalized and "224 x 224" in encoder.preprocessing
    model = Dinov2Model.from_pretrained(folder).eval()
    model.embeddings.position_embeddings.data = resized_positions(model.embeddings.position_embeddings.detach(), 16)
    with torch.no_grad():
        token = model(squeezed(picture())[None]).last_hidden_state[0, 0]
    torch.testing.assert_close(encoder.encode([picture()])[0], token, rtol=1e-5, atol=1e-5)
    own = make_encoder(folder, device="cpu", normalize=False)  # what the checkpoint's processor crops
    assert (own.encode([picture()])[0] - token).norm() > 0.01 * token.norm()
    assert own.weights == encoder.weights and own.digest != encoder.digest
    with pytest.raises(ValueError, match="preprocessing"):
        encoder.check(own.metadata, "references")


def test_other_networks_have_no_such_protocol(tmp_path):
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)).save_pretrained(
        tmp_path
    )
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dinov2 models without registers"):
        make_encoder(f"fd-dinov2:{tmp_path}", device="cpu")
    with pytest.raises(ValueError, match="the CLIPScore is of CLIP models, got .*ViTModel"):
        make_encoder(f"clip-score:{tmp_path}", device="cpu")
    with pytest.raises(ValueError, match="name must be none of fd-dinov2, clip-score"):
        register_encoder("fd-dinov2", "x/y")
