import shutil
import tracemalloc

import numpy as np
import pytest
import torch

from hf_dit import (
    FlexAttnProcessor,
    FullAttnProcessor,
    NattenAttnProcessor,
    NeighborhoodAttnProcessor,
    SlidingWindowAttnProcessor,
    XFormersAttnProcessor,
)
from hf_dit.attention.flex import flex_plan, tile_order
from hf_dit.attention.layer import DiTAttention
from hf_dit.attention.spec import format_attn_spec, make_attn_processors
from hf_dit.models.dit import DiTModel

CPU = torch.device("cpu")


def attention(processor=None, **arguments):
    torch.manual_seed(0)
    return DiTAttention(dim=24, heads=3, head_dim=8, processor=processor, **arguments).double()


def dense(attn, x, mask):
    """Attention of the module's weights under a dense mask, written out."""
    query, key, value = (
        layer(x).unflatten(-1, (attn.heads, attn.head_dim)) for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / attn.head_dim**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return attn.to_out[0](torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2))


@pytest.mark.parametrize("spec", ["full", "swa0", "swa5", "swa99", "na1", "na3", "na5/truncate", "na99"])
def test_processors_compute_what_their_mask_says(spec):
    (processor,) = make_attn_processors(spec, 1)
    attn = attention(processor)
    x = torch.randn(2, 35, 24, dtype=torch.float64)
    expected = dense(attn, x, processor.mask((5, 7)))
    torch.testing.assert_close(attn(x, (5, 7)), expected)
    attn.fuse_projections()
    torch.testing.assert_close(attn(x, (5, 7)), expected)
    attn.unfuse_projections()
    torch.testing.assert_close(attn(x, (5, 7)), expected)
    processor.check(device=CPU, dtype=torch.float32, grid=(5, 7), head_dim=8, training=True)


def test_full_attention_takes_diffusers_backends():
    attn = attention()
    x = torch.randn(2, 12, 24, dtype=torch.float64)
    expected = attn(x, (3, 4))
    attn.set_attention_backend("_native_math")
    torch.testing.assert_close(attn(x, (3, 4)), expected)
    attn.set_attention_backend("_native_cudnn")  # which no CPU has
    with pytest.raises(RuntimeError, match="'full' cannot run for sampling on cpu"):
        attn.processor.check(device=CPU, dtype=torch.float32, grid=(3, 4), head_dim=8, training=False)


def test_specs_round_trip():
    for spec in (
        "full", "swa64", "na7", "na7/truncate", "xformers:full", "xformers:swa8", "flex:na3", "flex:na3/truncate",
        "flex:swa2", "flex:full", "natten:na5", "na7*11,full", "full,na3*2,swa4*9",
    ):  # fmt: skip
        processors = make_attn_processors(spec, 12)
        assert len(processors) == 12 and len({id(processor) for processor in processors}) == 12
        assert format_attn_spec(processors) == spec
    assert format_attn_spec(make_attn_processors(" na7/shift * 12 ", 12)) == "na7"
    kinds = [
        type(processor) for processor in make_attn_processors("full,swa3,na3,xformers:full,flex:na3,natten:na3", 6)
    ]
    assert kinds == [
        FullAttnProcessor, SlidingWindowAttnProcessor, NeighborhoodAttnProcessor, XFormersAttnProcessor,
        FlexAttnProcessor, NattenAttnProcessor,
    ]  # fmt: skip


def test_foreign_processors_have_no_spec():
    class Mine(FullAttnProcessor):
        def attend(self, query, key, value, grid):
            return value

    assert format_attn_spec([FullAttnProcessor(), Mine()]) is None
    assert format_attn_spec([object()]) is None


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "item '' is not known; allowed are full"),
        ("half", "item 'half' is not known"),
        ("na", "item 'na' is not known"),
        ("na3d0", "dilation must be 1 or more"),
        ("na3s4", "stride must be at most kernel_size"),
        ("na3x", "item 'na3x' is not known"),
        ("na3cd2", "item 'na3cd2' is not known"),
        ("na3c2x1", "item 'na3c2x1' is not known"),
        ("na0", "kernel_size must be 1 or more"),
        ("swa-1", "item 'swa-1' is not known"),
        ("na3/wrap", "is not known"),
        ("xformers:na3", "item 'xformers:na3' is not known"),
        ("natten:na3/truncate", "is not known"),
        ("flex:xformers:full", "pattern must be|is not known"),
        ("na3*2", "names 2 layers; the model has 3"),
        ("na3*x,full", "count of 'na3\\*x' must be a whole number"),
        ("na3*2,full*2", "names 4 layers; the model has 3"),
        ("na3,,full", "item '' is not known"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        make_attn_processors(spec, 3)


def test_kernels_that_cannot_run_say_so():
    on_cpu = {"device": CPU, "dtype": torch.float32, "grid": (4, 4), "head_dim": 8}
    with pytest.raises(RuntimeError, match="no backward of a compiled flex_attention on a CPU; 'na3' computes"):
        FlexAttnProcessor("na3").check(**on_cpu, training=True)
    for spec in ("xformers:full", "xformers:swa2"):
        (processor,) = make_attn_processors(spec, 1)
        with pytest.raises((ImportError, RuntimeError), match="pip install xformers|CUDA alone; got device cpu"):
            processor.check(**on_cpu, training=False)
    with pytest.raises((ImportError, RuntimeError), match="pip install natten|no kernel larger than the grid"):
        NattenAttnProcessor(5).check(**on_cpu, training=False)
    with pytest.raises(ValueError, match="pattern must be full, swaW"):
        FlexAttnProcessor("flex:full")


def test_xformers_gets_the_window_as_a_bias():
    pytest.importorskip("xformers")
    assert XFormersAttnProcessor().bias() is None and XFormersAttnProcessor().mask((3, 4)) is None
    processor = XFormersAttnProcessor(window=2)
    local = processor.bias().materialize((12, 12)) == 0
    assert torch.equal(local, processor.mask((3, 4)))


def test_tile_order_visits_tile_after_tile():
    assert tile_order((3, 5), (2, 2)).tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert sorted(tile_order((33, 17), (8, 16)).tolist()) == list(range(33 * 17))


@pytest.mark.parametrize("pattern", ["swa9", "na7", "na5/truncate"])
def test_flex_block_masks_mean_the_pattern(pattern):
    grid = (20, 17)
    order, inverse, block_mask = flex_plan(pattern, grid, CPU)
    tokens = torch.arange(grid[0] * grid[1])
    sees = block_mask.mask_mod(0, 0, tokens[:, None], tokens[None, :])
    if order is not None:
        assert torch.equal(order[inverse], tokens)
        sees = sees[inverse][:, inverse]
    assert torch.equal(sees, FlexAttnProcessor(pattern).mask(grid))
    # No key that is seen lies in a block that is skipped.
    blocks = block_mask.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    tiled = block_mask.mask_mod(0, 0, tokens[:, None], tokens[None, :])
    assert not (tiled & ~blocks[: len(tokens), : len(tokens)]).any()


def test_flex_takes_the_order_that_leaves_fewer_blocks():
    def row_major_blocks(rows, columns):
        mask = FlexAttnProcessor("na7").mask((rows, columns))
        return mask.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(dim=3).any(dim=1).sum()

    for grid, is_tiled in (((64, 64), False), ((16, 256), True)):
        order, _, block_mask = flex_plan("na7", grid, CPU)
        assert (order is not None) == is_tiled
        blocks = block_mask.to_dense().sum()
        assert blocks < row_major_blocks(*grid) if is_tiled else blocks == row_major_blocks(*grid)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="compiling needs a C++ compiler")
def test_compiled_flex_samples_on_a_cpu(monkeypatch):
    processor = FlexAttnProcessor("na3")
    processor.check(device=CPU, dtype=torch.float32, grid=(6, 5), head_dim=16, training=False)
    query, key, value = (torch.randn(1, 30, 1, 16) for _ in range(3))
    with torch.no_grad():
        ours = processor.attend(query, key, value, (6, 5))
    expected = NeighborhoodAttnProcessor(3).attend(query, key, value, (6, 5))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    # Past the limit of compilations it stops, where PyTorch would compute dense scores.
    monkeypatch.setattr("hf_dit.attention.flex.FLEX_COMPILATIONS", 1)
    with torch.no_grad(), pytest.raises(RuntimeError, match="compiled 1 times"):
        processor.attend(*(torch.randn(1, 132, 1, 16) for _ in range(3)), (11, 12))


def test_flex_plans_made_in_inference_mode_are_for_training_too():
    with torch.inference_mode():
        order, inverse, block_mask = flex_plan("na7", (16, 256), CPU)
    assert not any(x.is_inference() for x in (order, inverse, block_mask.kv_indices))


@pytest.mark.parametrize(
    "spec", ["na7*1000000,full", "full*1000000000000000000000", "full*" + "9" * 5000, "full*9999,full"]
)
def test_counts_are_added_before_processors_are_made(spec):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="the model has 3") as caught:
            make_attn_processors(spec, 3)
        assert tracemalloc.get_traced_memory()[1] < 2**20 and len(str(caught.value)) < 400
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="the model has 3"):
        config = {**DiTModel.from_name("dit-micro-2").config, "num_layers": 3, "attention": spec}
        DiTModel.from_config({**config, "_use_default_values": []})


def test_a_wrong_number_of_processors_is_said():
    model = DiTModel.from_name("dit-micro-2")
    with pytest.raises(ValueError, match="number of processors"):
        model.set_attn_processor(dict(list(model.attn_processors.items())[:1]))


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_sizes_are_any_integers(kind):
    assert NeighborhoodAttnProcessor(kind(3)).spec == "na3" and SlidingWindowAttnProcessor(kind(4)).spec == "swa4"
    for wrong in (True, 3.0, "3"):
        with pytest.raises(TypeError, match="whole number"):
            NeighborhoodAttnProcessor(wrong)


@pytest.mark.parametrize("spec", ["na3", "na5", "na7", "na9", "na3/truncate", "na9/truncate", "swa10", "swa24"])
@pytest.mark.parametrize("grid", [(4, 5), (5, 5), (3, 9)])
def test_what_sees_all_has_a_mask_without_gaps(spec, grid):
    (processor,) = make_attn_processors(spec, 1)
    assert processor.sees_all(grid) == bool(processor.mask(grid).all())
