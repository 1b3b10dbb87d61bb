"""Loss correction with a transition matrix (Patrini et al. 2017): forward and backward."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .base import LossInputs, StatefulLoss

# Beyond this condition number the inverse says more about rounding than about the noise.
MAX_CONDITION = 1e6


def check_transition_matrix(matrix: np.ndarray | Tensor | list) -> np.ndarray:
    """`matrix` as float64 (K, K), T[i, j] = P(given = j | clean = i).

    Raises:
        ValueError: not square with K >= 2, an entry below 0, a row that does not sum to 1 (within 1e-4), or singular.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"transition_matrix must have shape (K, K) with K >= 2, got {matrix.shape}")
    if not (matrix >= 0).all():  # written so that nan fails too
        raise ValueError(f"transition_matrix must have entries >= 0, got {matrix[~(matrix >= 0)][0]}")
    sums = matrix.sum(1)
    worst = int(np.argmax(abs(sums - 1)))
    if not math.isclose(sums[worst], 1, abs_tol=1e-4):
        raise ValueError(f"transition_matrix must have rows that sum to 1, row {worst} sums to {sums[worst]:.6g}")
    condition = np.linalg.cond(matrix)
    if not condition < MAX_CONDITION:
        raise ValueError(
            f"transition_matrix must be invertible, its condition number is {condition:.3g} "
            f"(allowed below {MAX_CONDITION:g})"
        )
    return matrix


class _Correction(StatefulLoss):
    needs = ("transition_matrix",)
    matrix: Tensor

    def __init__(self, transition_matrix: np.ndarray):
        super().__init__()
        self.register_buffer("matrix", self._stored(torch.from_numpy(transition_matrix)), persistent=False)

    def _stored(self, matrix: Tensor) -> Tensor:
        raise NotImplementedError

    def _matrix(self, x: LossInputs) -> Tensor:
        if len(self.matrix) != x.num_classes:
            raise ValueError(f"transition_matrix has {len(self.matrix)} rows, the logits have {x.num_classes} classes")
        return self.matrix.to(x.logp.device, x.dtype)


class Forward(_Correction):
    """Forward correction, -log (T^t p)_y = -log sum_i T[i, y] p_i: cross-entropy of the noisy label's probability.

    Its minimiser is that of cross-entropy on clean labels, for any invertible T.

    Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
    arXiv:1609.03683, theorem 2.
    """

    def _stored(self, matrix: Tensor) -> Tensor:
        return matrix.T.log().contiguous()

    def forward(self, x: LossInputs) -> Tensor:
        return -(self._matrix(x)[x.labels] + x.logp).logsumexp(1)


class Backward(_Correction):
    """Backward correction, sum_j (T^-1)[y, j] CE_j with CE_j = -log p_j: unbiased for the clean loss; may be negative.

    Infinite where any p_j is 0: a masked class (a logit of -inf) is a `ValueError`.

    Patrini et al. 2017, "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
    arXiv:1609.03683, theorem 1.
    """

    def _stored(self, matrix: Tensor) -> Tensor:
        return matrix.inverse()

    def forward(self, x: LossInputs) -> Tensor:
        return x.refuse_masked("backward", -(self._matrix(x)[x.labels] * x.logp).sum(1))
