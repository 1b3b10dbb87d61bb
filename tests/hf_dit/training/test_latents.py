import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from hf_dit.training import latents as latents_module
from hf_dit.training.arguments import DataArguments
from hf_dit.training.images import ImageFormat, load_images, open_rows
from hf_dit.training.latents import LatentMoments, cached_latents, latent_size


def test_latents_are_encoded_once_and_drawn_at_each_visit(colours, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "SHARD_ROWS", 16)  # two files
    rows = open_rows(DataArguments(dataset_name=colours))
    form, model = ImageFormat((8, 8), False), AutoencoderKL.from_pretrained(vae).eval()
    folder = cached_latents(rows, form, model, tmp_path, mirrored=True)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name] and len(list(folder.iterdir())) == 2

    moments = LatentMoments(folder, model.config)
    assert len(moments) == 30 and moments.shape == (4, 4, 4) and moments.rows.tolist() == list(range(30))
    pixels = load_images(rows, form).images / 127.5 - 1
    for flip in (False, True):
        for index in (0, 15, 16, 29):
            with torch.no_grad():
                seen = pixels[index : index + 1]
                expected = model.encode(seen.flip(3) if flip else seen).latent_dist
            draws = torch.stack([moments.draw(index, flip, np.random.default_rng(i)) for i in range(400)])
            unscaled = draws / 0.3 + 2
            error = (unscaled.mean(0) - expected.mean[0]).abs() / expected.std[0]
            assert error.max() < 5 / np.sqrt(400)
            assert (unscaled.std(0) / expected.std[0] - 1).abs().max() < 0.2

    def refuse(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(AutoencoderKL, "encode", refuse)
    rows = open_rows(DataArguments(dataset_name=colours))
    assert cached_latents(rows, form, AutoencoderKL.from_pretrained(vae), tmp_path, mirrored=True) == folder
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(rows, form, model, tmp_path, mirrored=False)
    other = AutoencoderKL.from_pretrained(vae)
    other.encoder.conv_in.bias.data[0] += 1
    with pytest.raises(AssertionError, match="encoded again"):
        cached_latents(rows, form, other, tmp_path, mirrored=True)
    assert len(list(tmp_path.iterdir())) == 1  # what failed leaves nothing
    with pytest.raises(ValueError, match="multiples of 2"):
        latent_size(model, (8, 7))
