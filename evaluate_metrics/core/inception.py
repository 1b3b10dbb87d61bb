"""The network of the Frechet Inception Distance: Inception v3 of 2015-12-05, its three input resizings, its weights.

Szegedy et al. 2016 describe the network; the TensorFlow graph that Heusel et al. 2017 took differs from it in the
pooling of its mixed blocks and has 1008 outputs. Keys of the state dict are those of pytorch-fid's weight file.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hf_common.files import replacing

from .bicubic import bicubic_square
from .encoders import Encoder
from .inception_weights import WEIGHTS_SHA256, WEIGHTS_URL
from .precision import default_device, full_precision

DIM = 2048
SIDE = 299
SPATIAL = 7 * 17 * 17  # numbers of an image for the sFID: 7 of 192 channels of a grid
RESIZINGS = {
    "tensorflow": "bilinear 299 as TensorFlow 1, (x - 128) / 128",  # Heusel et al. 2017, torch-fidelity, torchmetrics
    "pytorch": "bilinear 299 of pixel centres, no antialias, x / 127.5 - 1",  # pytorch-fid
    "clean": "bicubic 299 with antialias in float, (x - 128) / 128",  # Parmar et al. 2022, clean-fid
}

Convolution = tuple[int, int | tuple[int, int]] | tuple[int, int | tuple[int, int], int]  # channels, kernel, stride


class ConvolutionUnit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class MixedBlock(nn.Module):
    """Chains of convolutions and one pooling, each on the same input, their outputs side by side.

    Args:
        in_channels: of the input.
        chains: for each prefix of names its convolutions, (channels, kernel) at stride 1 with the size kept, or
            (channels, kernel, stride) without padding. A list of two as the last item is a fork, whose outputs stand
            side by side. `prefix` itself names the convolution of a chain of one, else `prefix_1`, `prefix_2`, ...,
            and `prefix_2a`, `prefix_2b` those of a fork.
        pool_channels: of the convolution behind the pooling; None for a block that halves the grid, with maximum
            pooling of stride 2 and no convolution.
        max_pool: the pooling at stride 1 is the maximum; else it is the average over pixels inside of the image.
    """

    def __init__(
        self,
        in_channels: int,
        chains: dict[str, list[Convolution | list[Convolution]]],
        pool_channels: int | None = None,
        max_pool: bool = False,
    ) -> None:
        super().__init__()
        self.pool_stride, self.max_pool = (2 if pool_channels is None else 1), max_pool
        self.chain_names: list[list[tuple[str, ...]]] = []
        for prefix, chain in chains.items():
            channels, names = in_channels, []
            for place, item in enumerate(chain, start=1):
                fork = item if isinstance(item, list) else [item]
                base = prefix if len(chain) == 1 else f"{prefix}_{place}"
                names.append(tuple(base + letter for letter in (("a", "b") if len(fork) == 2 else ("",))))
                for name, (width, kernel, *stride) in zip(names[-1], fork, strict=True):
                    self.add_module(name, ConvolutionUnit(channels, width, kernel, *(stride or (1, _same(kernel)))))
                channels = fork[-1][0]
            self.chain_names.append(names)
        if pool_channels is not None:
            self.branch_pool = ConvolutionUnit(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for names in self.chain_names:
            y = x
            for fork in names:
                y = torch.cat([self.get_submodule(name)(y) for name in fork], dim=1)
            outputs.append(y)
        if self.pool_stride == 2:
            outputs.append(F.max_pool2d(x, 3, stride=2))
        elif self.max_pool:
            outputs.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            outputs.append(self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)))
        return torch.cat(outputs, dim=1)


class Inception(nn.Module):
    """The network up to its last pooling; `fc` is for [`Encoder.head`]. In evaluation mode, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvolutionUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvolutionUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvolutionUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvolutionUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvolutionUnit(80, 192, 3)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = MixedBlock(288, {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]})
        self.Mixed_6b = _block_17(128)
        self.Mixed_6c = _block_17(160)
        self.Mixed_6d = _block_17(160)
        self.Mixed_6e = _block_17(192)
        self.Mixed_7a = MixedBlock(
            768,
            {
                "branch3x3": [(192, 1), (320, 3, 2)],
                "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
            },
        )
        self.Mixed_7b = _block_8(1280, max_pool=False)
        self.Mixed_7c = _block_8(2048, max_pool=True)  # the maximum is the graph's own, against the paper
        self.fc = nn.Linear(DIM, 1008)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, 299, 299) float about [-1, 1] -> (B, 2048) float
        return self._pooled(self._middle(pixels))

    def with_spatial(self, pixels: Tensor) -> Tensor:  # (B, 3, 299, 299) float about [-1, 1] -> (B, 2048 + 2023) float
        """The same, and behind it the spatial features of the sFID (Nash et al. 2021), as ADM's evaluator takes them:
        the first 7 channels of the graph's mixed_6/conv, the 1 x 1 branch of the third block at 17 x 17, in the order
        of rows, columns and channels."""
        x = self._middle(pixels)
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7].permute(0, 2, 3, 1).flatten(1)
        return torch.cat((self._pooled(x), spatial), dim=1)

    def _middle(self, x: Tensor) -> Tensor:  # up to the block Mixed_6d: (B, 768, 17, 17)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        return x

    def _pooled(self, x: Tensor) -> Tensor:  # from there on: (B, 2048)
        for block in (self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        return x.mean(dim=(2, 3))


def resize(image: Image.Image, resizing: str, out: Tensor | None = None) -> Tensor:
    """A picture as the network takes it: RGB PIL image -> (3, 299, 299) float32 about [-1, 1], `out` if it is given.

    `resizing` is one of `RESIZINGS`. The published values of different ones are not comparable.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image must be an RGB PIL image; got mode {image.mode!r}")
    out = torch.empty(3, SIDE, SIDE, dtype=torch.float32, device="cpu") if out is None else out
    levels = torch.from_numpy(pixels.copy())
    if resizing == "clean":
        return bicubic_square(levels, out).clamp_(0, 255).sub_(128).div_(128)
    x = levels.permute(2, 0, 1).float()
    if resizing == "tensorflow":
        return torch.sub(_resize_tensorflow(x), 128, out=out).div_(128)
    if resizing == "pytorch":
        x = F.interpolate(x[None] / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        return torch.mul(x, 2, out=out).sub_(1)
    raise ValueError(f"resizing must be one of {', '.join(RESIZINGS)}; got {resizing!r}")


def inception_encoder(
    weights: str | os.PathLike = WEIGHTS_URL,
    sha256: str = WEIGHTS_SHA256,
    resizing: str = "tensorflow",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    spatial: bool = False,
) -> Encoder:
    """The encoder of the published FID: 2048 numbers of an image, not normalised.

    Its `head` gives the logits of the published Inception Score: all 1008, without bias.

    Args:
        weights, sha256: see [`load_inception`].
        resizing: one of `RESIZINGS`; `"tensorflow"` is the first published one.
        device: where the network runs. Default: an accelerator if there is one.
        dtype: `torch.float16` or `torch.bfloat16` for half precision. Default: float32, without TF32.
        spatial: 2023 numbers more, the spatial features of the sFID, as the part `spatial` of a vector.
    """
    if resizing not in RESIZINGS:
        raise ValueError(f"resizing must be one of {', '.join(RESIZINGS)}; got {resizing!r}")
    device, dtype = default_device(device), dtype or torch.float32
    model = load_inception(weights, sha256)
    head = model.fc.weight.detach().clone()
    model = model.to(device=device, dtype=dtype)
    network = model.with_spatial if spatial else model
    parts = {"features": slice(0, DIM), **({"spatial": slice(DIM, DIM + SPATIAL)} if spatial else {})}

    @torch.inference_mode()
    def embed(pixels: Tensor) -> Tensor:  # (b, 3, 299, 299) -> (b, 2048)
        with full_precision():
            return network(pixels.to(device, dtype))

    def prepare(image: Image.Image, out: Tensor | None) -> Tensor:
        return resize(image, resizing, out)

    return Encoder("inception", sha256[:16], RESIZINGS[resizing], False, prepare, embed, parts=parts, head=head)


def load_inception(weights: str | os.PathLike = WEIGHTS_URL, sha256: str = WEIGHTS_SHA256) -> Inception:
    """The network with pytorch-fid's weights, or with others of the same keys.

    Args:
        weights: a file, or a URL from which it is downloaded once into torch's hub folder.
        sha256: the digest that the file must have, 64 hexadecimal digits.

    Raises:
        ValueError: another digest, or keys or shapes of another network.
        OSError: the file can't be read, or the URL not reached.
    """
    path = Path(weights)
    if str(weights).startswith(("https://", "http://")):
        path = Path(torch.hub.get_dir(), "checkpoints", str(weights).rsplit("/", 1)[1])
        if not path.exists():
            _download(str(weights), path, sha256)
    _check_digest(path, sha256)
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Inception()
    expected, counters = model.state_dict(), ".num_batches_tracked"  # counters: older than the file's format
    wrong = [
        key
        for key in sorted(expected.keys() | state.keys())
        if not key.endswith(counters)
        and (key not in expected or key not in state or expected[key].shape != state[key].shape)
    ]
    if wrong:
        raise ValueError(
            f"{path} must hold the FID Inception's weights; {len(wrong)} keys or shapes differ: {wrong[0]}"
        )
    model.load_state_dict({key: value for key, value in state.items() if not key.endswith(counters)}, strict=False)
    return model


def _check_digest(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} must have the SHA-256 {sha256}; it has {found}")


def _download(url: str, path: Path, sha256: str) -> None:
    try:
        with replacing(path) as temporary:
            torch.hub.download_url_to_file(url, str(temporary))
            _check_digest(temporary, sha256)
    except OSError as error:
        raise OSError(f"the weights of the FID Inception can't be had from {url}: {error}") from error


def _resize_tensorflow(x: Tensor) -> Tensor:
    # (3, H, W) float32 -> (3, 299, 299). Pixel i is read at i * size / 299, not between pixel centres.
    for dim in (2, 1):
        size = x.shape[dim]
        place = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(size / SIDE, dtype=torch.float32)
        low = place.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        weight = (place - low).view([-1 if axis == dim else 1 for axis in range(3)])
        left = x.index_select(dim, low)
        x = left + (x.index_select(dim, high) - left) * weight
    return x


def _same(kernel: int | tuple[int, int]) -> int | tuple[int, int]:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _block_35(in_channels: int, pool_channels: int) -> MixedBlock:
    return MixedBlock(
        in_channels,
        {
            "branch1x1": [(64, 1)],
            "branch5x5": [(48, 1), (64, 5)],
            "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        },
        pool_channels,
    )


def _block_17(width: int) -> MixedBlock:
    across, down = (1, 7), (7, 1)
    return MixedBlock(
        768,
        {
            "branch1x1": [(192, 1)],
            "branch7x7": [(width, 1), (width, across), (192, down)],
            "branch7x7dbl": [(width, 1), (width, down), (width, across), (width, down), (192, across)],
        },
        192,
    )


def _block_8(in_channels: int, max_pool: bool) -> MixedBlock:
    fork: list[Convolution] = [(384, (1, 3)), (384, (3, 1))]
    return MixedBlock(
        in_channels,
        {
            "branch1x1": [(320, 1)],
            "branch3x3": [(384, 1), fork],
            "branch3x3dbl": [(448, 1), (384, 3), fork],
        },
        192,
        max_pool,
    )
