"""The losses with state, two views or a transition matrix, each against its definition in numpy."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from hf_robust.losses import get_loss

CLASSES = 5
MATRIX = np.array(
    [
        [0.6, 0.1, 0.1, 0.1, 0.1],
        [0.0, 0.8, 0.2, 0.0, 0.0],
        [0.3, 0.0, 0.6, 0.1, 0.0],
        [0.05, 0.1, 0.15, 0.7, 0.0],
        [0.0, 0.0, 0.0, 0.4, 0.6],
    ]
)
H_MIN, H_MAX = -math.log(1 - 1e-7), -math.log(1e-7)


def random_batch(size, seed=0, dtype=torch.float32, views=1, scale=2.0, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(views * size, classes, generator=generator, dtype=dtype)
    return logits, torch.randint(classes, (size,), generator=generator)


def log_softmax(logits):  # (B, K) tensor -> (B, K) float64 numpy
    z = logits.detach().double().numpy()
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def through_softmax(by_p, p):
    """The gradient by the logits of a gradient by the probabilities."""
    return p * (by_p - (by_p * p).sum(1, keepdims=True))


def epochs_of_batches(samples, batch, epochs, dtype=torch.float32, ignored=True, scale=2.0):
    """(epoch, index, logits, labels) of shuffled epochs, with a short last batch; some labels are -100."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, CLASSES, samples))
    if ignored:
        labels[::7] = -100
    drift = scale * torch.from_numpy(rng.standard_normal((samples, CLASSES)))
    for epoch in range(epochs):
        drift = drift + torch.from_numpy(rng.standard_normal((samples, CLASSES)))
        for index in torch.from_numpy(rng.permutation(samples)).split(batch):
            yield epoch, index, drift[index].to(dtype), labels[index]


def value_and_gradient(loss, logits, labels, **extras):
    """Per-sample losses and the gradient of their sum, as float64 numpy."""
    logits = logits.clone().requires_grad_()
    losses = loss(logits, labels, "none", **extras)
    losses.sum().backward()
    return losses.detach().double().numpy(), logits.grad.double().numpy()


# --- ELR


@pytest.mark.parametrize("dtype, scale", [(torch.float32, 2), (torch.float64, 2), (torch.float64, 8)])
@pytest.mark.parametrize("lam, beta", [(3.0, 0.7), (1.0, 0.9), (0.5, 0.0)])
def test_elr_is_its_definition_over_several_epochs(lam, beta, dtype, scale):
    """With scale 8 many probabilities are clamped, and have no gradient through the second term."""
    loss = get_loss(f"elr(lam={lam}, beta={beta})")
    loss.prepare(40)
    t, clamped = np.zeros((40, CLASSES)), 0
    for epoch, index, logits, labels in epochs_of_batches(40, 16, 4, dtype, scale=scale):
        losses, gradient = value_and_gradient(loss, logits, labels, index=index, epoch=epoch)
        logp, i, y = log_softmax(logits), index.numpy(), labels.numpy()
        q, keep = np.exp(logp).clip(1e-4, 1 - 1e-4), y >= 0
        new = beta * t[i] + (1 - beta) * q / q.sum(1, keepdims=True)
        inner = (new * q).sum(1, keepdims=True)
        one_hot = np.eye(CLASSES)[y.clip(0)]
        expected = -(one_hot * logp).sum(1) + lam * np.log(1 - inner[:, 0])
        inside = (np.exp(logp) >= 1e-4) & (np.exp(logp) <= 1 - 1e-4)
        clamped += (~inside).sum()
        by_logits = np.exp(logp) - one_hot + through_softmax(-lam * new / (1 - inner) * inside, np.exp(logp))
        # The averages are float32; where t and p are nearly one-hot, 1 - <t, p> is 2e-4 and knows them to 1e-3.
        atol = 2e-5 if scale == 2 else 2e-3
        np.testing.assert_allclose(losses, expected * keep, atol=atol, rtol=1e-5)
        np.testing.assert_allclose(gradient, by_logits * keep[:, None], atol=atol, rtol=1e-5)
        t[i[keep]] = new[keep]
        np.testing.assert_allclose(loss.stateful["0"].targets.numpy(), t, atol=1e-6)
    assert clamped > 50 or scale == 2
    assert not t[::7].any() and (t.sum(1)[t.any(1)] > 1 - beta**4 - 1e-9).all()


def test_elr_with_lam_0_is_cross_entropy_and_so_it_is_in_evaluation_mode():
    logits, labels = random_batch(12)
    loss = get_loss("elr(lam=0)")
    loss.prepare(12)
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels, "none", index=torch.arange(12)), cross_entropy)
    torch.testing.assert_close(get_loss("elr").eval()(logits, labels, "none"), cross_entropy)


def test_two_elr_terms_have_a_memory_each():
    loss = get_loss("elr(beta=0.5) + 2*elr(beta=0.9, lam=1)")
    alone = [get_loss("elr(beta=0.5)"), get_loss("elr(beta=0.9, lam=1)")]
    for each in (loss, *alone):
        each.prepare(40)
    for epoch, index, logits, labels in epochs_of_batches(40, 16, 3):
        together = loss(logits, labels, "none", index=index, epoch=epoch)
        first, second = (each(logits, labels, "none", index=index, epoch=epoch) for each in alone)
        torch.testing.assert_close(together, first + 2 * second)
    assert not torch.equal(loss.stateful["0"].targets, loss.stateful["1"].targets)


# --- Optimised gradient clipping

BASES = {
    "ogc_ce": lambda p: -np.log(p),
    "ogc_fl(gamma=0.5)": lambda p: -((1 - p) ** 0.5) * np.log(p),
    "ogc_fl(gamma=2)": lambda p: -((1 - p) ** 2) * np.log(p),
    "ogc_gce(q=0.7)": lambda p: (1 - p**0.7) / 0.7,
    "ogc_gce(q=0.2)": lambda p: (1 - p**0.2) / 0.2,
}


def steepness(base, p):
    """|dL/dp| by a central difference."""
    step = 1e-5 * np.minimum(p, 1 - p)
    return (base(p - step) - base(p + step)) / (2 * step)


def threshold_by_search(base, h, allowed):
    """The smallest p_t for which E_noisy[min(|L'|, |L'(p_t)|)] <= allowed E_clean[the same]: every one is tried."""
    mixture = GaussianMixture(2, reg_covar=1e-3, max_iter=10, random_state=0).fit(np.asarray(h, np.float64)[:, None])
    order = np.argsort(mixture.means_[:, 0])
    means, sds = mixture.means_[order, 0], mixture.covariances_[order, 0, 0] ** 0.5
    places = np.linspace(H_MIN, H_MAX, 20001)[1:-1]
    clean, noisy = (np.exp(-(((places - m) / s) ** 2) / 2) for m, s in zip(means, sds, strict=True))
    slopes = steepness(base, np.exp(-places))
    candidates = np.exp(-np.linspace(H_MIN, H_MAX, 4001)[1:-1])
    bounds = steepness(base, candidates)
    fits = []
    for bound in np.array_split(bounds, 40):
        clipped = np.minimum(slopes, bound[:, None])
        fits.append((clipped @ noisy / noisy.sum()) <= allowed * (clipped @ clean / clean.sum()))
    return candidates[np.concatenate(fits)].min()


@pytest.mark.parametrize("spec", BASES)
def test_ogc_is_its_definition_over_several_epochs(spec):
    """60 labels of an epoch of 70 count, in 6 batches of unequal number; the queue of 96 is full in the second."""
    base, epsilon, interval, queue = BASES[spec], 30.0, 4, 96
    name, params = spec.removesuffix(")").partition("(")[::2]
    params = f"{params}, " if params else ""
    loss = get_loss(f"{name}({params}epsilon={epsilon}, interval={interval}, queue={queue})")
    ogc = loss.stateful["0"]
    recent, p_t, moved, clipped_samples = [], 1e-7, 0, 0
    batches = epochs_of_batches(70, 12, 6, torch.float64)
    for steps, (epoch, _, logits, labels) in enumerate(batches, 1):
        losses, gradient = value_and_gradient(loss, logits, labels, epoch=epoch)
        keep, y = labels.numpy() >= 0, labels.numpy().clip(0)
        p_all = np.exp(log_softmax(logits))
        p = p_all[np.arange(len(y)), y]
        recent = (recent + list(np.clip(-np.log(p[keep]), H_MIN, H_MAX)))[-queue:]
        np.testing.assert_allclose(ogc.recent.numpy(), recent, rtol=1e-6)

        tau = steepness(base, p_t)
        below = p <= p_t
        clipped_samples += (below & keep).sum()
        expected = np.where(below, base(p_t) + tau * (p_t - p), base(p))
        np.testing.assert_allclose(losses, expected * keep, rtol=1e-6, atol=1e-9)
        by_p = -np.where(below, tau, steepness(base, p))[:, None] * np.eye(CLASSES)[y]
        np.testing.assert_allclose(gradient, through_softmax(by_p, p_all) * keep[:, None], rtol=1e-5, atol=1e-7)

        learning_rate = 0.05 / (1 + epoch)
        loss.step(learning_rate)
        assert ogc.steps.item() == steps
        if steps % interval == 0 and len(recent) == queue:
            p_t = threshold_by_search(base, recent, 1 + learning_rate * epsilon)
            assert ogc.log_threshold.exp().item() == pytest.approx(p_t, rel=0.02)  # by their grids
            p_t = ogc.log_threshold.exp().item()  # and from here on to the last digit
            moved += 1
        assert ogc.log_threshold.item() == pytest.approx(math.log(p_t), abs=1e-6)
    assert moved >= 5 and clipped_samples > 20 and len(recent) == queue


def test_ogc_clips_nothing_until_the_queue_is_full_and_at_p_t_1_is_mae():
    loss = get_loss("ogc_ce(queue=1000, interval=1)")
    for _, index, logits, labels in epochs_of_batches(40, 16, 2, torch.float64, ignored=False):
        ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(loss(logits, labels, "none", index=index), ce)
        loss.step(0.1)
    assert loss.stateful["0"].log_threshold.item() == pytest.approx(math.log(1e-7))
    loss.stateful["0"].log_threshold.fill_(math.log(1 - 1e-7))
    losses = loss(logits, labels, "none")
    p = np.exp(log_softmax(logits))[np.arange(len(labels)), labels]
    np.testing.assert_allclose(losses.numpy(), 1 - p, atol=1e-6)  # the tangent at p = 1


def test_ogc_goes_on_training_where_the_labels_are_memorised():
    """All losses are near 0. The gradient of a label that is not fitted is that of focal loss, unclipped."""
    loss = get_loss("ogc_fl(interval=1)")
    recent = np.random.default_rng(0).exponential(0.005, loss.stateful["0"].queue)
    loss.stateful["0"].recent = torch.tensor(recent, dtype=torch.float32)
    loss.step(0.01)
    _, gradient = value_and_gradient(loss, torch.zeros(1, 10), torch.zeros(1, dtype=torch.int64))  # p_y is 0.1
    slope = 0.9**0.5 / 0.1 - 0.5 * 0.9**-0.5 * math.log(0.1)
    assert gradient[0, 0] == pytest.approx(-slope * 0.1 * 0.9, rel=1e-4)  # -0.96


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", BASES)
def test_ogc_bounds_the_gradient_of_the_most_improbable_labels(spec, dtype):
    """At p_y = 0 to every digit, where the unclipped gradient by p_y would be infinite, it is tau."""
    loss = get_loss(spec)
    loss.stateful["0"].log_threshold.fill_(math.log(0.25))
    logits = torch.tensor([[-1e4, 1e4, 0, 0, 0], [-60.0, 0, 0, 0, 0], [1e4, 0, 0, 0, 0]], dtype=dtype)
    losses, gradient = value_and_gradient(loss, logits, torch.zeros(3, dtype=torch.int64))
    tau, base = steepness(BASES[spec], 0.25), BASES[spec]
    np.testing.assert_allclose(losses[:2], base(0.25) + tau * 0.25, rtol=1e-5)
    assert losses[2] == 0 and np.isfinite(gradient).all()
    p = math.exp(-60) / 4
    assert gradient[1, 0] == pytest.approx(-tau * p, rel=1e-4)


# --- GJS


def js_divergence(pi, labels, *predictions):
    """sum_i w_i KL(q_i || m) / Z with m = sum_i w_i q_i of the label (weight pi) and the predictions (the rest)."""
    one_hot = np.eye(predictions[0].shape[1])[labels]
    distributions = [one_hot, *predictions]
    weights = [pi] + [(1 - pi) / len(predictions)] * len(predictions)
    m = sum(w * q for w, q in zip(weights, distributions, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = [np.where(q > 0, q * np.log(q / m), 0).sum(1) for q in distributions]
    return sum(w * k for w, k in zip(weights, kl, strict=True)) / (-(1 - pi) * math.log(1 - pi))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.1, 2, 15])
def test_gjs_is_its_definition(scale, pi, dtype):
    logits, labels = random_batch(32, views=2, scale=scale, dtype=dtype)
    labels[:4] = logits[:4].argmax(1)
    first, second = np.split(np.exp(log_softmax(logits)), 2)
    loss = get_loss(f"gjs(pi={pi})")
    expected = js_divergence(pi, labels.numpy(), first, second)
    tolerance = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(loss(logits, labels, "none").numpy(), expected, **tolerance)
    swapped = torch.cat(logits.chunk(2)[::-1])
    torch.testing.assert_close(loss(swapped, labels, "none"), loss(logits, labels, "none"))
    np.testing.assert_allclose(
        loss.eval()(logits[:32], labels, "none").numpy(), js_divergence(pi, labels.numpy(), first), **tolerance
    )


@pytest.mark.parametrize("pi", [0.1, 0.5, 0.9])
def test_gjs_gradient_is_that_of_finite_differences_for_both_views(pi):
    logits, labels = random_batch(3, views=2, dtype=torch.float64, seed=1)
    labels[0] = -100
    loss = get_loss(f"gjs(pi={pi})")
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, "none"), logits.requires_grad_())
    (gradient,) = torch.autograd.grad(loss(logits, labels, "sum"), logits)
    assert gradient.any(1).tolist() == [False, True, True] * 2


def test_gjs_of_two_equal_views_is_js():
    logits, labels = random_batch(16, dtype=torch.float64)
    twice = get_loss("gjs(pi=0.3)")(torch.cat([logits, logits]), labels, "none")
    torch.testing.assert_close(twice, get_loss("js(pi=0.3)")(logits, labels, "none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gjs_is_finite_and_at_most_its_bound_at_the_corners(dtype):
    """The largest value is that of three different corners: H(pi, w, w) / Z."""
    logits = torch.full((6, CLASSES), -1e4, dtype=dtype)
    for row, column in enumerate([0, 1, 1, 0, 1, 2]):  # views: right and right, wrong and the same, wrong and another
        logits[row, column] = 1e4
    losses, gradient = value_and_gradient(get_loss("gjs"), logits, torch.zeros(3, dtype=torch.int64))
    z, w = -0.5 * math.log(0.5), 0.25
    different = (-0.5 * math.log(0.5) - 2 * w * math.log(w)) / z
    np.testing.assert_allclose(losses, [0, math.log(2) / z, different], rtol=1e-6, atol=1e-6)
    assert np.isfinite(gradient).all()


# --- NLNL


def every_class_differs(size, classes=CLASSES):
    """Logits with which -log(1 - p_c) says which c it was, and labels of all classes."""
    logits = torch.linspace(-2, 2, classes, dtype=torch.float64).expand(size, -1).contiguous()
    return logits, torch.arange(size) % classes


def drawn(loss, logits, labels, index, epoch):
    """The label that each sample was told not to have, from the value of its loss."""
    values = -np.log(1 - np.exp(log_softmax(logits)))
    got = loss(logits, labels, "none", index=index, epoch=epoch).numpy()
    distance = np.abs(values - got[:, None])
    assert distance.min(1).max() < 1e-9
    return distance.argmin(1)


def test_nlnl_draws_every_other_class_equally_often_and_never_the_label():
    logits, labels = every_class_differs(50)
    loss, index = get_loss("nlnl(seed=3)"), torch.arange(50)
    counts = np.zeros((CLASSES, CLASSES))
    for epoch in range(200):
        np.add.at(counts, (labels.numpy(), drawn(loss, logits, labels, index, epoch)), 1)
    assert not counts.diagonal().any()
    others = counts[~np.eye(CLASSES, dtype=bool)].reshape(CLASSES, CLASSES - 1)
    expected = 200 * 10 / (CLASSES - 1)
    chi2 = ((others - expected) ** 2 / expected).sum(1)  # 3 degrees of freedom: above 16.3 once in a thousand
    assert (chi2 < 20).all()


@pytest.mark.parametrize("num_negative", [1, 7])
def test_nlnl_averages_over_epochs_to_what_evaluation_mode_gives(num_negative):
    logits, labels = random_batch(16, dtype=torch.float64)
    loss, index, epochs = get_loss(f"nlnl(num_negative={num_negative})"), torch.arange(100, 116), 2000
    draws = torch.stack([loss(logits, labels, "none", index=index, epoch=epoch) for epoch in range(epochs)]).numpy()
    rest = -np.log(np.maximum(1 - np.exp(log_softmax(logits)), 1e-5))
    others = np.stack([np.delete(row, y) for row, y in zip(rest, labels, strict=True)])
    np.testing.assert_allclose(loss.eval()(logits, labels, "none").numpy(), others.mean(1), rtol=1e-10)
    error = (draws.mean(0) - others.mean(1)) / (others.std(1) / math.sqrt(epochs * num_negative))
    assert np.abs(error).max() < 4 and 0.5 < np.sqrt((error**2).mean()) < 1.6
    # and the draws of one sample in one epoch are as independent as those of several epochs
    np.testing.assert_allclose(draws.std(0) * math.sqrt(num_negative), others.std(1), rtol=0.15)


def test_nlnl_draws_by_seed_epoch_and_index_alone():
    logits, labels = every_class_differs(60)
    index = torch.arange(1000, 1060)
    loss = get_loss("nlnl(seed=1)")
    first = drawn(loss, logits, labels, index, epoch=4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for part in order.split(7):
        np.testing.assert_array_equal(drawn(loss, logits[part], labels[part], index[part], 4), first[part])
    np.testing.assert_array_equal(drawn(get_loss("nlnl(seed=1)"), logits, labels, index, 4), first)
    for other in (
        drawn(loss, logits, labels, index, 5),
        drawn(loss, logits, labels, index + 60, 4),
        drawn(get_loss("nlnl(seed=2)"), logits, labels, index, 4),
    ):
        assert 0.4 < (other != first).mean() < 0.95  # by chance 3/4


def test_nlnl_of_two_classes_is_minus_log_of_the_label_and_bounded():
    logits, labels = random_batch(16, classes=2, dtype=torch.float64)
    loss = get_loss("nlnl")
    expected = -log_softmax(logits)[np.arange(16), labels]
    np.testing.assert_allclose(loss(logits, labels, "none", index=torch.arange(16)).numpy(), expected, rtol=1e-9)
    wrong = torch.tensor([[-1e4, 1e4]]).requires_grad_()
    value = loss(wrong, torch.tensor([0]), index=torch.tensor([0]))
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-5)) and wrong.grad.isfinite().all()


def test_nlnl_gradient_is_that_of_finite_differences():
    logits, labels = random_batch(4, dtype=torch.float64)
    loss, index = get_loss("nlnl(num_negative=3)"), torch.arange(4)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, "none", index=index), logits.requires_grad_())
    loss.eval()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, "none"), logits.requires_grad_())


# --- Forward and backward correction


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_corrections_are_their_matrix_algebra(dtype, mode):
    logits, labels = random_batch(32, dtype=dtype)
    logp, one_hot = log_softmax(logits), np.eye(CLASSES)[labels.numpy()]
    forward, backward = (get_loss(name, transition_matrix=MATRIX).train(mode) for name in ("forward", "backward"))
    rtol = 1e-11 if dtype == torch.float64 else 1e-5
    expected = -np.log((one_hot * (np.exp(logp) @ MATRIX)).sum(1))
    np.testing.assert_allclose(forward(logits, labels, "none").numpy(), expected, rtol=rtol)
    expected = (one_hot * np.linalg.solve(MATRIX, -logp.T).T).sum(1)
    np.testing.assert_allclose(backward(logits, labels, "none").numpy(), expected, rtol=rtol, atol=rtol)
    assert (expected < 0).any()


def test_backward_is_unbiased():
    """Over the given labels j of clean class i, sum_j T[i, j] backward(j) = CE(i)."""
    logits, _ = random_batch(1, dtype=torch.float64)
    loss = get_loss("backward", transition_matrix=MATRIX)
    for_label = loss(logits.expand(CLASSES, -1), torch.arange(CLASSES), "none").numpy()
    np.testing.assert_allclose(MATRIX @ for_label, -log_softmax(logits)[0], rtol=1e-12)


def test_forward_is_least_where_the_prediction_is_the_clean_label():
    """Over the given labels j of clean class i, sum_j T[i, j] forward(j) is least at p = e_i, as its gradient says."""
    loss = get_loss("forward", transition_matrix=MATRIX)
    weights = torch.from_numpy(MATRIX)
    logits = torch.zeros(CLASSES, CLASSES, dtype=torch.float64, requires_grad=True)  # of each clean class
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(300):
        rows = logits.repeat_interleave(CLASSES, 0)
        losses = loss(rows, torch.arange(CLASSES).repeat(CLASSES), "none").view(CLASSES, CLASSES)
        optimizer.zero_grad()
        (weights * losses).sum().backward()
        optimizer.step()
    assert (logits.softmax(1).diagonal() > 0.99).all()


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_corrections_by_the_identity_are_cross_entropy(name):
    logits, labels = random_batch(16)
    labels[3] = -100
    logits[5] = torch.tensor([-1e4, 1e4, 0, 0, 0])
    loss = get_loss(name, transition_matrix=np.eye(CLASSES))
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss(logits, labels, "none"), expected)
    _, gradient = value_and_gradient(loss, logits, labels)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_gradients_of_the_corrections_are_those_of_finite_differences(name):
    logits, labels = random_batch(4, dtype=torch.float64)
    loss = get_loss(name, transition_matrix=MATRIX)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, "none"), logits.requires_grad_())


@pytest.mark.parametrize("name", ["forward", "backward", "nce + 0.5*forward"])
@pytest.mark.parametrize("matrix", [MATRIX, MATRIX.tolist(), torch.from_numpy(MATRIX), MATRIX.astype(np.float32)])
def test_a_matrix_may_be_an_array_a_list_or_a_tensor_and_is_kept_exactly(name, matrix):
    loss = get_loss(name, transition_matrix=matrix)
    again = get_loss(loss.to_dict())
    logits, labels = random_batch(8, dtype=torch.float64)
    assert torch.equal(again(logits, labels), loss(logits, labels))
    np.testing.assert_array_equal(again.transition_matrix, np.asarray(matrix, np.float64))


def changed(row, column, value):
    matrix = MATRIX.copy()
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize("name", ["forward", "backward", "elr + 2*forward"])
@pytest.mark.parametrize(
    "matrix, message",
    [
        (None, "needs a transition_matrix"),
        (np.full((CLASSES, CLASSES), 1 / CLASSES), "must be invertible, its condition number is"),
        (MATRIX[[0, 0, 2, 3, 4]], "must be invertible, its condition number is"),
        (changed(1, 4, 0.01), "rows that sum to 1, row 1 sums to 1.01"),
        (100 * MATRIX, "rows that sum to 1, row . sums to 100"),
        (MATRIX.T, "rows that sum to 1, row"),
        (changed(1, 2, -0.25), "entries >= 0, got -0.25"),
        (changed(0, 0, math.nan), "entries >= 0, got nan"),
        (changed(0, 0, math.inf), "rows that sum to 1, row 0 sums to inf"),
        (MATRIX[:4], r"shape \(K, K\) with K >= 2, got \(4, 5\)"),
        (MATRIX[0], r"shape \(K, K\) with K >= 2, got \(5,\)"),
        ([[1.0]], r"shape \(K, K\) with K >= 2, got \(1, 1\)"),
        (MATRIX[None], r"shape \(K, K\) with K >= 2, got \(1, 5, 5\)"),
    ],
)
def test_matrices_that_cannot_be_are_refused(name, matrix, message):
    with pytest.raises(ValueError, match=message):
        get_loss(name, transition_matrix=matrix)


def test_an_unwanted_matrix_and_one_of_another_size_are_refused():
    for name in ("ce", "elr", "nce + rce"):
        with pytest.raises(ValueError, match="takes no transition_matrix"):
            get_loss(name, transition_matrix=MATRIX)
    logits, labels = random_batch(8, classes=4)
    for name in ("forward", "backward"):
        with pytest.raises(ValueError, match="transition_matrix has 5 rows, the logits have 4 classes"):
            get_loss(name, transition_matrix=MATRIX)(logits, labels)


# --- What all of them need and keep

STATEFUL = ["elr", "gjs", "ogc_ce(queue=16, interval=1)", "ogc_fl(queue=16, interval=1)",
            "ogc_gce(queue=16, interval=1)", "forward", "backward", "nlnl",
            "elr(beta=0.5) + 2*ogc_ce(queue=16, interval=1) + 0.5*forward + nlnl(seed=1)"]  # fmt: skip


def build(spec, samples=40):
    loss = get_loss(spec, **({"transition_matrix": MATRIX} if "ward" in spec else {}))
    loss.prepare(samples)
    return loss


def feed(loss, epochs=2, samples=40, first=0):
    """Train on `epochs` epochs from the `first` on and give what the loss said."""
    said = []
    for epoch, index, logits, labels in epochs_of_batches(samples, 16, first + epochs):
        if epoch < first:
            continue
        views = 2 if "views" in loss.needs else 1
        said.append(loss(logits.repeat(views, 1), labels, "none", index=index, epoch=epoch))
        loss.step(0.1)
    return said


def state_of(loss):
    return {name: value.clone() for name, value in loss.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("spec", ["elr", "nlnl", "nce + 0.1*elr", "gjs + nlnl"])
def test_a_missing_index_is_an_error_in_training_mode_alone(spec):
    loss = build(spec)
    logits, labels = random_batch(8, views=2 if "gjs" in spec else 1)
    with pytest.raises(ValueError, match=r"needs index, the samples' places in the training set; got None"):
        loss(logits, labels)
    assert loss.eval()(logits[:8], labels).isfinite()


@pytest.mark.parametrize("spec", ["elr", "nlnl", "ce"])
@pytest.mark.parametrize(
    "index, message",
    [
        (torch.arange(8).int(), r"index must be int64 of shape \(8,\), got torch.int32 of \(8,\)"),
        (torch.arange(8.0), r"index must be int64 of shape \(8,\), got torch.float32 of \(8,\)"),
        (torch.arange(7), r"index must be int64 of shape \(8,\), got torch.int64 of \(7,\)"),
        (torch.arange(8)[:, None], r"index must be int64 of shape \(8,\), got torch.int64 of \(8, 1\)"),
    ],
)
def test_an_index_of_another_type_or_shape_is_refused(spec, index, message):
    with pytest.raises(ValueError, match=message):
        build(spec)(*random_batch(8), index=index)


def test_elr_wants_prepare_places_within_it_and_the_classes_of_before():
    logits, labels = random_batch(8)
    with pytest.raises(ValueError, match=r"call prepare\(num_samples\) before the first batch"):
        get_loss("elr")(logits, labels, index=torch.arange(8))
    loss = build("elr", samples=10)
    for index in (torch.arange(3, 11), torch.arange(-1, 7)):
        with pytest.raises(ValueError, match=r"index must be in 0..9, the places in the training set, got (10|-1);"):
            loss(logits, labels, index=index)
    assert not loss.stateful["0"].targets.any()
    with pytest.raises(ValueError, match="logits must have the 5 classes of before, got 4"):
        loss(*random_batch(8, classes=4), index=torch.arange(8))


def test_gjs_wants_two_rows_a_label_in_training_mode_and_one_in_evaluation():
    logits, labels = random_batch(8)
    with pytest.raises(ValueError, match=r"one entry per 2 rows \(views\) of logits: got 8 for 8 rows"):
        get_loss("gjs")(logits, labels)
    with pytest.raises(ValueError, match="one entry per row of logits: got 8 for 16 rows"):
        get_loss("gjs").eval()(logits.repeat(2, 1), labels)
    with pytest.raises(ValueError, match="one entry per row of logits: got 8 for 16 rows"):
        get_loss("ce")(logits.repeat(2, 1), labels)


def test_a_sum_with_gjs_takes_the_first_view_for_its_other_terms():
    logits, labels = random_batch(8, views=2)
    together = get_loss("gjs + 2*ce + 0.5*forward", transition_matrix=MATRIX)(logits, labels, "none")
    parts = get_loss("gjs")(logits, labels, "none") + get_loss("2*ce")(logits[:8], labels, "none")
    parts = parts + 0.5 * get_loss("forward", transition_matrix=MATRIX)(logits[:8], labels, "none")
    torch.testing.assert_close(together, parts)


@pytest.mark.parametrize("spec", STATEFUL)
def test_ignored_labels_leave_no_trace(spec):
    """A batch with ignored labels is, for state, sum and gradient, the batch without them."""
    with_ignored, without = build(spec), build(spec)
    views, ignored = 2 if "views" in with_ignored.needs else 1, 0
    for epoch, index, logits, labels in epochs_of_batches(40, 16, 3):
        keep = labels >= 0
        ignored += int((~keep).sum())
        logits = logits.repeat(views, 1)
        values, gradient = value_and_gradient(with_ignored, logits, labels, index=index, epoch=epoch)
        expected, kept_gradient = value_and_gradient(
            without, logits[keep.repeat(views)], labels[keep], index=index[keep], epoch=epoch
        )
        np.testing.assert_allclose(values[keep], expected, atol=1e-6)
        np.testing.assert_allclose(gradient[keep.repeat(views)], kept_gradient, atol=1e-6)
        assert not values[~keep].any() and not gradient[~keep.repeat(views)].any()
        with_ignored.step(0.1)
        without.step(0.1)
        for name, value in without.state_dict().items():
            torch.testing.assert_close(with_ignored.state_dict()[name], value, msg=name)
    assert ignored == 3 * 6


@pytest.mark.parametrize("spec", STATEFUL)
def test_a_batch_of_ignored_labels_alone_is_0_and_leaves_no_trace(spec):
    loss = build(spec)
    feed(loss)
    before = state_of(loss)
    logits, labels = random_batch(8, views=2 if "views" in loss.needs else 1)
    value = loss(logits.requires_grad_(), labels.fill_(-100), "sum", index=torch.arange(8))
    value.backward()
    assert value == 0 and not logits.grad.any() and same_state(state_of(loss), before)


@pytest.mark.parametrize("spec", STATEFUL)
def test_evaluation_mode_touches_no_state(spec):
    loss = build(spec)
    feed(loss)
    before = state_of(loss)
    logits, labels = random_batch(8)
    loss.eval()
    values = [loss(logits, labels, "none", **extras) for extras in ({}, {"index": torch.arange(8), "epoch": 5})]
    assert torch.equal(*values) and same_state(state_of(loss), before)
    fresh = build(spec).eval()
    fresh(logits, labels)
    assert same_state(state_of(fresh), state_of(build(spec)))


@pytest.mark.parametrize("through", ["state_dict", "deepcopy", "pickle"])
@pytest.mark.parametrize("spec", STATEFUL)
def test_a_copy_goes_on_as_the_original_and_apart_from_it(spec, through):
    loss = build(spec)
    feed(loss)
    if through == "state_dict":
        other = build(spec)
        other.load_state_dict(state_of(loss))
    else:
        other = copy.deepcopy(loss) if through == "deepcopy" else pickle.loads(pickle.dumps(loss))
    before = state_of(other)
    assert same_state(before, state_of(loss))
    said = feed(loss, 2, first=2)
    assert same_state(state_of(other), before)
    for a, b in zip(said, feed(other, 2, first=2), strict=True):
        assert torch.equal(a, b)
    assert same_state(state_of(other), state_of(loss)) and not (before and same_state(before, state_of(loss)))


def test_what_is_remembered_is_the_memory_and_no_more():
    keys = {spec: set(build(spec).state_dict()) for spec in STATEFUL}
    assert not (keys["gjs"] | keys["nlnl"] | keys["forward"] | keys["backward"])
    loss = build("elr")
    assert not loss.state_dict()  # nothing before the first batch, the number of classes is not yet known
    feed(loss)
    assert {name: tuple(value.shape) for name, value in loss.state_dict().items()} == {"stateful.0.targets": (40, 5)}
    assert not list(loss.parameters())
    fresh = build("elr")
    fresh.load_state_dict({})
    for name in ("elr", "ogc_ce"):
        with pytest.raises(RuntimeError, match="Unexpected key|Missing key"):
            build(name).load_state_dict({"stateful.0.other": torch.zeros(1)})


@pytest.mark.parametrize("spec", STATEFUL)
def test_half_precision_logits_give_float32_losses_and_a_float32_memory(spec):
    logits, labels = random_batch(32, views=2 if "gjs" in spec else 1)
    half, full = build(spec), build(spec)
    index = torch.arange(32)
    values = half(logits.bfloat16(), labels, "none", index=index)
    assert values.dtype == torch.float32
    assert torch.equal(values, full(logits.bfloat16().float(), labels, "none", index=index))
    assert same_state(state_of(half), state_of(full))
    assert all(value.dtype != torch.bfloat16 for value in half.state_dict().values())


@pytest.mark.parametrize(
    "spec, message",
    [
        ("elr(lam=-1)", "lam of elr must be a finite number >= 0, got -1"),
        ("elr(beta=1)", r"beta of elr must be a number in \[0, 1\), got 1"),
        ("gjs(pi=0)", r"pi of gjs must be a number in \(0, 1\), got 0"),
        ("gjs(pi=1)", r"pi of gjs must be a number in \(0, 1\), got 1"),
        ("ogc_ce(epsilon=0)", "epsilon of ogc_ce must be a finite number > 0, got 0"),
        ("ogc_ce(interval=0)", "interval of ogc_ce must be a whole number >= 1, got 0"),
        ("ogc_fl(queue=1)", "queue of ogc_fl must be a whole number >= 2, got 1"),
        ("ogc_fl(queue=10.5)", "queue of ogc_fl must be a whole number >= 2, got 10.5"),
        ("ogc_gce(q=0)", r"q of ogc_gce must be a number in \(0, 1\], got 0"),
        ("ogc_ce(q=1)", "ogc_ce has no parameter 'q'; its parameters are epsilon, interval, queue"),
        ("nlnl(num_negative=0)", "num_negative of nlnl must be a whole number >= 1, got 0"),
        ("nlnl(seed=-1)", "seed of nlnl must be a whole number >= 0, got -1"),
    ],
)
def test_bad_parameters_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        get_loss(spec)
