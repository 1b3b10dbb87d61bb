"""Images of a source to embeddings and moments: split over processes, kept on disk by content."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor
from tqdm.auto import tqdm

from hf_common.foreign import read_tensors, short

from ..core.encoders import Encoder
from ..core.moments import Moments, check_digest, save_with_digest
from ..core.statistics import Statistics
from .sources import ImageSource, digest

CHUNK = 512  # images that one process embeds and keeps together
CACHE_VERSION = 2  # part of the files' names: those of another version are not found


@dataclass(frozen=True)
class Embedded:
    """Moments of all images of a source, and their embeddings, (n, d) float32 on the CPU, where they were kept.

    notes: what readers of the scores must know of this set.
    """

    moments: Moments | Statistics
    embeddings: Tensor | None
    notes: tuple[str, ...] = ()

    def kept(self) -> Tensor:
        """The embeddings; a `RuntimeError` where they were not kept."""
        if self.embeddings is None:
            raise RuntimeError("only moments were kept")
        return self.embeddings


class EmbeddingCache:
    """A folder with the embeddings of chunks of images, each named by what it was computed from.

    The name is a digest of the images' bytes and of the encoder: its weights, preprocessing, normalisation and
    `dtype`. The same images found elsewhere, or asked of another number of processes, are not embedded again; a
    changed image or encoder is. The embeddings of a callable, whose weights nobody knows, are not kept. Each file
    carries a digest, so that one that was damaged, or has another's name, is never taken for what it is not.
    """

    def __init__(self, folder: str | os.PathLike, encoder: Encoder, dtype: torch.dtype) -> None:
        self.folder = Path(folder)
        self.encoder = encoder
        self.identity = json.dumps([CACHE_VERSION, {**encoder.metadata, "encoder": ""}, str(dtype)], sort_keys=True)

    def get(self, encoded: list[dict]) -> Tensor | None:
        """The embeddings of these images, if they are kept: (len(encoded), d) float32.

        Raises:
            ValueError: the file of that name is damaged, or holds something else; names it.
        """
        path = self._path(encoded)
        if not self.encoder.weights or not path.exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
            check_digest(path, tensors, metadata)
        except ValueError as error:
            raise _no_embeddings(path, str(error).removeprefix(f"{path}: ")) from None
        found = tensors.get("embeddings", torch.empty(0))
        expected = (len(encoded), self.encoder.dim)
        if metadata.get("key") != path.stem or found.shape != expected or found.dtype != torch.float32:
            raise _no_embeddings(path, "it holds others than its name says")
        if not found.isfinite().all():
            raise _no_embeddings(path, "it holds NaN or infinity")
        return found

    def put(self, encoded: list[dict], embeddings: Tensor) -> None:
        """Keep them, unless the encoder is a callable."""
        if not self.encoder.weights:
            return
        path = self._path(encoded)
        save_with_digest(path, {"embeddings": embeddings.contiguous()}, {"key": path.stem})

    def _path(self, encoded: list[dict]) -> Path:
        key = hashlib.sha256((self.identity + digest(encoded)).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"


def _no_embeddings(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is no file of embeddings; remove it: {short(reason, 80)}")


def embed(
    source: ImageSource,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    keep: bool = False,
    cache: EmbeddingCache | None = None,
    progress: bool = False,
    num_workers: int | None = None,
) -> Embedded:
    """Embed every image of `source`, on all processes of `accelerate`, which all return the same.

    Chunks of `CHUNK` images go round the processes; a batch never spans two chunks, so that the embeddings do not
    depend on the number of processes. The next chunk is read while one is in work.

    Args:
        source, encoder: what is embedded, by what.
        batch_size: images that the model sees at once.
        keep: gather the embeddings too; without them memory is O(d^2).
        cache: where they are looked up and kept.
        progress: a bar over the images of the main process.
        num_workers: threads that decode and resize images. Default: one for each core, 8 at most.

    Raises:
        ValueError: names the images that can't be read or embedded.
    """
    state = PartialState()
    moments, kept = Moments.zeros(encoder.dim), []
    starts = range(0, len(source), CHUNK)[state.process_index :: state.num_processes]
    total = sum(min(CHUNK, len(source) - start) for start in starts)
    bar = tqdm(
        total=total,
        desc=f"{source.name}: {encoder.name}",
        unit="image",
        disable=not (progress and state.is_main_process),
    )
    with bar:
        for start, embeddings in _embedded_chunks(source, encoder, starts, batch_size, cache, num_workers):
            moments.update(embeddings)
            if keep:
                kept.append((start, embeddings))
            bar.update(len(embeddings))
    if state.num_processes > 1:
        moments = _sum(moments, state.device)
        kept = gather_object(kept)
    whole = torch.cat([chunk for _, chunk in sorted(kept, key=lambda item: item[0])]) if keep else None
    return Embedded(moments, whole)


def _embedded_chunks(
    source: ImageSource,
    encoder: Encoder,
    starts: Sequence[int],
    batch_size: int,
    cache: EmbeddingCache | None,
    num_workers: int | None,
) -> Iterator[tuple[int, Tensor]]:
    """The chunks at `starts`, each with its embeddings, kept or new, in this order."""
    due: deque[tuple[int, list[dict], Tensor | None]] = deque()  # asked for, and not given yet
    unread: list[ValueError] = []

    def chunks() -> Iterator[list[dict]]:
        try:
            for start, encoded, found in _read_ahead(source, starts, cache):
                due.append((start, encoded, found))
                yield encoded if found is None else []
        except ValueError as error:
            unread.append(error)
            raise

    try:
        for embeddings in encoder.encode_chunks(chunks(), batch_size, num_workers):
            start, encoded, found = due.popleft()
            if found is None and cache:
                cache.put(encoded, embeddings)
            yield start, embeddings if found is None else found
    except ValueError as error:
        if error in unread or not due:
            raise
        start, encoded, _ = due[0]
        last = start + len(encoded) - 1
        raise ValueError(f"{source.name}, images {start} to {last}: {error}") from error


def _read_ahead(
    source: ImageSource, starts: Sequence[int], cache: EmbeddingCache | None
) -> Iterator[tuple[int, list[dict], Tensor | None]]:
    """Of each chunk its start, its images, and its embeddings if they are kept; one chunk is read ahead."""

    def read(start: int) -> tuple[int, list[dict], Tensor | None]:
        encoded = source.read(start, min(start + CHUNK, len(source)))
        return start, encoded, cache.get(encoded) if cache else None

    with ThreadPoolExecutor(1) as reader:
        ahead: deque[Future] = deque()
        for start in starts:
            ahead.append(reader.submit(read, start))
            if len(ahead) == 2:
                yield ahead.popleft().result()
        for future in ahead:
            yield future.result()


def _sum(moments: Moments, device: torch.device) -> Moments:
    # Over processes; the sums stay float64 on the device whose backend adds them.
    n = torch.tensor([moments.n], dtype=torch.int64, device=device)
    n, total, outer = reduce([n, moments.sum.to(device), moments.outer.to(device)], "sum")
    return Moments(int(n), total.cpu(), outer.cpu())
