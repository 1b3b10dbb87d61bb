import math
import subprocess
import sys
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from evaluate_metrics.core.mmd import cmmd, kid, permutation_test
from evaluate_metrics.core.moments import Moments


def unit(x):
    x = torch.as_tensor(x, dtype=torch.float32)
    return x / x.norm(dim=1, keepdim=True)


def cloud(n, d, shift=0.0, seed=0):
    """Unit vectors, unlike in their directions: standard deviations from 0.1 to 2, all moved by `shift`."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(n, d, generator=generator) * torch.linspace(0.1, 2, d) + shift)


def clusters(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, d, generator=generator)
    return unit(centres[torch.randint(4, (n,), generator=generator)] + 0.1 * torch.randn(n, d, generator=generator))


def digits(label):
    """Real images: 8 x 8 handwritten digits, as unit vectors of 64 pixels."""
    data = load_digits()
    return unit(data.data[data.target == label])


SETS = {
    "random": (cloud(41, 24, 0.1), cloud(29, 24, 0.4, seed=1)),
    "one distribution": (cloud(60, 16, 0.3), cloud(50, 16, 0.3, seed=1)),
    "clustered": (clusters(50, 12), clusters(37, 12, seed=1)),
    "digits": (digits(3)[:45], digits(8)[:52]),
    "opposite": (cloud(20, 5, 4.0), -cloud(31, 5, 4.0, seed=1)),
    "two and three": (cloud(2, 7), cloud(3, 7, seed=1)),
    "one and one": (cloud(1, 7), cloud(1, 7, seed=1)),
}


def double_loop(x, y, kernel):
    """Means of the kernel over all pairs and over pairs of different embeddings, Python floats one by one."""
    x, y = x.double().tolist(), y.double().tolist()

    def mean(a, b, same=True):
        values = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if same or i != j]
        return math.fsum(values) / max(len(values), 1)

    cross = mean(x, y)
    return mean(x, x) + mean(y, y) - 2 * cross, mean(x, x, False) + mean(y, y, False) - 2 * cross


def gaussian(sigma):
    return lambda p, q: math.exp(-math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / (2 * sigma**2))


@pytest.mark.parametrize("method", ["moments", "pairwise"])
def test_one_image_against_one_has_a_closed_form(method):
    basis = torch.eye(3)
    for other, exact in ((basis[1:2], 2 - 2 * math.exp(-0.01)), (-basis[:1], 2 - 2 * math.exp(-0.02))):
        result = cmmd(basis[:1], other, method=method)
        assert result.value == result.biased <= 1000 * exact + 1e-9
        assert 1000 * exact - result.biased <= result.error_bound + 1e-9
        assert result.unbiased is None and result.standard_error is None
        assert (result.n_x, result.n_y) == (1, 1)
    assert cmmd(basis[:1], basis[1:2], method="pairwise").value == pytest.approx(19.9003, abs=1e-4)
    assert cmmd(basis[:1], -basis[:1], method="pairwise").value == pytest.approx(39.6027, abs=1e-4)


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_pairwise_equals_a_float64_double_loop(sets, sigma):
    x, y = SETS[sets]
    biased, unbiased = double_loop(x, y, gaussian(sigma))
    result = cmmd(x, y, sigma=sigma, method="pairwise", block=16)
    assert result.biased == result.value == pytest.approx(1000 * biased, abs=1e-9)
    if sets != "one and one":
        assert result.unbiased == pytest.approx(1000 * unbiased, abs=1e-9)
        assert cmmd(x, y, sigma=sigma, method="pairwise", unbiased=True).value == pytest.approx(
            1000 * unbiased, abs=1e-9
        )
    assert result.error_bound == 0


def test_pairwise_takes_vectors_of_any_norm_and_dtype():
    x, y = cloud(15, 9).double() * 30, cloud(22, 9, seed=2).double() * 25
    biased, unbiased = double_loop(x, y, gaussian(10))
    assert cmmd(x, y, method="pairwise").biased == pytest.approx(1000 * biased, abs=1e-9)
    result = cmmd(x.numpy(), y.numpy(), scale=1.0, method="pairwise", block=5)
    assert result.unbiased == pytest.approx(unbiased, abs=1e-12)
    half = x.half()
    assert cmmd(half, y, method="pairwise") == pytest.approx(cmmd(half.double(), y, method="pairwise"), abs=1e-9)


@pytest.mark.parametrize("sets", SETS)
@pytest.mark.parametrize("sigma", [10.0, 3.0, 1.0, 0.4])
def test_moments_are_below_the_pairwise_value_and_within_their_bound(sets, sigma):
    x, y = (values.double() / values.double().norm(dim=1, keepdim=True) for values in SETS[sets])
    exact = cmmd(x, y, sigma=sigma, method="pairwise")
    fast = cmmd(x, y, sigma=sigma)
    assert -1e-9 <= exact.biased - fast.biased <= fast.error_bound + 1e-9
    g = 1 / sigma**2
    assert fast.error_bound <= 4000 * math.exp(-g) * (math.exp(g) - 1 - g - g**2 / 2) * (1 + 1e-6)
    if sets != "one and one":
        assert abs(exact.unbiased - fast.unbiased) <= fast.error_bound + 1e-9
    if sigma == 10:
        assert fast.error_bound <= 6.7e-4


def test_moments_of_float32_embeddings_at_scale():
    x, y = cloud(3000, 96, 0.3), cloud(2000, 96, 0.32, seed=1)
    exact, fast = cmmd(x, y, method="pairwise"), cmmd(x, y)
    assert -1e-9 <= exact.biased - fast.biased <= fast.error_bound
    assert exact.biased - fast.biased < 1e-5
    assert fast.standard_error == pytest.approx(exact.standard_error, rel=0.02)


def test_float32_products_of_many_vectors_give_the_float64_value():
    x, y = cloud(3100, 64, 0.3), cloud(3000, 64, 0.31, seed=1)
    exact = cmmd(x.double(), y.double(), method="pairwise")
    found = cmmd(x, y, method="pairwise")
    assert found.biased != exact.biased  # another path
    assert found.biased == pytest.approx(exact.biased, abs=1e-9)
    assert found.unbiased == pytest.approx(exact.unbiased, abs=1e-9)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=1e-4)
    torch.set_float32_matmul_precision("medium")
    try:
        assert cmmd(x, y, method="pairwise") == pytest.approx(exact, abs=1e-12)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("method", ["moments", "pairwise"])
@pytest.mark.parametrize("sets", ["random", "clustered", "digits", "two and three"])
def test_biased_and_unbiased_differ_by_the_spread_of_each_set(method, sets):
    x, y = SETS[sets]
    result = cmmd(x, y, method=method)
    spread = 0.0
    for values in (x.double(), y.double()):
        n = len(values)
        kernel = torch.exp(-(torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 200)
        spread += 1000 * (1 - float(kernel.sum() - n) / (n * (n - 1))) / n
    assert result.biased - result.unbiased == pytest.approx(spread, abs=1e-9 + 2 * result.error_bound)


@pytest.mark.parametrize("method", ["moments", "pairwise"])
def test_identical_sets_symmetry_and_order(method):
    x, y = SETS["random"]
    same = cmmd(x, x, method=method)
    assert 0 <= same.biased < 1e-10 and same.unbiased < 0
    forth, back = cmmd(x, y, method=method, block=8), cmmd(y, x.flip(0), method=method, block=11)
    for name in ("biased", "unbiased", "standard_error", "error_bound"):
        assert getattr(forth, name) == pytest.approx(getattr(back, name), rel=1e-9, abs=1e-11)
    assert (forth.n_x, forth.n_y) == (back.n_y, back.n_x) == (41, 29)


def test_moments_stand_for_their_embeddings():
    x, y = SETS["random"]
    whole = Moments.zeros(24).update(x[:10]).merge(Moments.zeros(24).update(x[10:]))
    for result in (cmmd(whole, y), cmmd(whole, Moments.zeros(24).update(y))):
        assert result.value == pytest.approx(cmmd(x, y).value, abs=1e-10)


@pytest.mark.parametrize("block", [1, 7, 41, 1000])
def test_blocks_do_not_change_the_result(block):
    x, y = SETS["random"]
    assert cmmd(x, y, method="pairwise", block=block) == pytest.approx(cmmd(x, y, method="pairwise"), abs=1e-11)


@pytest.mark.parametrize(("m", "n", "d", "shift"), [(40, 60, 12, 0.3), (50, 35, 12, 0.0), (90, 60, 6, 0.1)])
def test_the_standard_error_is_that_of_repeated_draws(m, n, d, shift):
    fast, slow, values = [], [], []
    for seed in range(400):
        x, y = cloud(m, d, 0.3, 2 * seed), cloud(n, d, 0.3 + shift, 2 * seed + 1)
        result = cmmd(x, y)
        values.append((result.biased, result.unbiased))
        fast.append(result.standard_error)
        if seed < 100:
            slow.append(cmmd(x, y, method="pairwise").standard_error)
    for spread in np.std(values, axis=0):
        # The first order, 0 without a difference, is estimated on either side of 0 and never taken below it.
        low, high = (0.87, 1.15) if shift == 0.3 else (0.95, 1.4)
        assert low < np.sqrt(np.mean(np.square(fast))) / spread < high
        assert low < np.sqrt(np.mean(np.square(slow))) / spread < high


@pytest.mark.parametrize("sets", ["random", "one distribution", "clustered", "digits", "opposite"])
def test_both_methods_have_one_standard_error_where_the_kernel_is_linear(sets):
    # All its terms are U-statistics, of which there is one for each expectation: two ways to it, one number.
    x, y = SETS[sets]
    fast, slow = (cmmd(x, y, sigma=300.0, method=method).standard_error for method in ("moments", "pairwise"))
    assert fast == pytest.approx(slow, rel=2e-4)


def test_unbiased_means_unbiased():
    values = [cmmd(cloud(5, 8, 0.2, 2 * seed), cloud(9, 8, 0.2, 2 * seed + 1)) for seed in range(1500)]
    unbiased, biased = (np.array([getattr(value, name) for value in values]) for name in ("unbiased", "biased"))
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(len(values))
    assert biased.mean() > 1


def test_kid_equals_a_float64_double_loop():
    x, y = cloud(13, 10).double() * 5, cloud(17, 10, 0.3, seed=1).double() * 5
    biased, unbiased = double_loop(
        x, y, lambda p, q: (math.fsum(a * b for a, b in zip(p, q, strict=True)) / 10 + 1) ** 3
    )
    result = kid(x, y, block=4)
    assert result.value == result.unbiased == pytest.approx(unbiased, abs=1e-9)
    assert kid(x, y, unbiased=False).value == pytest.approx(biased, abs=1e-9)
    assert result.standard_error > 0


def test_permutation_p_values_are_uniform_for_halves_of_one_set():
    p_values = []
    for seed in range(200):
        x = cloud(36, 6, 0.3, seed)
        p_values.append(permutation_test(x[:16], x[16:], permutations=99, seed=seed).p_value)
    p_values = np.sort(p_values)
    grid = np.arange(1, 201) / 200
    distance = max(np.abs(p_values - grid).max(), np.abs(p_values - grid + 1 / 200).max())
    assert distance < 1.63 / math.sqrt(200)  # Kolmogorov-Smirnov at 1 %, p_values being multiples of 1 %
    assert p_values.min() >= 0.01


def test_permutation_p_value_is_the_share_of_all_regroupings():
    x, y = cloud(4, 5, 0.2), cloud(3, 5, 0.9, seed=3)
    pooled = torch.cat((x, y))
    values = []
    for chosen in combinations(range(7), 4):
        inside = torch.zeros(7, dtype=torch.bool)
        inside[list(chosen)] = True
        values.append(cmmd(pooled[inside], pooled[~inside], method="pairwise").biased)
    exact = np.mean(np.array(values) >= values[0] - 1e-12)
    test = permutation_test(x, y, permutations=4000, block=3)
    assert test.value == pytest.approx(values[0], abs=1e-9) and test.permutations == 4000
    assert test.p_value == pytest.approx(exact, abs=0.03)


def test_permutations_find_a_difference_and_are_reproducible():
    x, y = digits(3)[:40], digits(8)[:50]
    assert permutation_test(x, y, permutations=199).p_value == 1 / 200
    assert permutation_test(x, x, permutations=50).p_value == 1
    a, b = digits(3)[:80:2], digits(3)[1:101:2]  # of the same writers
    one, again, other = (permutation_test(a, b, seed=seed) for seed in (3, 3, 4))
    assert again == pytest.approx(one, rel=1e-9)  # a BLAS may sum in another order
    assert again.p_value == one.p_value != other.p_value
    assert permutation_test(a, b, block=7).p_value == permutation_test(a, b).p_value


PROCESS = """
import sys
import torch
from evaluate_metrics.core.mmd import cmmd, kid

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
x, y = torch.load(f"{folder}/sets.pt", weights_only=True)
results = cmmd(x, y, method="pairwise", block=8, distributed=True), kid(x, y, block=9, distributed=True)
torch.save([list(result) for result in results], f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_the_number_of_processes_does_not_change_the_result(tmp_path):
    x, y = SETS["random"]
    torch.save((x, y), tmp_path / "sets.pt")
    runs = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for found, alone in zip(results, (cmmd(x, y, method="pairwise"), kid(x, y)), strict=True):
            assert found == pytest.approx(list(alone), abs=1e-11)


X, Y = torch.eye(4)[:3], torch.eye(4)[1:]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"sigma": 0}, ValueError, "sigma must be positive, got 0"),
        ({"sigma": -1.0, "method": "pairwise"}, ValueError, "sigma must be positive, got -1.0"),
        ({"sigma": float("nan")}, ValueError, "sigma must be positive, got nan"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"block": 0, "method": "pairwise"}, ValueError, "block must be positive"),
        ({"method": "fast"}, ValueError, "method must be 'moments' or 'pairwise', got 'fast'"),
        ({"x": X[:0]}, ValueError, "x has 0 embeddings, at least 1 is needed"),
        ({"y": X[:0], "method": "pairwise"}, ValueError, "y has 0 embeddings, at least 1 is needed"),
        ({"y": X[:1], "unbiased": True}, ValueError, "y has 1 embeddings, unbiased=True needs at least 2"),
        ({"x": X[:1], "unbiased": True, "method": "pairwise"}, ValueError, "x has 1 embeddings, unbiased=True"),
        ({"x": X[:, :3]}, ValueError, "embeddings of one length, got 3 and 4"),
        ({"x": X[:, :3], "method": "pairwise"}, ValueError, "embeddings of one length, got 3 and 4"),
        (
            {"x": X * torch.tensor([[1], [2], [1]])},
            ValueError,
            "unit vectors, but 1 of 3 rows of x are not: row 1 has norm 2",
        ),
        ({"y": Moments.zeros(4).update(3 * Y)}, ValueError, "those of y have a mean squared norm of 9"),
        (
            {"x": Moments.zeros(4).update(X), "method": "pairwise"},
            ValueError,
            "x are moments, pairs need the embeddings",
        ),
        ({"x": X * float("nan")}, ValueError, "x hold NaN or infinity in 3 of 3 rows"),
        ({"x": X.int()}, TypeError, "x must be .*floating-point numbers, got torch.int32"),
        ({"x": X.tolist()}, TypeError, "x must be .*got list"),
        ({"distributed": True}, ValueError, "distributed is for method='pairwise'"),
        ({"distributed": True, "method": "pairwise"}, ValueError, "needs torch.distributed.init_process_group"),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        cmmd(**{"x": X, "y": Y, **arguments})


def test_bad_input_of_the_others_is_refused():
    with pytest.raises(ValueError, match="permutations must be positive, got 0"):
        permutation_test(X, Y, permutations=0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        permutation_test(X, Y, sigma=0)
    with pytest.raises(ValueError, match="x has 1 embeddings, unbiased=True"):
        kid(X[:1], Y)
    with pytest.raises(ValueError, match="y are moments"):
        permutation_test(X, Moments.zeros(4).update(Y))


@pytest.mark.parametrize(("m", "n", "in_x"), [(9, 9, 6), (7, 12, 5), (13, 6, 7), (10, 11, 6)])
def test_regroupings_that_tie_with_the_observed_one_count_as_large(m, n, in_x):
    """
    Of two vectors alone, 9 times the one and m + n - 9 times the other, `in_x` of the first kind in x: the value is
    `(k / m - (9 - k) / n)^2` times a constant, k being hypergeometric.
    """
    draw = torch.Generator().manual_seed(m)
    kinds = torch.nn.functional.normalize(torch.randn(2, 40, generator=draw), dim=1)
    x = kinds[torch.tensor([0] * in_x + [1] * (m - in_x))]
    y = kinds[torch.tensor([0] * (9 - in_x) + [1] * (n - 9 + in_x))]

    def difference(k):
        return abs(Fraction(k, m) - Fraction(9 - k, n))

    counts = {k: math.comb(m, k) * math.comb(n, 9 - k) for k in range(max(0, 9 - n), min(9, m) + 1)}
    total = math.comb(m + n, 9)
    exact = sum(ways for k, ways in counts.items() if difference(k) >= difference(in_x)) / total
    without_ties = sum(ways for k, ways in counts.items() if difference(k) > difference(in_x)) / total
    found = permutation_test(x, y, permutations=4999, seed=1)
    error = 4 * math.sqrt(exact * (1 - exact) / 4999) + 1 / 5000
    assert abs(found.p_value - exact) < error < (exact - without_ties) / 5
