import itertools
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_dit import neighborhood_attention_2d, neighborhood_mask_2d, window_attention_1d, window_mask_1d
from hf_dit.attention import local
from hf_dit.attention.tiled import HeadwiseAttention, batched_attention
from hf_dit.attention.tiles import Plan, axis_cuts, make_plan, mask_of_plan
from hf_dit.attention.windows import grid_mask, make_windows


@pytest.fixture(autouse=True)
def _by_tiles(monkeypatch):
    """Of grids as small as these too, but where a test says otherwise."""
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: False)


def tensors(tokens, heads=3, dim=8, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, tokens, heads, dim)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def dense(query, key, value, mask, scale=None):
    """Softmax attention written out, in the dtype of its inputs."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), value)


def assert_equal_with_gradients(function, query, key, value, mask, tolerance, scale=None):
    weights = torch.randn(query.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    out = function(query, key, value)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    expected = dense(*exact, mask, scale)
    assert out.shape == query.shape and out.dtype == query.dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad((out * weights.to(out)).sum(), (query, key, value))
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=10 * tolerance)


GRIDS = [(1, 1), (5, 7), (8, 8), (1, 9), (9, 1), (13, 30), (33, 17)]


@pytest.mark.parametrize("boundary", ["shift", "truncate"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7, 9, 15, 31, 65])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_neighborhood_equals_dense_attention_under_its_mask(grid, kernel_size, boundary):
    inputs = tensors(grid[0] * grid[1])
    mask = neighborhood_mask_2d(grid, kernel_size, boundary)
    assert_equal_with_gradients(
        lambda q, k, v: neighborhood_attention_2d(q, k, v, grid, kernel_size, boundary), *inputs, mask, 1e-10
    )


@pytest.mark.parametrize("window", [0, 1, 3, 10, 64, 300])
@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 257])
def test_window_equals_dense_attention_under_its_mask(tokens, window):
    mask = window_mask_1d(tokens, window)
    assert_equal_with_gradients(lambda q, k, v: window_attention_1d(q, k, v, window), *tensors(tokens), mask, 1e-10)


# --- few tokens, under the dense mask

is_dense_faster = local.is_dense_faster  # before the fixture hides it


@pytest.mark.parametrize("boundary", ["shift", "truncate"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("grid", [(1, 1), (5, 7), (1, 9), (9, 1), (13, 12)], ids=str)
def test_few_tokens_under_the_dense_mask(grid, kernel_size, boundary, monkeypatch):
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: True)
    monkeypatch.setattr(local, "batched_attention", None)
    monkeypatch.setattr(local, "HeadwiseAttention", None)
    mask = neighborhood_mask_2d(grid, kernel_size, boundary)
    inputs = tensors(grid[0] * grid[1])
    assert_equal_with_gradients(
        lambda q, k, v: neighborhood_attention_2d(q, k, v, grid, kernel_size, boundary), *inputs, mask, 1e-10
    )
    one_row = tensors(grid[1])
    window = window_mask_1d(grid[1], kernel_size // 2)
    assert_equal_with_gradients(
        lambda q, k, v: window_attention_1d(q, k, v, kernel_size // 2), *one_row, window, 1e-10
    )


def test_the_way_is_chosen_by_tokens_kernel_and_threads():
    def dense(side, kernel, threads):
        return is_dense_faster((side, side), make_windows(kernel), threads)

    assert [dense(side, 7, 1) for side in (8, 12, 16, 32, 64)] == [True, True, False, False, False]
    assert [dense(side, 7, 2) for side in (8, 12, 16, 20, 32)] == [True, True, True, False, False]
    assert dense(16, 11, 1) and not dense(32, 11, 2)  # tiles that hold most of the scores
    assert dense(32, 31, 1) and not dense(64, 61, 1)  # but no mask of more than 4 MB
    assert dense(32, 7, 64) and not dense(33, 7, 64)


def test_both_ways_give_the_same(monkeypatch):
    q, k, v = tensors(196, dtype=torch.float32)
    monkeypatch.setattr(local, "is_dense_faster", is_dense_faster)
    found = []
    for threads in (1, 2):  # tiles, dense
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(neighborhood_attention_2d(q, k, v, (14, 14), 3))
    assert not torch.equal(*found)
    torch.testing.assert_close(*found)


# --- tiles


@pytest.mark.parametrize("heads, dim", [(1, 72), (6, 64), (5, 3)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_dtypes_heads_and_scale(dtype, tolerance, heads, dim):
    inputs = tensors(11 * 16, heads, dim, dtype=dtype)
    assert_equal_with_gradients(
        lambda q, k, v: neighborhood_attention_2d(q, k, v, (11, 16), 5, scale=0.3), *inputs,
        neighborhood_mask_2d((11, 16), 5), tolerance, scale=0.3,
    )  # fmt: skip
    assert_equal_with_gradients(
        lambda q, k, v: window_attention_1d(q, k, v, 20, scale=0.3), *inputs, window_mask_1d(176, 20), tolerance, 0.3
    )


def test_every_cut_gives_the_same_in_both_ways_of_computing():
    grid = 11, 14
    inputs = tensors(11 * 14, heads=2, dim=4)
    for windows in (
        make_windows((5, 3)),
        make_windows((5, 3), "truncate"),
        make_windows((4, 2), stride=(3, 1)),
        make_windows((2, 4), is_causal=(False, True)),
    ):
        mask = torch.from_numpy(grid_mask(grid, windows))
        cuts = [Plan(*axes, windows) for axes in itertools.product(*map(axis_cuts, grid, windows))]
        assert len(cuts) > 9
        for plan in cuts[:: len(cuts) // 9]:
            added = mask_of_plan(plan, torch.float64, torch.device("cpu"))
            for way in (HeadwiseAttention.apply, batched_attention):
                assert_equal_with_gradients(
                    lambda q, k, v, way=way, plan=plan, added=added: way(q, k, v, plan, added, 0.5),
                    *inputs, mask, 1e-10, 0.5,
                )  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"is_causal": True}, {"stride": 2, "is_causal": True}], ids=str
)
def test_rectangles_hold_every_visible_key_and_no_more_rows_than_that(options):
    for length, kernel_size, boundary in itertools.product(range(1, 40), (2, 3, 7, 15), ("shift", "truncate")):
        (window, _) = make_windows(kernel_size, boundary, **options)
        mask = torch.from_numpy(window.mask(length))
        for axis in axis_cuts(length, window):
            before = after = 0
            for tile in range(axis.tiles):
                seen = mask[tile * axis.tile : (tile + 1) * axis.tile].any(0).nonzero()
                first, last = tile * axis.tile, (tile + 1) * axis.tile - 1
                before, after = max(before, first - int(seen.min())), max(after, int(seen.max()) - last)
            assert (axis.before, axis.after) == (before, after)


def test_plain_windows_are_cut_as_wide_as_their_radius():
    for boundary, side in itertools.product(("shift", "truncate"), (16, 32, 48, 64, 96)):
        plan = make_plan((side, side), make_windows(7, boundary), 16)
        assert {*plan.rows[2:], *plan.columns[2:]} == {3}


def test_gradcheck():
    inputs = tensors(5 * 6, heads=2, dim=3, batch=1)
    for boundary in ("shift", "truncate"):
        assert torch.autograd.gradcheck(
            lambda q, k, v, boundary=boundary: neighborhood_attention_2d(q, k, v, (5, 6), 3, boundary), inputs
        )
    assert torch.autograd.gradcheck(lambda q, k, v: window_attention_1d(q, k, v, 2), inputs)


def test_inputs_of_any_stride_and_gradients_of_some():
    base = torch.randn(2, 48, 3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    query, key, value = base.unbind(2)  # as fused projections give them
    expected = dense(query, key, value, neighborhood_mask_2d((6, 8), 3))
    torch.testing.assert_close(neighborhood_attention_2d(query, key, value, (6, 8), 3), expected)
    value = value.clone().requires_grad_()
    out = neighborhood_attention_2d(query, key, value, (6, 8), 3)
    (gradient,) = torch.autograd.grad(out.sum(), value)  # an expanded gradient comes in
    seen = dense(query, key, value, neighborhood_mask_2d((6, 8), 3))
    torch.testing.assert_close(gradient, torch.autograd.grad(seen.sum(), value)[0])


def test_masks_by_their_definition():
    for length, window in itertools.product((1, 2, 5, 9), (0, 1, 3, 20)):
        expected = [[abs(i - j) <= window for j in range(length)] for i in range(length)]
        assert window_mask_1d(length, window).tolist() == expected
    # NATTEN's rule for the first key of a query: its position less half the kernel, clamped to [0, length - kernel].
    rows, columns, kernel_size = 6, 9, 5
    for boundary in ("shift", "truncate"):
        mask = neighborhood_mask_2d((rows, columns), kernel_size, boundary)
        for row, column, other_row, other_column in itertools.product(
            range(rows), range(columns), range(rows), range(columns)
        ):
            if boundary == "shift":
                top = min(max(row - 2, 0), rows - 5)
                left = min(max(column - 2, 0), columns - 5)
                expected = top <= other_row < top + 5 and left <= other_column < left + 5
            else:
                expected = abs(row - other_row) <= 2 and abs(column - other_column) <= 2
            assert mask[row * columns + column, other_row * columns + other_column] == expected
        assert (mask.sum(1) == 25).all() == (boundary == "shift")
    assert neighborhood_mask_2d((4, 4), 9).all()


def test_xformers_local_mask_is_the_window_mask():
    bias = pytest.importorskip("xformers.ops.fmha.attn_bias")
    for length, window in ((7, 0), (7, 2), (16, 5), (9, 30)):
        local = bias.LocalAttentionFromBottomRightMask(window, window).materialize((length, length))
        assert torch.equal(local == 0, window_mask_1d(length, window))


def test_natten_sees_the_shifted_windows():
    natten = pytest.importorskip("natten")
    query, key, value = (x.detach().float() for x in tensors(8 * 12, heads=2, dim=16))
    theirs = natten.na2d(*(x.unflatten(1, (8, 12)) for x in (query, key, value)), kernel_size=(5, 5)).flatten(1, 2)
    torch.testing.assert_close(neighborhood_attention_2d(query, key, value, (8, 12), 5), theirs, rtol=1e-4, atol=1e-5)


def test_compiled_without_a_break():
    def both(q, k, v, grid, kernel_size, window):
        return neighborhood_attention_2d(q, k, v, grid, kernel_size) + window_attention_1d(q, k, v, window)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    # From the second on, the compiler takes the sizes for variables.
    for rows, columns, kernel_size, window in ((7, 8, 3, 5), (9, 8, 3, 5), (6, 11, 5, 4), (4, 3, 9, 20)):
        inputs = tensors(rows * columns)
        arguments = (rows, columns), kernel_size, window
        expected = both(*inputs, *arguments)
        torch.testing.assert_close(compiled(*inputs, *arguments), expected)
        ours = torch.autograd.grad(compiled(*inputs, *arguments).square().sum(), inputs)
        torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), inputs))


def test_trains_after_inference_mode():
    inputs = tensors(11 * 6)
    with torch.inference_mode():
        neighborhood_attention_2d(*inputs, (11, 6), 3)
        neighborhood_attention_2d(*(x.bfloat16() for x in inputs), (11, 6), 3)
    for dtype in (torch.float64, torch.bfloat16):
        neighborhood_attention_2d(*(x.to(dtype) for x in inputs), (11, 6), 3).sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_the_result_is_on_the_device_of_the_inputs():
    inputs = tensors(24)
    expected = window_attention_1d(*inputs, 2)
    with torch.device("meta"):
        out = window_attention_1d(*inputs, 2)
        gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
    torch.testing.assert_close(out, expected)
    assert all(x.device.type == "cpu" for x in gradients)


LARGE = """
import resource, torch
from hf_dit import neighborhood_attention_2d, window_attention_1d
inputs = [torch.randn(1, 65536, 1, 32, requires_grad=True) for _ in range(3)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neighborhood_attention_2d(*inputs, (256, 256), 7).sum().backward()
window_attention_1d(*inputs, 32).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux alone")
def test_65536_tokens_under_a_ceiling_of_memory():
    # Dense scores of one head would need 17 GB.
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 600  # MB


def test_local_attention_multiplies_less_than_full():
    query, key, value = (x.detach() for x in tensors(64 * 64, heads=6, dim=64, dtype=torch.float32))
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention_2d(query, key, value, (64, 64), 7)
    # Scores and their product with the values: two operations for each pair of tokens, head and channel, twice.
    batch, length, heads, dim = query.shape
    full, seen = (4 * batch * heads * dim * length * keys for keys in (length, 7 * 7))
    assert seen <= counter.get_total_flops() < full / 10


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must be a whole number or two of them"),
        ({"kernel_size": (3, 0)}, ValueError, "kernel_size must be 1 or more; got 0"),
        ({"dilation": 2}, ValueError, r"kernel_size \* dilation must be at most the 4 tokens of its axis; got 3 \* 2"),
        ({"dilation": 0}, ValueError, "dilation must be 1 or more; got 0"),
        ({"stride": 4}, ValueError, "stride must be at most kernel_size; got 4 and 3"),
        ({"is_causal": 1}, TypeError, "is_causal must be True, False or two of these; got 1"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be 1 or more; got 0"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size must be a whole number; got 3.0"),
        ({"boundary": "wrap"}, ValueError, "boundary must be one of shift, truncate; got 'wrap'"),
        ({"grid": (4, 5)}, ValueError, r"rows \* columns == N = 16; got \(4, 5\)"),
        ({"grid": (-4, -4)}, ValueError, "grid must be"),
        ({"key": torch.zeros(1, 16, 2, 5)}, ValueError, "one shape"),
        ({"value": torch.zeros(1, 16, 2, 4, dtype=torch.float64)}, TypeError, "one floating dtype"),
        ({"query": torch.zeros(1, 16, 8)}, ValueError, "one shape"),
        ({"key": torch.zeros(1, 16, 2, 4, device="meta")}, ValueError, "on one device"),
    ],
)
def test_bad_input(arguments, error, message):
    x = torch.zeros(1, 16, 2, 4)
    defaults = {"query": x, "key": x, "value": x, "grid": (4, 4), "kernel_size": 3}
    with pytest.raises(error, match=message):
        neighborhood_attention_2d(**defaults | arguments)


def test_bad_windows():
    x = torch.zeros(1, 16, 2, 4)
    with pytest.raises(ValueError, match="window must be 0 or more; got -1"):
        window_attention_1d(x, x, x, -1)
    with pytest.raises(TypeError, match="window must be a whole number; got True"):
        window_mask_1d(3, True)
    with pytest.raises(TypeError, match="one floating dtype"):
        window_attention_1d(x.int(), x.int(), x.int(), 1)
