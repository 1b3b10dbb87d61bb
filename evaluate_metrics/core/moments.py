"""The sums that CMMD and the Frechet distance need of a set of embeddings: any number of images in O(d^2) memory."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_common.files import replacing

FORMAT_VERSION = "1"
ROWS = 512  # converted to float64 at a time


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
        for rows in embeddings.split(ROWS):
            rows = rows.cpu().double()
            self.sum += rows.sum(0)
            # NumPy sees that it multiplies a matrix by itself and computes one triangle: half the time of a product.
            matrix = rows.numpy()
            self.outer += torch.from_numpy(matrix.T @ matrix)
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
        `version` (of this format) and `images` (n) are added. All values are strings. `ValueError` otherwise.
        """
        missing = [key for key in ("encoder", "preprocessing") if key not in metadata]
        if missing:
            raise ValueError(f"metadata must have the keys 'encoder' and 'preprocessing', missing: {missing}")
        added = {"version": FORMAT_VERSION, "images": str(self.n)}
        clash = {key: metadata[key] for key, value in added.items() if metadata.get(key, value) != value}
        if clash:
            raise ValueError(f"metadata must agree with these moments, {added}, got {clash}")
        with replacing(path) as temporary:
            save_file({"sum": self.sum, "outer": self.outer}, temporary, {**metadata, **added})

    @classmethod
    def load(cls, path: str | os.PathLike) -> tuple["Moments", dict[str, str]]:
        """What `save` wrote, with all its metadata. `FileNotFoundError`, or `ValueError` that names the file."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no moments file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        missing = {"encoder", "preprocessing", "version", "images"} - metadata.keys()
        if missing or tensors.keys() != {"sum", "outer"}:
            raise ValueError(
                f"{path} is not a moments file: it holds the tensors {sorted(tensors)} (expected 'outer' and 'sum') "
                f"and lacks the metadata {sorted(missing)}"
            )
        if metadata["version"] != FORMAT_VERSION:
            raise ValueError(f"{path} has format version {metadata['version']}, this is version {FORMAT_VERSION}")
        total, outer = tensors["sum"], tensors["outer"]
        if total.ndim != 1 or outer.shape != total.shape * 2 or {total.dtype, outer.dtype} != {torch.float64}:
            raise ValueError(
                f"{path} must hold float64 tensors 'sum' (d,) and 'outer' (d, d), got {total.dtype} "
                f"{tuple(total.shape)} and {outer.dtype} {tuple(outer.shape)}"
            )
        if not metadata["images"].isdecimal() or not (total.isfinite().all() and outer.isfinite().all()):
            raise ValueError(f"{path} must hold finite sums of a number of images, got {metadata['images']!r} images")
        return cls(int(metadata["images"]), total, outer), metadata


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
