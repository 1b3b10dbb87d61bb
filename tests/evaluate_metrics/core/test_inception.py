import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from evaluate_metrics.core import inception
from evaluate_metrics.core.inception import RESIZINGS, Inception, inception_encoder, load_inception, resize

# Of the network in pytorch-fid 0.3.0 on torchvision 0.28.0: lines "key (shape)" of its state dict.
KEYS_SHA256 = "7151cff94593b8e836fb1f91b5ae5a52927bb5290e150458690d9d5ea0523e95"
# Features of `picture()` by that network with the weights of `fill`, its input resized by pytorch-fid 0.3.0,
# torch-fidelity 0.4.0 and clean-fid 0.1.35: the first three, the sum of all, and the Euclidean norm.
FEATURES = {
    "pytorch": (1.498047, 1.956317, 0.0, 7922.596, 309.7472),
    "tensorflow": (1.502478, 1.958168, 0.0, 7907.875, 309.1734),
    "clean": (1.49488, 1.959984, 0.0, 7977.023, 311.8923),
}


def fill(model):
    rng = np.random.default_rng(0)
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.from_numpy(rng.random(value.shape, dtype=np.float32))
        if value.ndim == 4:
            value.copy_((noise - 0.5) * (24 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "bn.weight")):
            value.copy_(noise + 0.5)
        else:
            value.copy_(noise - 0.5)
    return model


def picture():
    ramp = np.add.outer(np.arange(40) * 5, np.arange(31) * 3)[..., None] * np.array([1, 0.5, 0.25])
    noise = np.random.default_rng(1).integers(0, 20, (40, 31, 3))
    return Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def model():
    return fill(Inception())


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """A file as pytorch-fid's, without the counters that younger versions of torch add; and its digest."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({key: value for key, value in model.state_dict().items() if "num_batches" not in key}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_keys_and_shapes_are_those_of_pytorch_fid(model):
    listing = "\n".join(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    assert hashlib.sha256(listing.encode()).hexdigest() == KEYS_SHA256


def test_number_of_parameters(model):
    """Keras counts 21,802,784 for Inception v3 without its top: no scales in 17,216 channels, 2 statistics in each."""
    below = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("fc."))
    assert below == 21_802_784 - 2 * 17_216 + 17_216
    assert sum(value.numel() for value in model.fc.parameters()) == 2048 * 1008 + 1008
    assert not model.training and not any(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize("resizing", RESIZINGS)
def test_features_are_those_of_the_published_networks(model, resizing):
    features = model(resize(picture(), resizing)[None])
    assert features.shape == (1, 2048) and features.dtype == torch.float32
    found = [*features[0, :3].tolist(), float(features.sum()), float(features.norm())]
    assert found == pytest.approx(FEATURES[resizing], rel=1e-4, abs=1e-5)


def test_average_pooling_leaves_the_border_out_and_the_last_block_takes_the_maximum(model):
    x = torch.ones(1, 192, 4, 5)
    with_ones = model.Mixed_5b(x)[:, -32:]
    assert torch.allclose(with_ones, with_ones[..., :1, :1].expand_as(with_ones))  # zeros at the border would count
    x = torch.zeros(1, 2048, 3, 3)
    x[..., 0, 0] = 9
    pooled = model.Mixed_7c(x)[:, -192:]
    assert torch.allclose(pooled[..., 1, 1], pooled[..., 0, 0], atol=1e-5)  # of an average the corner has more
    average = model.Mixed_7b(x[:, :1280])[:, -192:]
    assert not torch.allclose(average[..., 1, 1], average[..., 0, 0], atol=1e-1)


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (1, 7), (400, 613), (300, 298)])
def test_resize_tensorflow_is_bilinear_from_the_corner(size):
    height, width = size
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result = resize(Image.fromarray(pixels), "tensorflow") * 128 + 128
    assert result.shape == (3, 299, 299) and result.dtype == torch.float32
    for i, j in [(0, 0), (298, 298), (5, 290), (149, 150), (298, 0)]:
        y, x = i * height / 299, j * width / 299
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        top = pixels[y0, x0] * (1 - x + x0) + pixels[y0, x1] * (x - x0)
        bottom = pixels[y1, x0] * (1 - x + x0) + pixels[y1, x1] * (x - x0)
        assert result[:, i, j].numpy() == pytest.approx(top * (1 - y + y0) + bottom * (y - y0), abs=0.02)


def test_a_ramp_tells_the_resizings_apart():
    """Of a linear ramp, bilinear interpolation is linear: in closed form, half a pixel lies between the two."""
    side, factor = 23, 299 / 23
    ramp = Image.fromarray(np.repeat((np.arange(side, dtype=np.uint8) * 8)[None, :, None], side, 0).repeat(3, 2))
    inner = np.arange(20, 260)
    tensorflow = resize(ramp, "tensorflow")[0, 100, inner].numpy() * 128 + 128
    assert tensorflow == pytest.approx(inner / factor * 8, abs=1e-3)
    pytorch = (resize(ramp, "pytorch")[0, 100, inner].numpy() + 1) * 127.5
    assert pytorch == pytest.approx(((inner + 0.5) / factor - 0.5) * 8, abs=1e-3)
    clean = resize(ramp, "clean")[0, 100, inner].numpy() * 128 + 128
    assert clean == pytest.approx(((inner + 0.5) / factor - 0.5) * 8, abs=1e-2)


def test_resize_clean_stays_within_the_range_of_pixels_and_smooths_what_it_shrinks():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))[..., None].repeat(3, 2))
    enlarged = resize(stripes, "clean")
    assert enlarged.min() >= -1 and enlarged.max() <= 127 / 128
    fine = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (900, 450))[..., None].repeat(3, 2))
    assert resize(fine, "clean").std() < 0.2 < 0.5 < resize(fine, "pytorch").std()


def test_same_size_is_the_identity():
    pixels = np.random.default_rng(3).integers(0, 256, (299, 299, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(2, 0, 1).float()
    for resizing, expected in [("tensorflow", x / 128 - 1), ("clean", x / 128 - 1), ("pytorch", x / 127.5 - 1)]:
        torch.testing.assert_close(resize(Image.fromarray(pixels), resizing), expected)


def test_resize_refuses_other_images_and_names():
    with pytest.raises(ValueError, match="RGB.*'L'"):
        resize(Image.new("L", (8, 8)), "clean")
    with pytest.raises(ValueError, match="tensorflow, pytorch, clean.*'legacy'"):
        resize(Image.new("RGB", (8, 8)), "legacy")
    with pytest.raises(ValueError, match="tensorflow, pytorch, clean.*'legacy'"):
        inception_encoder("no file", resizing="legacy")


def test_weights_from_a_file_with_its_digest(model, weights):
    path, digest = weights
    loaded = load_inception(path, digest)
    x = torch.rand(1, 3, 299, 299) * 2 - 1
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=f"SHA-256 6726825d.*it has {digest}"):
        load_inception(path)
    with pytest.raises(FileNotFoundError, match="none.pth"):
        load_inception(path.parent / "none.pth", digest)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    for change, key in [({"fc.weight": torch.zeros(1000, 2048)}, "fc.weight"), ({"extra": torch.zeros(1)}, "extra")]:
        torch.save({**Inception().state_dict(), **change}, path)
        with pytest.raises(ValueError, match=f"1 keys or shapes differ: {key}"):
            load_inception(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_weights_from_a_url_are_downloaded_once_and_checked(weights, tmp_path, monkeypatch):
    path, digest = weights
    asked = []

    def download(url, target):
        asked.append(url)
        Path(target).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match="SHA-256 6726825d"):
        load_inception("https://example.org/w.pth")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    load_inception("https://example.org/w.pth", digest)
    load_inception("https://example.org/w.pth", digest)
    assert asked == ["https://example.org/w.pth"] * 2

    def unreachable(url, target):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(OSError, match=f"{inception.WEIGHTS_URL}: no route"):
        load_inception()


def test_encoder_does_not_depend_on_the_batch(weights):
    path, digest = weights
    encoder = inception_encoder(path, digest, device="cpu")
    assert (encoder.name, encoder.dim, encoder.normalized) == ("inception", 2048, False)
    assert encoder.preprocessing == RESIZINGS["tensorflow"] and encoder.weights == digest[:16]
    images = [picture(), picture().convert("L"), picture().resize((90, 20))]
    together = encoder.encode(images, batch_size=3)
    assert together.shape == (3, 2048) and together.dtype == torch.float32
    torch.testing.assert_close(together, encoder.encode(images, batch_size=1), rtol=1e-5, atol=1e-5)
    assert F.cosine_similarity(together[0], together[1], dim=0) < 1 - 1e-4  # greyscale is another image


# --- What the scores of papers take beside the features ---


def test_spatial_features_are_seven_channels_of_the_branch_in_rows_columns_channels(model):
    """As ADM's evaluator flattens (n, 17, 17, 192)[..., :7]."""
    seen = []
    hook = model.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        pixels = resize(picture(), "tensorflow")[None]
        both = model.with_spatial(pixels)
    finally:
        hook.remove()
    assert both.shape == (1, 2048 + 2023)
    found = [*both[0, :3].tolist(), float(both[0, :2048].sum()), float(both[0, :2048].norm())]
    assert found == pytest.approx(FEATURES["tensorflow"], rel=1e-4, abs=1e-5)
    grid = seen[0].numpy()
    assert grid.shape == (1, 192, 17, 17)
    expected = np.transpose(grid, (0, 2, 3, 1))[..., :7].reshape(1, -1)
    np.testing.assert_allclose(both[:, 2048:].numpy(), expected, rtol=1e-6)
    assert float(both[0, 2048 + 7 * (17 * 3 + 5) + 2]) == pytest.approx(grid[0, 2, 3, 5], rel=1e-6)


def test_the_encoder_of_the_sfid_has_two_parts_and_says_so(weights, model):
    encoder = inception_encoder(*weights, device="cpu", spatial=True)
    assert encoder.parts == {"features": slice(0, 2048), "spatial": slice(2048, 4071)} and encoder.dim == 4071
    plain = inception_encoder(*weights, device="cpu")
    assert encoder.metadata == {**plain.metadata, "parts": "features 2048, spatial 2023"}
    assert encoder.digest == plain.digest  # their FIDs compare
    # The published Inception Score has all 1008 logits, without bias.
    assert encoder.head.shape == (1008, 2048) and torch.equal(encoder.head, model.fc.weight)
