"""The sums that CMMD and the Frechet distance need of a set of embeddings: any number of images in O(d^2) memory."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file

from hf_common.files import replacing
from hf_common.foreign import read_tensors, refuse, short

FORMAT_VERSION = "2"
ROWS = 512  # converted to float64 at a time
ROUNDING = 1e-9  # relative; sums of products of float64 numbers are far nearer to exact ones


@dataclass(eq=False)
class Moments:
    """
    Number, sum and sum of outer products of embeddings. They add up: over batches, files and processes.
    Integer-valued embeddings give the same bits in any order, as long as the sums stay below 2^53.

    Attributes:
        n (`int`): embeddings seen.
        sum (`torch.Tensor`, (d,) float64, CPU): sum of x.
        outer (`torch.Tensor`, (d, d) float64, CPU): sum of x x^T, symmetric.
    """

    n: int
    sum: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def zeros(cls, dim: int) -> "Moments":
        """The moments of no embeddings of `dim` >= 1 numbers."""
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @property
    def dim(self) -> int:
        """Numbers in an embedding, d."""
        return len(self.sum)

    def update(self, embeddings: torch.Tensor | np.ndarray) -> "Moments":  # (b, d) float -> self
        """
        Add a batch, (b, d) of any floating dtype, b >= 0; products of float32 numbers are exact in float64. Returns
        `self`. Raises `TypeError` for other dtypes, `ValueError` for another shape and for NaN or infinity; the
        moments are then as they were.
        """
        embeddings = float_matrix(embeddings, "embeddings")
        if embeddings.shape[1] != self.dim:
            raise ValueError(f"embeddings must have {self.dim} columns as those before, got {embeddings.shape[1]}")
        # NumPy alone, which sees that it multiplies a matrix by itself and computes one triangle: half the time of a
        # product. Threads of PyTorch, which wait for more work a while, would take the cores from its own.
        total, outer = self.sum.numpy(), self.outer.numpy()
        for rows in embeddings.split(ROWS):
            rows = rows.cpu()
            if rows.dtype != torch.float64:
                rows = rows.float()  # of half precision, which NumPy has not all of
            matrix = rows.numpy().astype(np.float64)
            total += matrix.sum(0)
            outer += matrix.T @ matrix
        self.n += len(embeddings)
        return self

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together; neither is changed. `ValueError` for another dimension."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {self.dim} and of {other.dim} dimensions cannot be merged")
        return Moments(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    @property
    def mean(self) -> torch.Tensor:
        """(d,) float64; `ValueError` without embeddings."""
        if self.n < 1:
            raise ValueError("the mean needs at least 1 embedding, got none")
        return self.sum / self.n

    def covariance(self, unbiased: bool = True) -> torch.Tensor:
        """(d, d) float64, divided by n - 1, or by n if not `unbiased`. `ValueError` for less than 2 (1) embeddings."""
        if self.n < 1 + unbiased:
            raise ValueError(f"the covariance needs at least {1 + unbiased} embeddings, got {self.n}")
        mean = self.mean
        return (self.outer - self.n * torch.outer(mean, mean)) / (self.n - unbiased)

    def save(self, path: str | os.PathLike, metadata: dict[str, str]) -> None:
        """
        Write `sum` and `outer` as safetensors, under a temporary name and then renamed; the folder is made.
        `metadata` must name the `encoder` and its `preprocessing`, so that moments of two kinds are never compared;
        `version` (of this format), `images` (n) and `sha256`, the digest of all the rest, are added. All values are
        strings. `ValueError` otherwise, and for moments of no images.
        """
        missing = [key for key in ("encoder", "preprocessing") if key not in metadata]
        if missing:
            raise ValueError(f"metadata must have the keys 'encoder' and 'preprocessing', missing: {missing}")
        if self.n < 1:
            raise ValueError("moments of no images can't be saved")
        added = {"version": FORMAT_VERSION, "images": str(self.n)}
        metadata = {key: value for key, value in metadata.items() if key != "sha256"}  # of the file that they are from
        clash = {key: metadata[key] for key, value in added.items() if metadata.get(key, value) != value}
        if clash:
            raise ValueError(f"metadata must agree with these moments, {added}, got {clash}")
        save_with_digest(path, {"sum": self.sum, "outer": self.outer}, metadata | added)

    @classmethod
    def load(cls, path: str | os.PathLike) -> tuple["Moments", dict[str, str]]:
        """
        What `save` wrote, with all its metadata. `FileNotFoundError`; `ValueError` that names the file: it is no such
        file, damaged (its digest is another), of another format, or its numbers are moments of no embeddings.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no moments file at {os.fspath(path)}")
        tensors, metadata = read_tensors(path)
        missing = {"encoder", "preprocessing", "version", "images"} - metadata.keys()
        if missing or tensors.keys() != {"sum", "outer"}:
            raise refuse(
                path,
                f"is not a moments file: it holds the tensors {short(sorted(tensors), 60)} (expected 'outer' and "
                f"'sum') and lacks the metadata {sorted(missing)}",
            )
        if metadata["version"] == "1":
            raise refuse(path, f"is of format 1, without a digest to check it by; {_made_anew(metadata)}")
        if metadata["version"] != FORMAT_VERSION:
            version = short(metadata["version"], 40)
            raise refuse(path, f"has format version {version}, this is version {FORMAT_VERSION}")
        check_digest(path, tensors, metadata)
        return cls._of(path, tensors["sum"], tensors["outer"], metadata["images"]), metadata

    @classmethod
    def _of(cls, path: str | os.PathLike, total: torch.Tensor, outer: torch.Tensor, images: str) -> "Moments":
        """What can be the moments of so many embeddings, all of which satisfy Cauchy and Schwarz's inequality."""
        if total.ndim != 1 or outer.shape != total.shape * 2 or {total.dtype, outer.dtype} != {torch.float64}:
            raise refuse(
                path,
                f"must hold float64 tensors 'sum' (d,) and 'outer' (d, d), got {total.dtype} {tuple(total.shape)} and "
                f"{outer.dtype} {tuple(outer.shape)}",
            )
        counted = re.fullmatch("[1-9][0-9]{0,15}", images)
        if not counted or not len(total) or not (total.isfinite().all() and outer.isfinite().all()):
            raise refuse(path, f"must hold finite sums of a number of images, got {short(repr(images), 40)} images")
        n, diagonal = int(images), outer.diagonal()
        if (diagonal < 0).any() or ((outer - outer.T).abs() > ROUNDING * diagonal.max()).any():
            raise refuse(path, "must hold a symmetric 'outer' without negative numbers on its diagonal")
        largest = diagonal.sqrt() * (1 + ROUNDING)
        if (outer.abs() > torch.outer(largest, largest)).any() or (total.abs() > largest * n**0.5).any():
            raise refuse(path, f"holds sums that no {n} embeddings have: a product exceeds those of the squares")
        return cls(n, total, outer)


def save_with_digest(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose metadata have, as `sha256`, the digest of all the rest."""
    digest = {"sha256": _content_digest(tensors, metadata)}
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata | digest)


def check_digest(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """`ValueError` that names the file unless this is what [`save_with_digest`] wrote."""
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    if metadata.get("sha256") != _content_digest(tensors, rest):
        raise refuse(path, "is damaged: its content has another SHA-256 than it says; make it anew")


def _content_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    total = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _made_anew(metadata: Mapping[str, str]) -> str:
    """How moments of a format that is no longer read are made again."""
    encoder = short(repr(metadata["encoder"]), 80)
    return (
        f"make it anew from its images: evaluate_images.py --encoders {encoder} --save_moments, or "
        "moments, metadata = metric.moments(images); moments.save(path, metadata)"
    )


def float_matrix(values: torch.Tensor | np.ndarray, name: str) -> torch.Tensor:  # (n, d) float -> (n, d) float
    """`values` as a finite floating matrix on its own device; errors call it `name`."""
    if isinstance(values, np.ndarray):
        if not np.issubdtype(values.dtype, np.floating):
            raise TypeError(f"{name} must be floating-point numbers, got {values.dtype}")
        values = torch.from_numpy(np.require(values, requirements=["C", "W"]))  # else copied
    if not isinstance(values, torch.Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a torch tensor or a NumPy array of floating-point numbers, got {kind}")
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"{name} must have the shape (images, dimensions), got {tuple(values.shape)}")
    values = values.detach()
    finite = torch.cat(
        [rows.isfinite().all(1) for rows in values.split(ROWS)]
    )  # whole, it would need copies of values
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(f"{name} hold NaN or infinity in {len(bad)} of {len(values)} rows, the first is row {bad[0]}")
    return values
