"""The patterns of NATTEN: by lists of its own, by NATTEN where it is installed, and by dense attention in float64."""

import itertools
import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_dit import (
    FlexAttnProcessor,
    NattenAttnProcessor,
    NeighborhoodAttnProcessor,
    neighborhood_attention_2d,
    neighborhood_mask_2d,
)
from hf_dit.attention import local
from hf_dit.attention.flex import flex_plan
from hf_dit.attention.spec import make_attn_processors
from hf_dit.attention.tiles import mask_of_plan, places_of_plan
from hf_dit.attention.windows import make_windows
from tests.hf_dit.attention.test_local import assert_equal_with_gradients, tensors

# What NATTEN 0.21.7 gave for each query of an axis: length, kernel, stride, dilation, causal; its keys.
ALONG_AN_AXIS = [
    ((8, 4, 1, 1, False), "0123 0123 0123 1234 2345 3456 4567 4567"),
    ((8, 2, 1, 1, False), "01 01 12 23 34 45 56 67"),
    ((8, 3, 1, 2, False), "024 135 024 135 246 357 246 357"),
    ((9, 3, 1, 2, False), "024 135 024 135 246 357 468 357 468"),
    ((8, 4, 1, 2, False), "0246 1357 0246 1357 0246 1357 0246 1357"),
    ((8, 4, 2, 1, False), "0123 0123 1234 1234 3456 3456 4567 4567"),
    ((8, 4, 4, 1, False), "0123 0123 0123 0123 4567 4567 4567 4567"),
    ((10, 4, 3, 1, False), "0123 0123 0123 2345 2345 2345 5678 5678 5678 6789"),
    ((9, 3, 2, 2, False), "024 135 024 135 468 357 468 357 468"),
    ((8, 3, 1, 1, True), "0 01 012 123 234 345 456 567"),
    ((8, 4, 2, 1, True), "0 01 012 0123 234 2345 456 4567"),
    ((8, 4, 4, 1, True), "0 01 012 0123 4 45 456 4567"),
    ((9, 3, 2, 2, True), "0 1 02 13 24 35 246 357 468"),
]
# On a grid of 4 x 5, the keys of queries 0, 7 and 19.
ON_A_GRID = [
    (((3, 2), {}), "0 1 5 6 10 11, 1 2 6 7 11 12, 8 9 13 14 18 19"),
    (((2, 3), {"dilation": (2, 1)}), "0 1 2 10 11 12, 6 7 8 16 17 18, 7 8 9 17 18 19"),
    (((3, 4), {"is_causal": (True, False)}), "0 1 2 3, 0 1 2 3 5 6 7 8, 6 7 8 9 11 12 13 14 16 17 18 19"),
    (((2, 4), {"stride": (2, 3), "is_causal": (False, True)}), "0 5, 0 1 2 5 6 7, 11 12 13 14 16 17 18 19"),
    (((2, 2), {"stride": (2, 2)}), "0 1 5 6, 2 3 7 8, 13 14 18 19"),
]
PATTERNS = [
    ((7, 7), {}),
    ((4, 6), {}),
    ((2, 5), {}),
    ((3, 2), {"dilation": 3}),
    ((5, 2), {"dilation": (1, 4)}),
    ((3, 3), {"is_causal": True}),
    ((4, 3), {"is_causal": (True, False), "dilation": (2, 1)}),
    ((5, 4), {"stride": (5, 3)}),
    ((4, 3), {"stride": 2, "dilation": (2, 3), "is_causal": (False, True)}),
]


@pytest.mark.parametrize("case, expected", ALONG_AN_AXIS, ids=str)
def test_the_keys_along_an_axis_are_those_of_natten(case, expected):
    length, kernel, stride, dilation, causal = case
    options = {"stride": stride, "dilation": dilation, "is_causal": causal}
    for axis in (0, 1):  # the other axis has a single token
        grid = (length, 1) if axis == 0 else (1, length)
        sizes = (kernel, 1) if axis == 0 else (1, kernel)
        pairs = {name: ((value, type(value)(name != "is_causal")))[:: 1 - 2 * axis] for name, value in options.items()}
        mask = neighborhood_mask_2d(grid, sizes, **pairs)
        assert " ".join("".join(map(str, row.nonzero().flatten().tolist())) for row in mask) == expected


@pytest.mark.parametrize("case, expected", ON_A_GRID, ids=str)
def test_the_keys_on_a_grid_are_those_of_natten(case, expected):
    kernel_size, options = case
    mask = neighborhood_mask_2d((4, 5), kernel_size, **options)
    seen = [" ".join(map(str, mask[query].nonzero().flatten().tolist())) for query in (0, 7, 19)]
    assert ", ".join(seen) == expected


@pytest.mark.parametrize("kernel_size, options", PATTERNS, ids=str)
def test_natten_gives_the_same(kernel_size, options):
    natten = pytest.importorskip("natten")
    for grid in ((9, 12), (12, 9), (13, 17)):
        query, key, value = (x.detach().float() for x in tensors(grid[0] * grid[1], heads=2, dim=16))
        theirs = natten.na2d(*(x.unflatten(1, grid) for x in (query, key, value)), kernel_size=kernel_size, **options)
        ours = neighborhood_attention_2d(query, key, value, grid, kernel_size, **options)
        torch.testing.assert_close(ours, theirs.flatten(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("boundary", ["shift", "truncate"])
@pytest.mark.parametrize("kernel_size, options", PATTERNS, ids=str)
def test_patterns_equal_dense_attention_under_their_mask(kernel_size, options, boundary, is_dense, monkeypatch):
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: is_dense)
    for grid in ((9, 12), (13, 17), (23, 16)):
        mask = neighborhood_mask_2d(grid, kernel_size, boundary, **options)
        assert mask.any(1).all()
        assert_equal_with_gradients(
            lambda q, k, v, grid=grid: neighborhood_attention_2d(q, k, v, grid, kernel_size, boundary, **options),
            *tensors(grid[0] * grid[1]), mask, 1e-10,
        )  # fmt: skip


@pytest.mark.parametrize("boundary", ["shift", "truncate"])
@pytest.mark.parametrize(
    "grid, kernel_size, options",
    [
        ((1, 19), (1, 4), {"is_causal": True, "stride": (1, 3)}),
        ((19, 1), (5, 1), {"dilation": (3, 1)}),
        ((1, 19), (3, 4), {"dilation": (1, 4)}),  # of rows there is one
        ((1, 1), 4, {"stride": 2, "is_causal": True}),
        ((5, 21), (8, 6), {"is_causal": (False, True)}),
        ((5, 21), (40, 6), {"stride": (7, 6)}),
        ((21, 5), (2, 64), {"dilation": (10, 1), "is_causal": (True, True)}),
    ],
)
def test_narrow_grids_and_kernels_larger_than_an_axis(grid, kernel_size, options, boundary, monkeypatch):
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: False)
    mask = neighborhood_mask_2d(grid, kernel_size, boundary, **options)
    assert_equal_with_gradients(
        lambda q, k, v: neighborhood_attention_2d(q, k, v, grid, kernel_size, boundary, **options),
        *tensors(grid[0] * grid[1]), mask, 1e-10,
    )  # fmt: skip


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("is_dense", [True, False])
def test_dtypes_of_patterns(dtype, tolerance, is_dense, monkeypatch):
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: is_dense)
    options = {"dilation": (2, 1), "stride": 2, "is_causal": (False, True)}
    mask = neighborhood_mask_2d((9, 14), (4, 5), **options)
    assert_equal_with_gradients(
        lambda q, k, v: neighborhood_attention_2d(q, k, v, (9, 14), (4, 5), scale=0.3, **options),
        *tensors(9 * 14, dtype=dtype), mask, tolerance, 0.3,
    )  # fmt: skip


def test_patterns_are_compiled_without_a_break(monkeypatch):
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: False)

    def patterns(q, k, v):
        wide = neighborhood_attention_2d(q, k, v, (23, 16), 3, dilation=2, stride=2)
        dense = neighborhood_attention_2d(q, k, v, (23, 16), (20, 15))
        return wide + dense + neighborhood_attention_2d(q, k, v, (23, 16), (4, 5), is_causal=(True, False))

    inputs = tensors(23 * 16)
    expected = patterns(*inputs)
    compiled = torch.compile(patterns, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), inputs) for out in (compiled, expected))
    torch.testing.assert_close(ours, theirs)


SPECS = [
    ("na7x5", "na7x5"),
    ("na7x7", "na7"),
    ("na4d2", "na4d2"),
    ("na3d2x1", "na3d2x1"),
    ("na3d1s1", "na3"),
    ("na3c", "na3c"),
    ("na3c1x1", "na3c"),
    ("na3c0x0", "na3"),
    ("na3c0x1/shift", "na3c0x1"),
    ("na6x4d2x3s2c1x0/truncate", "na6x4d2x3s2c1x0/truncate"),
    ("flex:na4x3d2", "flex:na4x3d2"),
    ("natten:na4x3d2s2c", "natten:na4x3d2s2c"),
]


@pytest.mark.parametrize("spec, canonical", SPECS)
def test_specs_of_patterns_round_trip(spec, canonical):
    (processor,) = make_attn_processors(spec, 1)
    assert processor.spec == canonical
    assert make_attn_processors(canonical, 1)[0].spec == canonical
    grid = 12, 13
    inner = getattr(processor, "pattern", processor)
    assert torch.equal(
        processor.mask(grid), neighborhood_mask_2d(grid, inner.kernel_size, inner.boundary, **inner.options)
    )


def test_patterns_in_words():
    def words(spec):
        return make_attn_processors(spec, 1)[0].words

    assert words("na7") == "a token sees the 7 x 7 around it"
    assert words("na7x5d2s3x1") == (
        "a token sees the 7 x 5 around it, 2 rows and 2 columns apart, the same for 3 x 1 tokens"
    )
    assert words("na3c1x0") == "a token sees the 3 x 3 around it, none of later rows"
    assert words("na3c") == "a token sees the 3 x 3 around it, none of later rows and columns"


@pytest.mark.parametrize(
    "spec", ["na4", "na5", "na6/truncate", "na8/truncate", "na5c", "na2d2", "na4s4", "na9s3", "na1"]
)
@pytest.mark.parametrize("grid", [(4, 5), (5, 5), (4, 4), (1, 5), (1, 1)])
def test_patterns_that_see_all_have_a_mask_without_gaps(spec, grid):
    (processor,) = make_attn_processors(spec, 1)
    if all(
        window.kernel * window.dilation <= n or window.dilation == 1
        for window, n in zip(processor.windows, grid, strict=True)
    ):
        assert processor.sees_all(grid) == bool(processor.mask(grid).all())


def test_a_dilated_window_longer_than_its_axis_is_refused():
    processor = NeighborhoodAttnProcessor(3, dilation=(1, 2))
    on_cpu = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": 8, "training": True}
    processor.check(**on_cpu, grid=(2, 6))  # a kernel above its axis sees all of it, undilated
    with pytest.raises(RuntimeError, match=r"'na3d1x2': kernel_size \* dilation must be at most the 5 tokens"):
        processor.check(**on_cpu, grid=(6, 5))
    with pytest.raises(ValueError, match="at most the 5 tokens of its axis; got 3 \\* 2"):
        processor.mask((6, 5))
    assert not processor.sees_all((6, 5))


@pytest.mark.parametrize("pattern", ["na4x3d2", "na3c1x0", "na4d1x3s2", "na6x5s3/truncate"])
def test_flex_block_masks_mean_the_patterns(pattern):
    grid = (20, 17)
    order, inverse, block_mask = flex_plan(pattern, grid, torch.device("cpu"))
    tokens = torch.arange(grid[0] * grid[1])
    sees = block_mask.mask_mod(0, 0, tokens[:, None], tokens[None, :])
    if order is not None:
        sees = sees[inverse][:, inverse]
    assert torch.equal(sees, FlexAttnProcessor(pattern).mask(grid))


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="compiling needs a C++ compiler")
def test_compiled_flex_computes_the_patterns_on_a_cpu():
    processor = FlexAttnProcessor("na4x3d1x2s2c1x0")
    query, key, value = (x.detach().float() for x in tensors(72, heads=2, dim=16))
    with torch.no_grad():
        ours = processor.attend(query, key, value, (8, 9))
    torch.testing.assert_close(ours, processor.pattern.attend(query, key, value, (8, 9)), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="kernel_size \\* dilation must be at most the 5 tokens"):
        processor.check(device=torch.device("cpu"), dtype=torch.float32, grid=(8, 5), head_dim=16, training=False)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="compiling needs a C++ compiler")
@pytest.mark.parametrize(
    ("pattern", "grid"),
    [("full", (8, 9)), ("swa9", (10, 12)), ("na7", (8, 11)), ("na3", (5, 8)), ("na3", (1, 1)), ("na3", (8, 17))],
)
def test_compiled_flex_of_fewer_tokens_than_a_block(pattern, grid):
    """72, 120, 88 and 40 tokens, of which PyTorch's own kernel gives other values, and not the same in every run."""
    processor, tokens = FlexAttnProcessor(pattern), grid[0] * grid[1]
    query, key, value = (torch.randn(2, tokens, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    with torch.no_grad():
        ours = processor.attend(query, key, value, grid)
    rows = (x.double().transpose(1, 2) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=processor.mask(grid)).transpose(1, 2)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size, options", [((5, 5), {}), ((4, 2), {"dilation": (1, 2)}), ((8, 12), {})])
def test_natten_processor_samples_on_a_cpu(kernel_size, options):
    pytest.importorskip("natten")
    processor = NattenAttnProcessor(kernel_size, **options)
    on_cpu = {"device": torch.device("cpu"), "dtype": torch.float32, "grid": (8, 12)}
    processor.check(**on_cpu, head_dim=16, training=False)
    query, key, value = (x.detach().float() for x in tensors(96, heads=2, dim=16))
    ours = processor.pattern.attend(query, key, value, (8, 12))
    torch.testing.assert_close(processor.attend(query, key, value, (8, 12)), ours, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="cannot run for training on cpu"):
        processor.check(**on_cpu, head_dim=16, training=True)
    with pytest.raises(RuntimeError, match="cannot run for sampling on cpu"):
        processor.check(**on_cpu, head_dim=24, training=False)


# --- torch.func and several derivatives

WAYS = ["dense", "tiles", "all", "batched"]


def attend_by(way, monkeypatch, dtype=torch.float64):
    """Attention of 5 x 6 tokens of some pattern, in each of the ways there are on a CPU."""
    monkeypatch.setattr(local, "is_dense_faster", lambda *_: way == "dense")
    if way == "batched":  # as half precision has it

        class Batched:
            apply = staticmethod(local.batched_attention)

        monkeypatch.setattr(local, "HeadwiseAttention", Batched)
    kernel_size, options = ((5, 6), {}) if way == "all" else (3, {"dilation": (1, 2), "stride": 2})
    return lambda query, key, value: neighborhood_attention_2d(query, key, value, (5, 6), kernel_size, **options)


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(way, monkeypatch):
    attend = attend_by(way, monkeypatch)
    inputs = tensors(30, heads=1, dim=2, batch=1)
    assert torch.autograd.gradgradcheck(attend, inputs)
    # Keys that are computed from the queries count once.
    assert torch.autograd.gradgradcheck(lambda q: attend(q, 2 * q, q.square()), inputs[:1])
    leaf = [x.detach().clone().requires_grad_() for x in inputs]
    once = torch.autograd.grad(attend(*leaf).square().sum(), leaf)
    again = torch.autograd.grad(attend(*leaf).square().sum(), leaf, create_graph=True)
    torch.testing.assert_close(once, again)


@pytest.mark.parametrize("way", WAYS)
def test_third_derivatives(way, monkeypatch):
    attend = attend_by(way, monkeypatch)
    query, key, value = tensors(30, heads=1, dim=2, batch=1)

    def second(query):
        (first,) = torch.autograd.grad(attend(query, key, value).square().sum(), query, create_graph=True)
        return torch.autograd.grad(first.square().sum(), query, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, query)


@pytest.mark.parametrize("way", WAYS)
def test_vmap_and_grad(way, monkeypatch):
    attend = attend_by(way, monkeypatch)
    query, key, _ = (x.detach() for x in tensors(30, heads=2, dim=3, batch=4))
    query, key = query.unflatten(0, (2, 2)), key[:2]
    for in_dims, q in (((0, None, None), query), ((3, None, None), query.movedim(0, 3))):
        out = torch.func.vmap(attend, in_dims)(q, key, key)
        torch.testing.assert_close(out, torch.stack([attend(one, key, key) for one in query]))
    with torch.no_grad():
        torch.testing.assert_close(
            torch.func.vmap(attend, (None, 0, None))(key, query, key)[1], attend(key, query[1], key)
        )

    def loss(q, k):
        return attend(q, k, k * k).square().sum()

    found = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(query, key)
    for index, one in enumerate(query):
        leaves = one.clone().requires_grad_(), key.clone().requires_grad_()
        torch.testing.assert_close([x[index] for x in found], list(torch.autograd.grad(loss(*leaves), leaves)))
    # The gradient of the gradient, sample by sample and by the ordinary way.
    second = torch.func.vmap(
        torch.func.grad(lambda q: torch.func.grad(loss)(q, key).square().sum()), randomness="error"
    )(query)
    leaf = query[1].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf, key), leaf, create_graph=True)
    torch.testing.assert_close(second[1], torch.autograd.grad(first.square().sum(), leaf)[0])
    # vmap within grad
    by_all = torch.func.grad(lambda q: torch.func.vmap(lambda one: loss(one, key))(q).sum())(query)
    torch.testing.assert_close(by_all, found[0])


@pytest.mark.parametrize("way", WAYS)
def test_forward_mode_works_or_is_refused_by_name(way, monkeypatch):
    attend = attend_by(way, monkeypatch)
    query, key, value = (x.detach() for x in tensors(30, heads=2, dim=3, batch=1))
    refused = pytest.raises(NotImplementedError, match="local attention on a CPU has no derivatives in forward mode")
    if way == "tiles":
        with refused:
            torch.func.jvp(lambda q: attend(q, key, value), (query,), (value,))
    else:
        _, tangent = torch.func.jvp(lambda q: attend(q, key, value), (query,), (value,))
        far, near = (attend(query + step * value, key, value) for step in (1e-6, -1e-6))
        torch.testing.assert_close(tangent, (far - near) / 2e-6, rtol=1e-6, atol=1e-8)
    query.requires_grad_()
    with refused, torch.autograd.forward_ad.dual_level():
        attend(torch.autograd.forward_ad.make_dual(query, value), key, value)


def test_what_is_kept_in_a_transform_is_of_use_after_it():
    q, k, v = (x.detach() for x in tensors(35))
    for clear in (local._dense_mask, mask_of_plan, places_of_plan, local._cost):
        clear.cache_clear()
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [x.to(dtype) for x in (q, k, v)]

        def attend(*x, kernel_size=3):
            return neighborhood_attention_2d(*x, (5, 7), kernel_size)

        transformed = torch.func.grad(lambda x, inputs=inputs: attend(x, *inputs[1:]).sum())(inputs[0])
        leaf = inputs[0].clone().requires_grad_()
        out = attend(leaf, *inputs[1:])
        torch.testing.assert_close(torch.autograd.grad(out.sum(), leaf)[0], transformed, rtol=0.02, atol=0.02)
        with torch.device("meta"):
            assert attend(*inputs, kernel_size=4).device.type == "cpu"


class Neighbours(torch.nn.Module):
    def __init__(self, grid):
        super().__init__()
        self.grid = grid

    def forward(self, query, key, value):
        return neighborhood_attention_2d(query, key, value, self.grid, 3)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("grid", [(5, 7), (16, 16)])  # under the dense mask, and in tiles
def test_what_a_tracer_makes_is_not_kept(grid, is_first):
    inputs, attend = tuple(x.detach() for x in tensors(grid[0] * grid[1])), Neighbours(grid)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in inputs), attn_mask=neighborhood_mask_2d(grid, 3)
    ).transpose(1, 2)
    for clear in (local._dense_mask, mask_of_plan, places_of_plan, local._cost):
        clear.cache_clear()
    if not is_first:
        attend(*inputs)
    exported = torch.export.export(attend, inputs).module()
    with FakeTensorMode() as mode:
        attend(*map(mode.from_tensor, inputs))
    torch.testing.assert_close(attend(*inputs), expected)
    torch.testing.assert_close(exported(*inputs), expected)


def test_no_samples_and_unused_outputs(monkeypatch):
    for way in WAYS:
        attend = attend_by(way, monkeypatch)
        empty = [x[:0].detach().requires_grad_() for x in tensors(30, heads=2, dim=3)]
        gradients = torch.autograd.grad(attend(*empty).sum(), empty)
        assert all(x.shape == (0, 30, 2, 3) for x in gradients)


def test_the_dense_mask_of_patterns_is_for_few_tokens_alone():
    for threads, options in itertools.product((1, 2), ({}, {"dilation": 2}, {"is_causal": True}, {"stride": 3})):
        windows = make_windows(7, **options)
        assert all(local.is_dense_faster((side, side), windows, threads) for side in range(3, 13))
        assert not any(local.is_dense_faster((side, side), windows, threads) for side in range(32, 70))
