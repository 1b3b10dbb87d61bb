"""Image encoders: images of any kind in, unit vectors out."""

import base64
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, repeat
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_common.foreign import short
from hf_common.identity import same_code
from hf_common.images import to_rgb

from .batches import BatchMemory, as_batch
from .dinov2 import published_preparation
from .folders import image_files
from .image_sources import is_packed, open_images
from .precision import default_device
from .tiny import tiny_features
from .vision_models import (
    clip_score_preparation,
    embed_captions,
    embed_pixels,
    fingerprint,
    has_captions,
    image_preparation,
    load_vision_model,
)

ENCODERS: dict[str, str | Callable] = {
    "clip": "openai/clip-vit-large-patch14-336",  # the one of the CMMD paper
    "siglip": "google/siglip-so400m-patch14-384",
    "align": "kakaobrain/align-base",
    "dinov2": "facebook/dinov2-large",
    "tiny": tiny_features,  # no network: for trying things out
}
# Published protocols, which say how images are prepared, whatever the checkpoint's processor does; not normalised.
PROTOCOLS = {
    "fd-dinov2": ("facebook/dinov2-large", published_preparation),  # Stein et al. 2023, arXiv:2306.04675
    "clip-score": ("openai/clip-vit-base-patch32", clip_score_preparation),  # Hessel et al. 2021, arXiv:2104.08718
}
PROBE_TOLERANCE = 1e-3  # of the norm: the last bits differ between devices and versions
THREADS = min(8, os.cpu_count() or 1)  # that open and resize images; Pillow releases Python's lock


class Encoder:
    """
    Maps images to vectors. Made by [`make_encoder`].

    Attributes:
        name (`str`): Hub id or folder of the model, or module and name of the callable.
        weights (`str`): the first 16 digits of the SHA-256 of the weights; `""` for a callable that is no
            module.
        preprocessing (`str`): all that happens to an image before the model, in words that can be compared.
        normalized (`bool`): whether vectors are divided by their Euclidean norm.
        dim (`int`): length of a vector.
        probe (`str` or `None`): of a callable, what it makes of [`probe_image`], as text: weights and code that nobody
            can read are told apart by what they do.
        parts (`dict`): which numbers of a vector are what: `features`, and `spatial` where there are such.
        head (`torch.Tensor` or `None`): (classes, features), the logits of the features of one image without bias.
        captions (callable or `None`): a list of n captions to (n, d) float32, in the space of the images.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        preprocessing: str,
        normalized: bool,
        prepare: Callable,  # RGB image, tensor or None -> tensor, the given one if it could be written; or any object
        embed: Callable[..., torch.Tensor | np.ndarray],  # (b, ...) tensor, or list of b objects -> (b, d) float
        probed: bool = False,  # whether `probe` is part of its identity
        parts: Mapping[str, slice] | None = None,
        head: torch.Tensor | None = None,
        captions: Callable[[list[str]], torch.Tensor] | None = None,
    ):
        self.name = name
        self.weights = weights
        self.preprocessing = preprocessing
        self.normalized = normalized
        self._prepare = prepare
        self._embed = embed
        pixels = prepare(probe_image(), None)
        self._like = pixels if isinstance(pixels, torch.Tensor) else None
        (vector,) = self._vectors([pixels] if self._like is None else pixels[None])
        self.dim = len(vector)
        self.parts = {"features": slice(0, self.dim)} if parts is None else dict(parts)
        self.head, self.captions = head, captions
        norm = vector.norm() if normalized and vector.norm() > 0 else 1
        self.probe = _to_text(vector / norm) if probed else None

    @property
    def metadata(self) -> dict[str, str]:
        """What [`Moments.save`] needs to know."""
        known = {
            "encoder": self.name,
            "weights": self.weights,
            "preprocessing": self.preprocessing,
            "normalized": str(self.normalized).lower(),
        }
        if len(self.parts) > 1:
            known["parts"] = ", ".join(f"{name} {part.stop - part.start}" for name, part in self.parts.items())
        return known if self.probe is None else {**known, "probe": self.probe}

    @property
    def digest(self) -> str:
        """
        16 hexadecimal digits that are the same for encoders whose values can be compared, and for no others: of the
        weights (of a callable its name and what it makes of [`probe_image`], roughly), the preprocessing and whether
        vectors are normalised. The name under which a model was loaded does not count, nor do
        parts beside the features.
        """
        who = [self.weights] if self.probe is None else [self.name, self.weights, *_outline(self.probe)]
        said = json.dumps([*who, self.preprocessing, self.normalized])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def check(self, metadata: dict[str, str], name: str) -> None:
        """
        `ValueError` unless `metadata`, of moments called `name`, are those of this encoder: the same weights (for a
        callable the same name), the same preprocessing, vectors of both normalised or not, and for a callable the same
        vector of the probe image but for 1e-3 of its norm. Parts are not compared, see [`fitted`].
        """
        key = "weights" if self.weights and metadata.get("weights") else "encoder"
        differences = [
            f"{what}: {short(repr(metadata.get(what)))}, here {self.metadata[what]!r}"
            for what in (key, "preprocessing", "normalized")
            if metadata.get(what) != self.metadata[what]
        ]
        if not differences and self.probe is not None:
            differences = _probe_differences(metadata.get("probe"), self.probe)
        if differences:
            raise ValueError(
                f"{name} are of the encoder {short(repr(metadata.get('encoder')))}, which is not the same as "
                f"{self.name!r}: {'; '.join(differences)}"
            )

    def encode(self, images: Iterable, batch_size: int = 64) -> torch.Tensor:  # n images -> (n, d) float32, CPU
        """The vectors of `images`, in order, on the CPU. See [`~Encoder.encode_batches`]."""
        batches = list(self.encode_batches(images, batch_size))
        return torch.cat(batches) if batches else torch.empty(0, self.dim)

    def encode_batches(
        self, images: Iterable, batch_size: int = 64, name: str = "images", num_workers: int | None = None
    ) -> Iterator[torch.Tensor]:
        """
        The same, `batch_size` images at a time: (b, d) float32 on the CPU. Images are read when their batch is due,
        one batch ahead of the model, by `num_workers` threads (default: one for each core, 8 at most). They may be of
        different kinds and sizes, see [`to_rgb`]; or one folder, whose image files are taken, see [`image_files`]; or
        one archive, array or Parquet file, see [`open_images`]. Errors call them `name`.

        Raises:
            TypeError: `images` is a single image or its path, an array without 4 dimensions, or an entry is no image.
            ValueError: an image cannot be read, or its vector is not finite, or zero where vectors are normalised.
        """
        images = set_of_images(images, name)
        if isinstance(images, (bytes, bytearray, memoryview, Image.Image, dict)):
            raise TypeError(f"{name} must be a list or another iterable of images, got one {type(images).__name__}")
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim != 4:
            raise TypeError(f"{name} in one array must have 4 dimensions, got the shape {tuple(images.shape)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        try:
            numbered = enumerate(images)
        except TypeError as error:
            raise TypeError(
                f"{name} must be a list or another iterable of images, got {type(images).__name__}"
            ) from error
        labelled = ((f"{name}[{number}]", image) for number, image in numbered)
        yield from self._piped(iter(lambda: list(islice(labelled, batch_size)), []), num_workers)

    def encode_chunks(
        self, chunks: Iterable[list], batch_size: int = 64, num_workers: int | None = None
    ) -> Iterator[torch.Tensor]:
        """
        Of each chunk of images the vectors, (len(chunk), d) float32 on the CPU. A batch never spans two chunks, and a
        chunk is asked for while the one before is in work. Errors call an image by its place in its chunk.
        """
        sizes: deque[int] = deque()

        def batches() -> Iterator[list]:
            for chunk in chunks:
                sizes.append(len(chunk))
                labelled = [(f"images[{number}]", image) for number, image in enumerate(chunk)]
                yield from (labelled[start : start + batch_size] for start in range(0, max(len(chunk), 1), batch_size))

        rows: list[torch.Tensor] = []
        for vectors in self._piped(batches(), num_workers):
            rows.append(vectors)
            if sum(map(len, rows)) == sizes[0]:
                sizes.popleft()
                yield torch.cat(rows)
                rows = []

    def _piped(self, batches: Iterable[list], num_workers: int | None) -> Iterator[torch.Tensor]:
        """The vectors of batches of (what errors call it, image); one batch is prepared ahead of the model."""
        waiting: deque[tuple[list[str], Callable]] = deque()
        memory = BatchMemory()
        with ThreadPoolExecutor(THREADS if num_workers is None else num_workers) as pool:
            for batch in chain(batches, [None]):
                if batch is not None:
                    waiting.append(([label for label, _ in batch], self._prepared(batch, memory, pool)))
                if len(waiting) == 2 or (batch is None and waiting):
                    labels, prepared = waiting.popleft()
                    vectors = self._vectors(prepared()) if labels else torch.empty(0, self.dim)
                    yield self._checked(vectors, labels)

    def _prepared(self, batch: list, memory: BatchMemory, pool: ThreadPoolExecutor) -> Callable:
        """Has threads prepare a batch; gives what waits for it, and gives it as `embed` takes it."""

        def prepare(item: tuple[str, Any], slot: torch.Tensor | None) -> Any:
            return self._prepare(to_rgb(item[1], item[0]), slot)

        if self._like is None:
            objects = pool.map(prepare, batch, repeat(None))
            return lambda: list(objects)
        slots = memory.slots(len(batch), self._like)
        rows = slots.unbind()
        tensors = pool.map(prepare, batch, rows)
        return lambda: self._batch(list(tensors), rows, slots)

    def _batch(self, tensors: list[torch.Tensor], rows: Sequence, slots: torch.Tensor) -> torch.Tensor:
        sizes = sorted({tuple(pixels.shape[1:]) for pixels in tensors})
        if len(sizes) > 1:
            raise ValueError(
                f"the processor of {self.name} gives images of several sizes, {sizes[0]} and {sizes[-1]}; give a "
                "callable as encoder"
            )
        return as_batch(tensors, rows, slots)

    @torch.no_grad()
    def _vectors(self, prepared: list | torch.Tensor) -> torch.Tensor:  # b prepared -> (b, d) float32, CPU
        vectors = torch.as_tensor(self._embed(prepared))
        if vectors.ndim != 2 or len(vectors) != len(prepared) or not vectors.is_floating_point():
            raise ValueError(
                f"encoder {self.name!r} must give a floating tensor of {len(prepared)} rows for so many images, got "
                f"{vectors.dtype} of shape {tuple(vectors.shape)}"
            )
        return vectors.detach().to("cpu", torch.float32, copy=True)  # never a view of the batch, which is written anew

    def _checked(self, vectors: torch.Tensor, labels: list[str]) -> torch.Tensor:  # (b, d) -> (b, d)
        norms = vectors.norm(dim=1, keepdim=True)
        bad = ~norms.isfinite() | (norms == 0 if self.normalized else False)
        if bad.any():
            row = int(bad[:, 0].nonzero()[0])
            what = "a zero vector, which has no direction," if norms[row] == 0 else "NaN or infinity"
            raise ValueError(f"encoder {self.name!r} gave {what} for {labels[row]}")
        return vectors / norms if self.normalized else vectors


def register_encoder(name: str, encoder: str | os.PathLike | Callable) -> None:
    """Let `name` stand for an encoder, for [`make_encoder`], the metrics and `--encoders`.

    Args:
        encoder: a Hub id, a folder or a callable, as [`make_encoder`] takes them.

    Raises:
        TypeError: neither path nor callable.
        ValueError: a name that is no word of letters, digits, `-`, `_` and dots, or that stands for another one.
    """
    if not callable(encoder):
        encoder = os.fspath(encoder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise ValueError(f"name must be a word of letters, digits, '-', '_' and '.'; got {name!r:.80}")
    if name in PROTOCOLS or re.match(r"inception(-|$)", name):  # of which commands have the FID network
        raise ValueError(f"name must be none of {', '.join(PROTOCOLS)}, inception, published protocols; got {name!r}")
    if ENCODERS.get(name, encoder) != encoder and not same_code(ENCODERS[name], encoder):
        raise ValueError(f"there is an encoder {name!r} already, {short(repr(ENCODERS[name]))}")
    ENCODERS[name] = encoder


def make_encoder(
    encoder: str | os.PathLike | Callable,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    normalize: bool = True,
) -> Encoder:
    """
    Args:
        encoder (`str`, `os.PathLike` or callable):
            `"clip"`, `"siglip"`, `"align"`, `"dinov2"`, `"tiny"` ([`tiny_features`], for trying things out) or another
            name of [`register_encoder`], the Hub id or the folder of a vision model of transformers, or a callable
            that takes a list of b RGB `PIL.Image`s and returns a (b, d) floating tensor or array. `"fd-dinov2"` is the
            protocol of the published FD-DINOv2 (Stein et al. 2023, https://arxiv.org/abs/2306.04675), never
            normalised; `"fd-dinov2:FOLDER"` that of another DINOv2. `"clip-score"` is that of the CLIPScore (Hessel et
            al. 2021, https://arxiv.org/abs/2104.08718): ViT-B/32, images as CLIP's own processor has them; likewise
            `"clip-score:FOLDER"`.

            The vector is the projected class token of CLIP, and else the model's `pooler_output`: attention pooling
            in SigLIP, the average in ALIGN, the class token in DINOv2. Images are prepared by the checkpoint's own
            processor in its Pillow form; but for CLIP they are cropped to the central square and resized by Pillow's
            bicubic filter, as for the published values of CMMD (Jayasumana et al. 2024,
            https://arxiv.org/abs/2401.09603). For square images that is the same.
        device (`str` or `torch.device`, *optional*):
            Where the model runs. Default: an accelerator if there is one. Not with a callable.
        dtype (`torch.dtype`, *optional*):
            `torch.float16` or `torch.bfloat16` for half precision. Default: float32, without TF32. Not with a
            callable.
        normalize (`bool`, *optional*, defaults to `True`):
            Divide each vector by its Euclidean norm.

    Raises:
        OSError: the model is neither on disk nor can it be reached.
        ValueError: it is no vision model, has no pooled output, or lacks weights; or there is no such device.
    """
    protocol, _, folder = encoder.partition(":") if isinstance(encoder, str) else ("", "", "")
    preparation: Callable = image_preparation
    if protocol in PROTOCOLS:
        encoder, preparation = folder or PROTOCOLS[protocol][0], PROTOCOLS[protocol][1]
        normalize = False
    elif isinstance(encoder, str):
        encoder = ENCODERS.get(encoder, encoder)
    if callable(encoder):
        if device is not None or dtype is not None:
            raise ValueError("device and dtype are for models that are loaded here, a callable has its own")
        return _callable_encoder(encoder, normalize)
    device, source = default_device(device), os.fspath(encoder)
    model, processor = load_vision_model(source, known=[*ENCODERS, *PROTOCOLS])
    weights = fingerprint(model)
    dtype = dtype or torch.float32
    steps, prepare = preparation(model, processor)
    model.to(device=device, dtype=dtype)  # type: ignore[call-arg]  # transformers' wrapper seems to lack `self`
    captions = partial(embed_captions, source, device, dtype) if has_captions(model) else None
    embed = partial(embed_pixels, model, source)
    return Encoder(source, weights, steps, normalize, prepare, embed, captions=captions)


def _callable_encoder(encoder: Callable, normalize: bool) -> Encoder:
    named = encoder.func if isinstance(encoder, partial) else encoder
    named = named if isinstance(named, (FunctionType, MethodType, type)) else type(named)
    weights = fingerprint(encoder) if isinstance(encoder, torch.nn.Module) else ""
    steps = "the callable's own, from RGB images"
    name = f"{named.__module__}.{named.__qualname__}"
    return Encoder(name, weights, steps, normalize, lambda image, _: image, encoder, probed=True)


def set_of_images(images: Iterable, name: str = "images") -> Iterable:
    """`images`, or those of the folder, archive, array or Parquet file that they are; a `TypeError` for others."""
    if not isinstance(images, (str, os.PathLike)):
        return images
    if is_packed(images):
        return open_images(images)
    if not os.path.isdir(images):
        raise TypeError(
            f"{name} must be a list or another iterable of images, got one {type(images).__name__}, "
            f"{os.fspath(images)!r}, which is no folder either"
        )
    files = image_files(images)
    if not files:
        raise ValueError(f"{name}: {os.fspath(images)} holds no image files")
    return files


def probe_image() -> Image.Image:
    """64 x 48 pixels of waves and an edge, the same everywhere: crops, resizings and channels show in a vector."""
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    channels = (across * 4, down * 5, (across * across + 3 * down * down) % 199 + 56 * (across > 2 * down))
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def _to_text(vector: torch.Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _outline(probe: str) -> list[str]:
    """A few directions of a vector, as coarse as no rounding changes: of (nearly) one vector the same."""
    vector = np.frombuffer(base64.b64decode(probe), "<f4").astype(float)
    norm = float(np.linalg.norm(vector))
    if not (0 < norm < np.inf):
        return [repr(norm)]
    places = np.arange(len(vector))
    waves = [float(np.cos((number + 1) * places) @ vector) / norm for number in range(6)]
    return [f"{norm:.2g}", *(f"{wave + 0.0:.1f}" for wave in waves)]


def _probe_differences(found: str | None, own: str) -> list[str]:
    """How the vectors of the probe image differ, in words; empty if they are one but for rounding."""
    if found is None:
        return ["probe: they lack the vector of the probe image, which tells callables apart; make them anew"]
    try:
        vectors = [np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(float) for text in (found, own)]
    except ValueError:  # of base64, or of a number of bytes that no vector has
        return ["probe: no vector of the probe image"]
    if vectors[0].shape != vectors[1].shape:
        return [f"probe: vectors of {len(vectors[0])} numbers, here of {len(vectors[1])}"]
    if np.array_equal(vectors[0], vectors[1], equal_nan=True):
        return []
    distance = float(np.linalg.norm(vectors[0] - vectors[1]) / np.linalg.norm(vectors[1]))
    if distance <= PROBE_TOLERANCE:
        return []
    return [f"probe: the vectors of the probe image are {distance:.2g} of their norm apart"]
