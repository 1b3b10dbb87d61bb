"""Precision, recall, density and coverage against published code's values, closed forms and float64 by brute force."""

import numpy as np
import pytest
import torch

from evaluate_metrics.core import neighbours
from evaluate_metrics.core.density_coverage import density_coverage, expected_coverage
from evaluate_metrics.core.precision_recall import precision_recall, realism

CENTRES = torch.tensor([[0, 0, 0, 0], [10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0]]).float()


def draws(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def golden_sets():
    """References and predictions, in this order drawn, as for the values below."""
    a = draws(0)
    yield "A", a(200, 8), a(150, 8) * 0.8 + 0.3
    b = draws(1)
    yield "B", b(300, 2), b(300, 2) * 0.5
    c = draws(2)
    yield "C", CENTRES[torch.arange(200) % 4] + c(200, 4), CENTRES[torch.arange(120) % 2] + c(120, 4)
    h = draws(4)
    yield "H", h(500, 64), h(300, 64)


SETS = {name: pair for name, *pair in golden_sets()}
# precision, recall, density, coverage of prdc 0.2 (precision and recall of torch-fidelity 0.4.0 too), by set and k.
GOLDEN = {
    ("A", 3): (0.986667, 0.62, 1.46, 0.845), ("A", 5): (1.0, 0.69, 1.490667, 0.945),
    ("B", 3): (0.993333, 0.75, 1.024444, 0.583333), ("B", 5): (1.0, 0.816667, 1.025333, 0.71),
    ("C", 3): (0.891667, 0.465, 0.936111, 0.47), ("C", 5): (0.95, 0.485, 0.95, 0.495),
    ("H", 3): (0.653333, 0.708, 0.741111, 0.678), ("H", 5): (0.756667, 0.81, 0.814, 0.87),
}  # fmt: skip


def all_four(x, y, k):
    """Of predictions x and references y."""
    first, second = precision_recall(x, y, k), density_coverage(x, y, k)
    return first.precision, first.recall, second.density, second.coverage


def by_definition(x, y, k):
    """The same in float64 from all differences, ties within 1e-12 of a squared distance."""
    x, y = x.double(), y.double()

    def squared(a, b):
        return torch.stack([(row - b).square().sum(1) for row in a])

    own_x, own_y, cross = squared(x, x), squared(y, y), squared(x, y)
    radii_x, radii_y = (own.kthvalue(k + 1, dim=1).values for own in (own_x, own_y))
    in_y, in_x = cross <= radii_y * (1 + 1e-12), cross <= radii_x[:, None] * (1 + 1e-12)
    strictly = cross < radii_y * (1 - 1e-12)
    shares = in_y.any(1), in_x.any(0), strictly.any(0)
    precision, recall, coverage = (float(hits.double().mean()) for hits in shares)
    return precision, recall, float(strictly.sum()) / (k * len(x)), coverage


@pytest.mark.parametrize(("name", "k"), GOLDEN)
def test_values_of_published_code(name, k):
    y, x = SETS[name]
    assert all_four(x, y, k) == pytest.approx(GOLDEN[name, k], abs=5e-7)


def test_values_by_hand():
    """References 0, 1, 3, 7, 15, 31 have radii 1, 1, 2, 4, 8, 16 (k = 1) and 3, 2, 3, 6, 12, 24 (k = 2)."""
    y = torch.tensor([0.0, 1, 3, 7, 15, 31])[:, None]
    x = torch.tensor([0.5, 2, 20, 100])[:, None]
    # The second prediction is at distance 1 of two references: on the sphere of the one, which the open ball lacks.
    assert all_four(x, y, 1) == pytest.approx((0.75, 1.0, 1.25, 5 / 6))
    assert all_four(x, y, 2) == pytest.approx((0.75, 1.0, 1.125, 1.0))
    # Of the balls below the median radius 3, those of 0, 1 and 3.
    assert realism(x, y, 1).tolist() == pytest.approx([2, 2, 2 / 17, 2 / 97])
    assert realism(y[:2], y, 1).tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize(("k", "density"), [(3, 0.666667), (5, 0.793333)])
def test_copies_of_references(k, density):
    """The other set's copy of the k-th neighbour lies on the sphere: density is 1.322 and 1.2 with closed balls."""
    rows = draws(3)(50, 3).repeat(2, 1)
    assert all_four(rows[:60], rows, k) == pytest.approx((1, 1, density, 1), abs=1e-6)
    line = torch.arange(10.0)[:, None]
    assert all_four(line, line, k) == pytest.approx((1, 1, 1, 1))


def test_of_copies_beyond_k_closed_balls_hold_themselves_and_open_ones_nothing():
    rows = draws(0)(40, 6)
    assert all_four(rows, rows.repeat(5, 1), 3) == (1, 1, 0, 0)
    assert all_four(rows + 1e-3, rows.repeat(5, 1), 3)[0] == 0
    for zeros in (torch.zeros(10, 2), torch.full((10, 2), 0.1) * 1e-20):
        assert all_four(zeros[:8], zeros, 3) == (1, 1, 0, 0)
    assert all_four(-torch.zeros(8, 2), torch.zeros(10, 2), 3) == (1, 1, 0, 0)  # -0 is 0


def clusters(n, seed, spread, at):
    draw = draws(seed)
    centres = draw(4, 24) * 10
    places = torch.arange(n) % 4
    return centres[places] + spread * draw(n, 24) + at


HARD = {
    "far from the origin": lambda n, seed: draws(seed)(n, 24) + 3e3,
    "tight clusters": lambda n, seed: clusters(n, 5, 1e-5, 0.0) + 1e-5 * draws(seed)(n, 24),
    "one is far": lambda n, seed: torch.cat((draws(seed)(n - 1, 24), torch.full((1, 24), 1e6))),
    "integers, many ties": lambda n, seed: draws(seed)(n, 24).round().clamp(-1, 1)[:, :5],
    "small": lambda n, seed: draws(seed)(n, 24) * 1e-25,
    "large": lambda n, seed: draws(seed)(n, 24) * 1e25,
    "half precision": lambda n, seed: draws(seed)(n, 24).half(),
    "float64": lambda n, seed: draws(seed)(n, 24).double() + 1e7,
    "repeated": lambda n, seed: draws(6)(20, 24)[torch.arange(n) * (seed + 3) % 20],
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize(("m", "n"), [(61, 83), (83, 61)])
def test_counts_are_those_of_float64(kind, m, n):
    x, y = HARD[kind](m, 0), HARD[kind](n, 1)
    scale = float(y.double().abs().max())  # whose squares are no float64 problem either
    for k in (1, 4):
        assert all_four(x, y, k) == pytest.approx(by_definition(x.double() / scale, y.double() / scale, k), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_no_count_depends_on_blocks_or_order(seed, monkeypatch):
    draw, order = draws(seed), torch.randperm(90, generator=torch.Generator().manual_seed(seed))
    x, y = draw(90, 7), draw(110, 7)
    whole = all_four(x, y, 3)
    for tile in (1, 500, 1000):
        monkeypatch.setattr(neighbours, "TILE", tile)
        monkeypatch.setattr(neighbours, "PAIR_NUMBERS", tile)
        assert all_four(x[order], y, 3) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr(neighbours, "DENSE", 0.0)  # everything undecided goes through float64
    assert all_four(x, y, 3) == pytest.approx(whole, abs=1e-12)


def test_no_more_pairs_are_held_than_a_tile_has(monkeypatch):
    held, product = [], torch.addmm

    def spy(*args, **options):
        held.append(product(*args, **options))
        return held[-1]

    monkeypatch.setattr(neighbours, "TILE", 1000)
    monkeypatch.setattr(torch, "addmm", spy)
    draw = draws(0)
    all_four(draw(60, 5), draw(80, 5), 3)
    assert max(tile.numel() for tile in held) <= 1000
    # Two radii passes and one over both sets each, in blocks: nothing is computed twice.
    assert sum(tile.numel() for tile in held) == 60**2 + 2 * 80**2 + 2 * 60 * 80


def test_exchanging_the_sets_exchanges_precision_and_recall():
    y, x = SETS["A"]
    one, other = precision_recall(x, y), precision_recall(y, x)
    assert (one.precision, one.recall) == (other.recall, other.precision)
    assert (one.n_x, one.n_y, one.k) == (150, 200, 3)


@pytest.mark.parametrize(("n", "m", "k", "d"), [(200, 200, 5, 8), (100, 160, 3, 2), (150, 60, 5, 32)])
def test_one_distribution_has_density_1_and_the_expected_coverage(n, m, k, d):
    found = []
    for seed in range(60):
        draw = draws(seed)
        found.append(density_coverage(draw(m, d), draw(n, d), k))
    densities, coverages = np.array([r.density for r in found]), np.array([r.coverage for r in found])
    for values, mean in ((densities, 1), (coverages, expected_coverage(m, n, k))):
        assert abs(values.mean() - mean) < 4 * values.std() / 60**0.5
    # The estimated error of the density is of the size of the real one.
    assert 0.6 < np.mean([r.density_error for r in found]) / densities.std() < 1.6


def test_expected_coverage():
    assert expected_coverage(10**7, 10**7, 5) == pytest.approx(1 - 2**-5, abs=1e-6)
    # 3 references, 2 predictions, k = 1: of the 4 others the nearest is a reference in 2 of 4 cases.
    assert expected_coverage(2, 3, 1) == pytest.approx(1 - 2 / 4)
    with pytest.raises(ValueError, match="n above k; got m=2, n=3, k=3"):
        expected_coverage(2, 3, 3)


def test_errors_are_binomial():
    y, x = SETS["A"]
    result, other = precision_recall(x, y), density_coverage(x, y)
    assert result.precision_error == pytest.approx((result.precision * (1 - result.precision) / 150) ** 0.5)
    assert result.recall_error == pytest.approx((result.recall * (1 - result.recall) / 200) ** 0.5)
    assert other.coverage_error == pytest.approx((other.coverage * (1 - other.coverage) / 200) ** 0.5)
    assert density_coverage(x[:1], y).density_error is None


def test_one_prediction_has_a_density_and_a_coverage():
    y = torch.arange(7.0)[:, None]
    result = density_coverage(torch.tensor([[3.2]]), y, 2)  # radii 2, 1, 1, 1, 1, 1, 2: within 1 of 3 and of 4
    assert (result.density, result.coverage) == (1.0, pytest.approx(2 / 7))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: precision_recall(x[:4], x), "predictions must hold k \\+ 2 = 5 images or more .* got 4"),
        (lambda x: precision_recall(x, x[:4]), "references must hold k \\+ 2 = 5 images or more .* got 4"),
        (lambda x: precision_recall(x[:1], x), "predictions must hold"),
        (lambda x: density_coverage(x, x[:6]), "references must hold k \\+ 2 = 7 images or more .* got 6"),
        (lambda x: density_coverage(x[:0], x), "predictions must hold 1 vector or more"),
        (lambda x: precision_recall(x, x, 0), "k must be an integer of 1 or more, got 0"),
        (lambda x: precision_recall(x, x, True), "k must be an integer of 1 or more, got True"),
        (lambda x: precision_recall(x, x[:, :2]), "must be of one length, got 3 and 2"),
        (lambda x: density_coverage(x * torch.nan, x), "predictions hold NaN"),
        (lambda x: realism(x, torch.ones(9, 3)), "references must have balls of different radii"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call(draws(0)(9, 3))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="predictions must be .* floating-point"):
        precision_recall(torch.ones(9, 3, dtype=torch.int64), torch.ones(9, 3))
