"""Mean and covariance as other programs keep them, mostly without the number of images that they are of."""

import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_common.files import replacing
from hf_common.foreign import refuse

from .moments import Moments
from .numpy_files import ArrayHead

UNIT_ERROR = 2e-3  # of a mean squared norm; half precision rounds unit vectors by less
MOST_COUNTED = 1 << 53  # images; beyond that float64 has no longer every whole number
NEGATIVE = 1e-3  # of the largest eigenvalue: what half precision leaves below 0
ASYMMETRY = 1e-4  # of the largest variance: some programs sum up in float32


@dataclass(eq=False)
class Statistics:
    """
    Mean and covariance of embeddings whose number is not known: all that the Frechet distance needs.

    Attributes:
        mean (`torch.Tensor`, (d,) float64, CPU).
        sigma (`torch.Tensor`, (d, d) float64, CPU): the covariance, divided by n - 1.
        n (`None`): the number, for code that asks [`Moments`] for theirs.
    """

    mean: Tensor
    sigma: Tensor
    n: None = None

    @property
    def dim(self) -> int:
        """Numbers in an embedding, d."""
        return len(self.mean)

    def covariance(self) -> Tensor:
        """(d, d) float64, divided by n - 1."""
        return self.sigma

    def counted(self, n: int) -> Moments:
        """The moments of n embeddings with this mean and covariance; `ValueError` unless 2 <= n <= `MOST_COUNTED`."""
        if not isinstance(n, Integral) or n < 2:
            raise ValueError(f"a count must be a whole number: a covariance is of 2 images or more; got {n!r:.80}")
        if n > MOST_COUNTED:
            raise ValueError(f"a covariance is of {MOST_COUNTED} images at most here; got {n}")
        return Moments(n, n * self.mean, (n - 1) * self.sigma + n * torch.outer(self.mean, self.mean))

    def unit_moments(self, name: str = "x") -> Moments:
        """Moments of one image whose mean and second moment are those of all, if all are unit vectors.

        The second moment is `mean mean^T + (n - 1) / n sigma`. Its trace, the mean squared norm, is 1, which gives
        the factor of sigma without the number n.

        Raises:
            ValueError: no n makes the mean squared norm 1; says that those of `name` are no unit vectors.
        """
        square, trace = float(self.mean.square().sum()), float(self.sigma.trace())
        factor = (1 - square) / trace if trace > 0 else 1.0  # one vector, many times: no covariance
        if not (0.5 - UNIT_ERROR <= factor <= 1 + UNIT_ERROR / max(trace, UNIT_ERROR)) or square > 1 + UNIT_ERROR:
            raise ValueError(
                f"unit vectors are needed, those of {name} have a mean squared norm of {square + trace:.6g}"
            )
        return Moments(1, self.mean, factor * self.sigma + torch.outer(self.mean, self.mean))


def part_of(moments: Moments | Statistics, part: slice) -> Moments | Statistics:
    """Of some numbers of each vector."""
    if isinstance(moments, Statistics):
        return Statistics(moments.mean[part], moments.sigma[part, part])
    return Moments(moments.n, moments.sum[part], moments.outer[part, part])


def joined(first: Moments | Statistics, second: Moments | Statistics) -> Moments | Statistics:
    """Of vectors with two parts, of each of which mean and covariance are known; across the parts it is set to 0."""
    mean = torch.cat((first.mean, second.mean))
    both = Statistics(mean, torch.block_diag(first.covariance(), second.covariance()))
    return both if first.n is None else both.counted(first.n)


def checked_statistics(path: str | os.PathLike, mean: np.ndarray, sigma: np.ndarray, names: str) -> Statistics:
    """What can be mean and covariance of embeddings; else a `ValueError` that begins with the path.

    Args:
        mean: (d,) of any floating dtype.
        sigma: (d, d), symmetric but for rounding.
        names: what they are called in the file.
    """
    check_shapes(path, mean, sigma, names)
    m, s = (torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)) for array in (mean, sigma))
    if not (m.isfinite().all() and s.isfinite().all()):
        raise refuse(path, f"{names} hold NaN or infinity")
    variances = s.diagonal()
    largest = float(variances.max())
    if (variances < -ASYMMETRY * largest).any() or ((s - s.T).abs() > ASYMMETRY * largest).any():
        raise refuse(path, f"{names}: no covariance, which is symmetric and has no negative number on its diagonal")
    roots = variances.clamp(min=0).sqrt()
    if (s.abs() > torch.outer(roots, roots) + ASYMMETRY * largest).any():
        raise refuse(path, f"{names}: no covariance, for one is larger than the variances allow")
    lowest, highest = torch.linalg.eigvalsh((s + s.T) / 2)[[0, -1]].tolist()
    if lowest < -NEGATIVE * highest:
        raise refuse(
            path, f"{names}: no covariance, for it has the eigenvalue {lowest:.3g}, and {highest:.3g} as largest"
        )
    return Statistics(m, (s + s.T) / 2)


def check_shapes(
    path: str | os.PathLike, mean: np.ndarray | ArrayHead, sigma: np.ndarray | ArrayHead, names: str
) -> None:
    """A `ValueError` that begins with the path, unless they are (d,) and (d, d) floating-point numbers."""
    if (
        len(mean.shape) != 1
        or not mean.shape[0]
        or sigma.shape != mean.shape * 2
        or {mean.dtype.kind, sigma.dtype.kind} != {"f"}
    ):
        raise refuse(
            path,
            f"{names} must be floating-point numbers of the shapes (d,) and (d, d); got {mean.dtype} {mean.shape} and "
            f"{sigma.dtype} {sigma.shape}",
        )


def save_statistics(
    path: str | os.PathLike, moments: Moments | Statistics, spatial: Moments | Statistics | None = None
) -> None:
    """Write `mu` (d,) and `sigma` (d, d), divided by n - 1, in float64, compressed: the form of pytorch-fid.

    Args:
        spatial: of the spatial features of the same images, which are added as `mu_s` and `sigma_s`: the form of ADM.

    Raises:
        ValueError: another ending than `.npz`, fewer than 2 images, or there is such a file.
    """
    check_new_statistics(path)
    if moments.n is not None and moments.n < 2:
        raise ValueError(f"a covariance is of 2 images or more; got {moments.n}")
    arrays: dict[str, Any] = {"mu": moments.mean.numpy(), "sigma": moments.covariance().numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.numpy(), "sigma_s": spatial.covariance().numpy()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def check_new_statistics(path: str | os.PathLike) -> None:
    """`ValueError` unless [`save_statistics`] may write this file."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"a file of mean and covariance ends in .npz; got {os.fspath(path)!r}")
    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or name another file")
