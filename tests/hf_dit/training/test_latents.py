from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

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


def test_a_damaged_cache_is_named(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents_module, "SHARD_ROWS", 4)
    config = AutoencoderKL.load_config(vae)
    config = SimpleNamespace(scaling_factor=config["scaling_factor"], shift_factor=config["shift_factor"])
    first, last = (tmp_path / f"latents-{number:05d}.safetensors" for number in (0, 1))

    def write(path, rows, changes=None):
        moments = {name: torch.rand(len(rows), 4, 2, 2) for name in ("mean", "std")}
        save_file(moments | {"rows": torch.tensor(rows)} | (changes or {}), path)

    write(first, [0, 1, 2, 4])
    write(last, [5, 6])
    assert LatentMoments(tmp_path, config, 7).rows.tolist() == [0, 1, 2, 4, 5, 6]
    good = last.read_bytes()
    for damaged in (b"", good[:-1], good[:20], b"\0" * len(good), b"[" * 1000):
        last.write_bytes(damaged)
        check_refused(config, last)
    for changes in (
        {"rows": torch.zeros(2)}, {"rows": torch.zeros(2, 1, dtype=torch.int64)}, {"mean": torch.zeros(2, 4, 2, 3)},
        {"std": torch.zeros(3, 4, 2, 2)}, {"mean": torch.zeros(2, 4, 2, 2, dtype=torch.float16)},
        {"more": torch.zeros(2)}, {"mean_mirrored": torch.zeros(2, 4, 2, 2)},
    ):  # fmt: skip
        write(last, [5, 6], changes)
        check_refused(config, last)
    for rows in ([5, 7], [6, 5], [4, 5], [-1, 5]):
        write(last, rows)
        check_refused(config, tmp_path)
    last.unlink()
    write(tmp_path / "latents-00002.safetensors", [5, 6])
    check_refused(config, tmp_path)


def check_refused(config, path):
    with pytest.raises(ValueError) as caught:
        LatentMoments(path if path.is_dir() else path.parent, config, 7)
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) <= 300
