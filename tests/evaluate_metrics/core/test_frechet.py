import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from evaluate_metrics.core.frechet import (
    cubic_mmd,
    frechet_distance,
    frechet_distance_at_infinity,
    frechet_limit,
    kernel_distance,
)
from evaluate_metrics.core.moments import Moments


def moments(embeddings):
    return Moments.zeros(embeddings.shape[1]).update(embeddings)


def gaussian(n, dim, seed, mean=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) * scale + mean


def quiet_distance(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return frechet_distance(moments(x), moments(y))


def scipy_trace(x, y):
    return np.trace(scipy.linalg.sqrtm(np.cov(x.numpy().T) @ np.cov(y.numpy().T)).real)


def eigenvalue_trace(x, y):
    return np.sqrt(np.linalg.eigvals(np.cov(x.numpy().T) @ np.cov(y.numpy().T)).astype(complex)).real.sum()


def nuclear_trace(x, y):
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    return float(torch.linalg.svdvals(x @ y.T).sum())


def by_trace(x, y, trace):
    covariances = np.trace(np.cov(x.numpy().T)) + np.trace(np.cov(y.numpy().T))
    return float((x.mean(0) - y.mean(0)).square().sum()) + covariances - 2 * trace


def test_equal_covariance_leaves_the_squared_distance_of_the_means():
    x, shift = gaussian(300, 17, 0), torch.linspace(-2, 3, 17, dtype=torch.float64)
    assert frechet_distance(moments(x), moments(x + shift)) == pytest.approx(float(shift.square().sum()), rel=1e-10)


def test_commuting_covariances():
    """|m_x - m_y|^2 + sum of (sqrt(a) - sqrt(b))^2 over the eigenvalues a, b of the common eigenvectors."""
    signs = torch.tensor(scipy.linalg.hadamard(16)[:, 1:], dtype=torch.float64)  # columns: mean 0, orthogonal
    rotation = torch.linalg.qr(gaussian(15, 15, 1)).Q
    a, b = gaussian(1, 15, 2).abs() + 0.1, gaussian(1, 15, 3).abs() + 0.1
    shift = gaussian(1, 15, 4)
    x, y = (signs * a) @ rotation, (signs * b) @ rotation + shift
    expected = float(shift.square().sum() + 16 / 15 * (a - b).square().sum())
    assert quiet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_one_dimension():
    x, y = gaussian(50, 1, 0, 1.0, 2.0), gaussian(70, 1, 1, -1.0, 0.5)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("sizes", [(400, 300), (25, 300), (300, 25), (25, 30), (2, 2)])
def test_equals_the_three_forms_of_the_trace_and_scipy(sizes):
    dim = 60
    mixing = gaussian(dim, dim, 5, scale=0.2)
    x = gaussian(sizes[0], dim, 6, mean=1.0)
    y = gaussian(sizes[1], dim, 7) @ mixing
    found = quiet_distance(x, y)
    assert found == pytest.approx(by_trace(x, y, nuclear_trace(x, y)), rel=1e-10)
    # Roots of eigenvalues that are zero but for rounding, 1e-8 each.
    singular = min(sizes) <= dim
    assert found == pytest.approx(by_trace(x, y, eigenvalue_trace(x, y)), rel=1e-6 if singular else 1e-10)
    if not singular:
        assert found == pytest.approx(by_trace(x, y, scipy_trace(x, y)), rel=1e-10)
    assert found == pytest.approx(quiet_distance(y, x), rel=1e-10)


@pytest.mark.parametrize("n", [2, 40, 150, 1000])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_distance_to_itself_is_nothing(n, mean):
    x = gaussian(n, 150, 8, mean, torch.logspace(0, -6, 150, dtype=torch.float64))
    trace = float(moments(x).covariance().trace())
    assert abs(quiet_distance(x, x)) < 1e-6 * trace


def test_orthogonal_supports():
    """Where no direction is shared, the root vanishes."""
    x, y = torch.zeros(9, 8, dtype=torch.float64), torch.zeros(7, 8, dtype=torch.float64)
    x[:, :3], y[:, 5:] = gaussian(9, 3, 0), gaussian(7, 3, 1)
    assert quiet_distance(x, y) == pytest.approx(by_trace(x, y, 0.0), rel=1e-12)


def test_constant_embeddings():
    x, y = torch.full((5, 4), 2.0), torch.full((6, 4), 3.0)
    assert quiet_distance(x, y) == pytest.approx(4.0)


def test_float32_embeddings_are_summed_in_float64():
    x, y = gaussian(500, 20, 0, mean=100.0).float(), gaussian(500, 20, 1, mean=100.0).float()
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(quiet_distance(x.double(), y.double()), rel=1e-12)


def test_warns_of_singular_covariances():
    with pytest.warns(UserWarning, match="10 dimensions from 10 images.*singular below 11"):
        frechet_distance(moments(gaussian(10, 10, 0)), moments(gaussian(99, 10, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(moments(gaussian(11, 10, 0)), moments(gaussian(99, 10, 1)))


def test_bad_moments():
    with pytest.raises(ValueError, match="one length; got 3 and 4"):
        frechet_distance(moments(gaussian(9, 3, 0)), moments(gaussian(9, 4, 0)))
    with pytest.raises(ValueError, match="y must hold 2 images or more.*got 1"):
        frechet_distance(moments(gaussian(9, 3, 0)), moments(gaussian(1, 3, 0)))


def test_limit_is_the_intercept_in_one_over_n():
    counts = [10, 20, 50, 100]
    limit = frechet_limit(counts, [3 + 40 / n for n in counts])
    assert limit.value == pytest.approx(3, rel=1e-12) and limit.standard_error == pytest.approx(0, abs=1e-10)
    assert (limit.counts, limit.distances[0]) == (counts, 7)
    # Against the textbook: mean - slope * mean, and its variance.
    noisy = np.array([7.1, 4.9, 3.7, 3.5])
    u = 1 / np.array(counts)
    slope = ((u - u.mean()) * noisy).sum() / ((u - u.mean()) ** 2).sum()
    intercept = noisy.mean() - slope * u.mean()
    variance = ((noisy - intercept - slope * u) ** 2).sum() / 2
    error = math.sqrt(variance * (1 / 4 + u.mean() ** 2 / ((u - u.mean()) ** 2).sum()))
    limit = frechet_limit(counts, noisy.tolist())
    assert (limit.value, limit.standard_error) == pytest.approx((intercept, error), rel=1e-9)
    for counts, distances in [([1, 2, 3], [1, 1, 1]), ([5, 5, 5], [1, 2, 3]), ([5, 6], [1, 2]), ([5, 6, 7], [1, 2])]:
        with pytest.raises(ValueError, match="counts and distances"):
            frechet_limit(counts, distances)


def test_infinity_takes_most_of_the_bias_away():
    x, reference = gaussian(1000, 30, 0), moments(gaussian(50_000, 30, 1))
    limit = frechet_distance_at_infinity(x, reference, seed=3)
    again, other = (frechet_distance_at_infinity(x, reference, seed=seed) for seed in (3, 4))
    # Not to the bit: a BLAS may sum in another order where memory is aligned in another way.
    assert again.value == pytest.approx(limit.value, abs=1e-12) != other.value
    assert again.distances == pytest.approx(limit.distances, rel=1e-12)
    assert limit.counts[0] == 100 and limit.counts[-1] == 1000 and len(limit.counts) == 15
    whole = frechet_distance(moments(x), reference)
    assert limit.distances[-1] == pytest.approx(whole, rel=1e-10) and whole > 0.2
    assert abs(limit.value) < whole / 3 and limit.standard_error < whole / 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frechet_distance_at_infinity(x[:62], reference, points=3).counts == [31, 46, 62]
    with pytest.warns(UserWarning, match="30 dimensions, from 6 to 60 images and 50000 references, is no estimate"):
        frechet_distance_at_infinity(x[:60], reference)
    for wrong in (x[:19], x[0]):
        with pytest.raises(ValueError, match="n >= 20"):
            frechet_distance_at_infinity(wrong, reference)
    with pytest.raises(ValueError, match="points must be 3 or more; got 2"):
        frechet_distance_at_infinity(x, reference, points=2)


def loop_mmd(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_cubic_mmd_equals_a_double_loop():
    x, y = gaussian(9, 5, 0), gaussian(13, 5, 1, mean=1.0)
    assert cubic_mmd(x, y) == pytest.approx(loop_mmd(x, y), rel=1e-12)
    x, y = x.float(), y.float()
    assert cubic_mmd(x, y) == pytest.approx(loop_mmd(x.double(), y.double()), rel=1e-12)


def test_kernel_distance():
    x, y = gaussian(40, 6, 0), gaussian(30, 6, 1, mean=0.5)
    mean, spread = kernel_distance(x, y, subsets=4, subset_size=30)
    whole_y = [cubic_mmd(x[chosen], y) for chosen in _subsets_of_x(40, 30, 4)]
    assert mean == pytest.approx(np.mean(whole_y), rel=1e-12) and spread == pytest.approx(np.std(whole_y), rel=1e-9)
    assert kernel_distance(x[:30], y, subsets=3, subset_size=30)[1] == pytest.approx(0, abs=1e-12)
    one, again, other = (kernel_distance(x, y, subset_size=10, seed=seed) for seed in (1, 1, 2))
    assert again == pytest.approx(one, rel=1e-12) != other
    same, spread = kernel_distance(x, gaussian(40, 6, 9), subsets=50, subset_size=20)
    assert abs(same) < spread < mean


def _subsets_of_x(n, size, subsets):
    generator = torch.Generator().manual_seed(0)
    for _ in range(subsets):
        yield torch.randperm(n, generator=generator)[:size]
        torch.randperm(size, generator=generator)


def test_bad_kernel_distance():
    x, y = gaussian(40, 6, 0), gaussian(30, 6, 1)
    for size in (31, 1, 1000):
        with pytest.raises(ValueError, match=f"2 to the number of images of the smaller set, 30; got {size}"):
            kernel_distance(x, y, subset_size=size)
    with pytest.raises(ValueError, match="subsets must be 1 or more; got 0"):
        kernel_distance(x, y, subsets=0, subset_size=9)
    with pytest.raises(ValueError, match=r"got \(40, 6\) and \(30, 5\)"):
        kernel_distance(x, y[:, :5])
