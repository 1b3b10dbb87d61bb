"""Kernels of a squared maximum mean discrepancy, in tiles of the matrix of all pairs."""

import math

import torch

from .moments import ROWS

FLOAT32_ROUNDING = 4e-13  # at most, averaged over all pairs, of a kernel value


class GaussianKernel:
    """`k(a, b) - 1` for `k = exp(-|a - b|^2 / (2 sigma^2))`: small differences keep their digits."""

    def __init__(self, sigma: float):
        self.sigma = sigma

    def dtype(self, x: torch.Tensor, y: torch.Tensor) -> torch.dtype:
        """
        float64; but float32 for float32 vectors in so many pairs that what rounds each kernel value averages to less
        than 1e-12, on processors whose float32 products are that.
        """
        if torch.float64 in (x.dtype, y.dtype) or x.device.type != "cpu":
            return torch.float64
        square = max(float(row_norms(rows).max()) ** 2 for rows in (x, y))
        rounding = torch.finfo(torch.float32).eps * square / self.sigma**2 / math.sqrt(len(x) * len(y))
        exact = torch.get_float32_matmul_precision() == "highest"
        return torch.float32 if exact and rounding < FLOAT32_ROUNDING else torch.float64

    def prepare(
        self, rows: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:  # (n, d) -> 2 parts
        rows = rows.to(dtype) / self.sigma
        return rows, row_norms(rows).square().div(2).to(dtype)

    def tile(self, x: tuple, y: tuple, i: int, j: int, block: int) -> torch.Tensor:  # -> (block, block) or less
        rows, columns = slice(i, i + block), slice(j, j + block)
        products = x[0][rows] @ y[0][columns].T
        return products.sub_(x[1][rows, None]).sub_(y[1][columns]).expm1_()


class CubicKernel:
    """`(a.b / d + 1)^3`."""

    def dtype(self, x: torch.Tensor, y: torch.Tensor) -> torch.dtype:
        return torch.float64

    def prepare(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return rows.to(dtype) / math.sqrt(rows.shape[1])

    def tile(self, x: torch.Tensor, y: torch.Tensor, i: int, j: int, block: int) -> torch.Tensor:
        return (x[i : i + block] @ y[j : j + block].T).add_(1).pow_(3)


def row_norms(values: torch.Tensor) -> torch.Tensor:  # (n, d) -> (n,) float64
    norms = torch.empty(len(values), dtype=torch.float64, device=values.device)
    for rows, lengths in zip(values.split(ROWS), norms.split(ROWS), strict=True):  # at once it would copy all
        torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64, out=lengths)
    return norms
