"""Latents of a variational autoencoder, computed once and kept on disk: moments, from which each visit draws anew."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_common.files import sync_tree, temporary_name
from hf_common.foreign import first_line, refuse

from ..models.weights import add_tensors
from .images import ImageFormat, ImageRows, read_images

ENCODE_BATCH = 16  # of 256 x 256 images, about what keeps a GPU busy
SHARD_ROWS = 4096
MOMENTS = ("mean", "std", "mean_mirrored", "std_mirrored")
WAY_OUT = "delete the folder, and the images are encoded again"


class LatentMoments:
    """Means and standard deviations of N images' latents, read from disk as they are needed.

    Args:
        folder (`Path`): what [`cached_latents`] wrote.
        vae_config: the autoencoder's config, for its `scaling_factor` and `shift_factor`.
        num_images: of the `ImageRows` that they are of.

    Raises:
        ValueError: a file of the folder is damaged so that it shows, or is of other images; it is named.
    """

    def __init__(self, folder: Path, vae_config: Any, num_images: int | None = None):
        paths = sorted(folder.glob("latents-*.safetensors"))
        # Each file is mapped into memory: processes and workers share its pages, none reads all of it.
        self._shards = [_mapped(path) for path in paths]
        _check_shards(folder, paths, self._shards)
        self.rows = torch.cat([shard["rows"] for shard in self._shards])  # (N,) int64, indices into the `ImageRows`
        if (
            (self.rows.diff() < 1).any()
            or self.rows[0] < 0
            or (num_images is not None and self.rows[-1] >= num_images)
        ):
            raise refuse(folder, f"must have rows that ascend within those of {num_images} images; {WAY_OUT}")
        channels, height, width = self._shards[0]["mean"].shape[1:]
        self.shape = channels, height, width
        self._scale, self._shift = vae_config.scaling_factor, vae_config.shift_factor or 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, index: int, flip: bool, rng: np.random.Generator) -> Tensor:
        """(C, h, w) float32: one draw from the latent distribution of an image, or of its mirror image, scaled."""
        shard, row = self._shards[index // SHARD_ROWS], index % SHARD_ROWS
        mirrored = "_mirrored" if flip else ""
        noise = torch.from_numpy(rng.standard_normal(self.shape, dtype=np.float32))
        latent = shard["mean" + mirrored][row] + shard["std" + mirrored][row] * noise
        return (latent - self._shift) * self._scale


def _mapped(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise refuse(path, f"is no safetensors file: {first_line(error)}; {WAY_OUT}") from None


def _check_shards(folder: Path, paths: list[Path], shards: list[dict[str, Tensor]]) -> None:
    """Raise a `ValueError` unless there is every file, of the same tensors with a shape and one type each."""
    if [path.name for path in paths] != [_shard_name(number) for number in range(len(paths))] or not paths:
        raise refuse(folder, f"lacks a file; {WAY_OUT}")
    names = shards[0].keys()
    for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
        if shard.keys() != names or names not in ({"rows", *MOMENTS[:2]}, {"rows", *MOMENTS}):
            raise refuse(path, f"must hold rows, {', '.join(MOMENTS)}, holds {sorted(shard)}; {WAY_OUT}")
        count = len(shard["rows"]) if shard["rows"].ndim == 1 else -1
        shape = (count, *shards[0]["mean"].shape[1:])
        fits = all(shard[name].dtype == torch.float32 and shard[name].shape == shape for name in names - {"rows"})
        whole = count == SHARD_ROWS if number < len(paths) - 1 else 0 < count <= SHARD_ROWS
        if not (fits and whole and len(shape) == 4 and shard["rows"].dtype == torch.int64):
            raise refuse(path, f"must hold up to {SHARD_ROWS} rows of one shape, in float32; {WAY_OUT}")


def _shard_name(number: int) -> str:
    return f"latents-{number:05d}.safetensors"


def latent_size(vae: AutoencoderKL, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the latents of images of `size`; a `ValueError` where the autoencoder can't take them."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if vae.config.in_channels != 3:
        raise ValueError(f"vae must take 3 channels; it takes {vae.config.in_channels}")
    if size[0] % factor or size[1] % factor:
        raise ValueError(f"the vae takes images whose height and width are multiples of {factor}; got {size}")
    return size[0] // factor, size[1] // factor


def latents_key(rows: ImageRows, form: ImageFormat, vae: AutoencoderKL, *, mirrored: bool, skip_corrupt: bool) -> str:
    """A name for the moments of these images by this autoencoder: equal where the moments are."""
    digest = hashlib.sha256()
    parts = [rows.fingerprint, form.size, form.resized, form.center_crop, mirrored, skip_corrupt, SHARD_ROWS]
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}  # paths, versions
    digest.update(json.dumps([*parts, config], sort_keys=True, default=str).encode())
    add_tensors(digest, sorted(vae.state_dict().items()))
    return digest.hexdigest()[:24]


def default_cache_dir() -> Path:
    """Beside the caches of `datasets`: `HF_DATASETS_CACHE/hf_dit`."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_dit"


def cached_latents(
    rows: ImageRows,
    form: ImageFormat,
    vae: AutoencoderKL,
    cache_dir: str | os.PathLike | None = None,
    *,
    mirrored: bool = False,
    skip_corrupt: bool = False,
    progress: bool = False,
) -> Path:
    """The folder with the moments of all images, encoded now if they are not there yet.

    Images stream from the data set through the autoencoder into files of 4,096 rows; memory holds one such file's
    worth. The folder gets its name when it is complete.

    Args:
        rows, form, skip_corrupt, progress: as for [`read_images`], whose errors it raises.
        vae: on the device that it is to run on.
        cache_dir: where the folder lies; by default [`default_cache_dir`].
        mirrored: encode the mirror image of every image too: it is not the mirrored latent.
    """
    latent_size(vae, form.size)
    cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
    key = latents_key(rows, form, vae, mirrored=mirrored, skip_corrupt=skip_corrupt)
    folder = cache_dir / f"latents-{key}"
    temporary = temporary_name(folder)
    if folder.is_dir():
        return folder
    temporary.mkdir(parents=True)
    try:
        images = read_images(rows, form, skip_corrupt=skip_corrupt, progress=progress)
        number = -1
        for number, shard in enumerate(_shards(_encoded(images, vae, mirrored))):
            save_file(shard, temporary / _shard_name(number))
        if number < 0:
            raise ValueError(f"none of the {len(rows)} images can be decoded")
        sync_tree(temporary)
        try:
            os.replace(temporary, folder)
        except OSError:  # another run was first; the same moments are there
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _encoded(
    images: Iterator[tuple[int, np.ndarray]], vae: AutoencoderKL, mirrored: bool
) -> Iterator[dict[str, Tensor]]:
    """Moments of up to ENCODE_BATCH images at a time: `rows` (n,) int64, the others (n, C, h, w) float32."""
    batch = []
    for pair in images:
        batch.append(pair)
        if len(batch) == ENCODE_BATCH:
            yield _moments(batch, vae, mirrored)
            batch = []
    if batch:
        yield _moments(batch, vae, mirrored)


@torch.no_grad()
def _moments(batch: list[tuple[int, np.ndarray]], vae: AutoencoderKL, mirrored: bool) -> dict[str, Tensor]:
    pixels = torch.from_numpy(np.stack([image for _, image in batch])).to(vae.device)
    pixels = pixels.to(vae.dtype) / 127.5 - 1
    moments = {"rows": torch.tensor([index for index, _ in batch])}
    for suffix, seen in (("", pixels), ("_mirrored", pixels.flip(3)))[: 1 + mirrored]:
        distribution = vae.encode(seen).latent_dist
        moments["mean" + suffix] = distribution.mean.float().cpu().contiguous()  # files hold no channels-last tensor
        moments["std" + suffix] = distribution.std.float().cpu().contiguous()
    return moments


def _shards(batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The batches joined to SHARD_ROWS rows each, the last one shorter; SHARD_ROWS is a multiple of ENCODE_BATCH."""
    held: list[dict[str, Tensor]] = []
    for batch in batches:
        held.append(batch)
        if len(held) * ENCODE_BATCH == SHARD_ROWS:
            yield {name: torch.cat([part[name] for part in held]) for name in held[0]}
            held = []
    if held:
        yield {name: torch.cat([part[name] for part in held]) for name in held[0]}
