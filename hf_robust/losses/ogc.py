"""Optimised gradient clipping: cross-entropy and its relatives with a bound on |dL/dp| that follows the training."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import NON_NEGATIVE, POSITIVE, UNIT_INTERVAL, LossInputs, StatefulLoss, expm1, whole_number
from .cross_entropy import focal_term

# Probabilities are taken within [1e-7, 1 - 1e-7], as in the paper's code; h = -log p_y then lies in these bounds.
LOG_P_MIN = math.log(1e-7)
H_MIN, H_MAX = -math.log1p(-1e-7), -LOG_P_MIN
GRID = np.linspace(H_MIN, H_MAX, 1000)


class _OptimisedGradientClipping(StatefulLoss):
    """A base loss L(p_y), continued by its tangent below a threshold p_t: |dL/dp_y| is at most tau = |L'(p_t)|.

    The threshold follows the training. The last `queue` values of h = -log p_y are kept; every `interval` optimizer
    steps a mixture of two normal distributions is fitted to them, the component of smaller mean taken as that of clean
    samples, and p_t becomes the smallest threshold for which the expected gradient of noisy samples is at most
    1 + learning_rate epsilon times that of clean ones. Until the queue is full p_t is 1e-7. Queue
    and threshold are saved with a checkpoint. In evaluation mode: the base loss with the threshold of the moment.

    Here steps are optimizer steps, and the queue holds the samples of all processes, so that the result does not
    depend on how a batch is split. The paper's code solves for p_t by 10 bisections, here it is solved exactly; the
    mixture is fitted with the code's constants, 1e-3 added to each variance and at most 10 steps.

    Ye et al. 2025, "Optimized Gradient Clipping for Noisy Label Learning", AAAI 2025, arXiv:2412.08941.
    """

    needs = ("learning_rate",)
    domains = {"epsilon": POSITIVE, "interval": whole_number(1), "queue": whole_number(2)}

    def __init__(self, *, epsilon: float = 20.0, interval: int = 32, queue: int = 4096):
        super().__init__()
        self.epsilon, self.interval, self.queue = epsilon, int(interval), int(queue)
        for name in ("log_threshold", "recent", "steps"):
            self.register_buffer(name, None)
        self._reset()

    def _reset(self) -> None:
        self.log_threshold = torch.tensor(LOG_P_MIN, dtype=torch.float64)
        self.recent = torch.empty(0)
        self.steps = torch.zeros((), dtype=torch.int64)

    def prepare(self, num_samples: int) -> None:
        self._reset()

    def base(self, logp_y: Tensor) -> Tensor:
        """L of log p_y."""
        raise NotImplementedError

    def slope(self, p: Any) -> Any:
        """|dL/dp|, which falls with p."""
        raise NotImplementedError

    def forward(self, x: LossInputs) -> Tensor:
        if self.training:
            h = -x.logp_y.detach().float().clamp(LOG_P_MIN, -H_MIN)
            h = self.gather(torch.where(x.keep, h, torch.nan))
            self.recent = torch.cat([self.recent.to(h.device), h[~h.isnan()]])[-self.queue :]
        threshold = self.log_threshold.to(x.logp_y)
        tau = float(self.slope(math.exp(self.log_threshold.item())))
        tangent = self.base(threshold) + tau * (threshold.exp() - x.logp_y.exp())
        # Above the threshold alone, so that its own gradient, which may be huge, is not multiplied by 0.
        base = self.base(torch.maximum(x.logp_y, threshold))
        return torch.where(x.logp_y <= threshold, tangent, base)

    def step(self, learning_rate: float) -> None:
        self.steps += 1
        if self.steps.item() % self.interval == 0 and len(self.recent) == self.queue:
            clean, noisy = _fit(self.recent.double().cpu().numpy())
            threshold = self._solve(clean, noisy, 1 + learning_rate * self.epsilon)
            self.log_threshold.fill_(math.log(threshold))

    def _solve(self, clean: np.ndarray, noisy: np.ndarray, allowed: float) -> float:
        # `clean` and `noisy` are densities on GRID. The ratio is 1 at the least h = -log p_t and rises with it, unless
        # the component of clean samples is much the wider one.
        slopes = self.slope(np.exp(-GRID))

        def ratio(h: float) -> float:
            clipped = np.minimum(slopes, self.slope(math.exp(-h)))
            return (noisy @ clipped / noisy.sum()) / (clean @ clipped / clean.sum())

        low, high = H_MIN, H_MAX
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if ratio(middle) <= allowed else (low, middle)
        return math.exp(-high if ratio(high) <= allowed else -low)


def _fit(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Densities on GRID of the two components (clean, noisy) fitted to h; their scale is without meaning."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture  # half a second to import, and only this loss needs it

    # Both are the paper's code's. With scikit-learn's own, 1e-6 and 100, a component of a network that has memorised
    # its labels collapses, and the bound with it: training would stop.
    mixture = GaussianMixture(n_components=2, reg_covar=1e-3, max_iter=10, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 10 steps are what is wanted
        mixture.fit(h[:, None])
    means, variances = mixture.means_.ravel(), mixture.covariances_.ravel()
    densities = [np.exp(-((GRID - means[i]) ** 2) / (2 * variances[i])) for i in np.argsort(means)]
    return densities[0], densities[1]


class OgcCe(_OptimisedGradientClipping):
    """Optimised gradient clipping of cross-entropy."""

    def base(self, logp_y: Tensor) -> Tensor:
        return -logp_y

    def slope(self, p: Any) -> Any:
        return 1 / p


class OgcFl(_OptimisedGradientClipping):
    """Optimised gradient clipping of focal loss; the focal weight has its gradient."""

    domains = {**_OptimisedGradientClipping.domains, "gamma": NON_NEGATIVE}

    def __init__(self, *, gamma: float = 0.5, epsilon: float = 20.0, interval: int = 32, queue: int = 4096):
        super().__init__(epsilon=epsilon, interval=interval, queue=queue)
        self.gamma = gamma

    def base(self, logp_y: Tensor) -> Tensor:
        return -focal_term(logp_y, self.gamma, False)

    def slope(self, p: Any) -> Any:
        return (1 - p) ** self.gamma / p - self.gamma * (1 - p) ** (self.gamma - 1) * np.log(p)


class OgcGce(_OptimisedGradientClipping):
    """Optimised gradient clipping of generalised cross-entropy."""

    domains = {**_OptimisedGradientClipping.domains, "q": UNIT_INTERVAL}

    def __init__(self, *, q: float = 0.7, epsilon: float = 20.0, interval: int = 32, queue: int = 4096):
        super().__init__(epsilon=epsilon, interval=interval, queue=queue)
        self.q = q

    def base(self, logp_y: Tensor) -> Tensor:
        return expm1(self.q * logp_y) / -self.q

    def slope(self, p: Any) -> Any:
        return p ** (self.q - 1)
