import copy
import json
import math

import accelerate
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import PatchEmbed
from torch import nn
from torch.nn import functional as F

from hf_dit import FullAttnProcessor, NeighborhoodAttnProcessor, SlidingWindowAttnProcessor
from hf_dit.models.convert import convert_original
from hf_dit.models.dit import DiTModel
from hf_dit.models.positions import position_embedding
from hf_dit.models.sizes import DIT_SIZES, dit_config

SMALL = {
    "sample_size": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_classes": 5,
}


def randomise(model, std=0.1, seed=0):
    """Draw every weight, those that start at zero included: at the start a DiT says nothing but zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model


def small_model(**overrides):
    return randomise(DiTModel(**{**SMALL, **overrides})).eval()


def public_config(model):
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def inputs(batch=3, channels=4, height=8, width=8, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, channels, height, width, generator=generator).to(dtype)
    return sample, torch.tensor([0, 417, 999])[:batch], torch.tensor([5, 0, 3])[:batch]  # 5: the null class


def stock_model(tied=True, **overrides):
    arguments = {
        "sample_size": 8,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_embeds_ada_norm": 5,
        **overrides,
    }
    model = randomise(DiTTransformer2DModel(**arguments)).eval()
    if tied:
        for block in model.transformer_blocks[1:]:
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


# An independent DiT in the names and formulas of the paper's code: explicit loops and softmax, any floating dtype.


def reference_positions(dim, h, w, native_h, native_w):
    def axis(place):
        angles = [place / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    rows = [axis(x * native_w / w) + axis(y * native_h / h) for y in range(h) for x in range(w)]
    return torch.tensor(rows, dtype=torch.float64)


def reference_weights(
    dim=32, depth=2, in_channels=4, out_channels=8, patch=2, side=4, rows=6, mlp=128, seed=0, dtype=torch.float32
):
    shapes = {
        "x_embedder.proj.weight": (dim, in_channels, patch, patch),
        "x_embedder.proj.bias": (dim,),
        "t_embedder.mlp.0.weight": (dim, 256),
        "t_embedder.mlp.0.bias": (dim,),
        "t_embedder.mlp.2.weight": (dim, dim),
        "t_embedder.mlp.2.bias": (dim,),
        "y_embedder.embedding_table.weight": (rows, dim),
        "final_layer.adaLN_modulation.1.weight": (2 * dim, dim),
        "final_layer.adaLN_modulation.1.bias": (2 * dim,),
        "final_layer.linear.weight": (patch**2 * out_channels, dim),
        "final_layer.linear.bias": (patch**2 * out_channels,),
    }
    for i in range(depth):
        for name, out, width in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", mlp, dim),
            ("mlp.fc2", dim, mlp),
            ("adaLN_modulation.1", 6 * dim, dim),
        ):
            shapes[f"blocks.{i}.{name}.weight"] = (out, width)
            shapes[f"blocks.{i}.{name}.bias"] = (out,)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for name, shape in shapes.items()}
    weights["pos_embed"] = reference_positions(dim, side, side, side, side)[None].to(dtype)
    return weights


def reference_dit(weights, sample, timestep, labels, heads=2, divisor=128, side=4):
    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def silu(x):
        return x * torch.sigmoid(x)

    dtype = sample.dtype
    dim, _, patch, _ = weights["x_embedder.proj.weight"].shape
    h, w = sample.shape[2] // patch, sample.shape[3] // patch
    patches = F.unfold(sample, patch, stride=patch).transpose(1, 2)
    x = patches @ weights["x_embedder.proj.weight"].flatten(1).T + weights["x_embedder.proj.bias"]
    x = x + reference_positions(dim, h, w, side, side).to(dtype)

    frequencies = torch.tensor([10000 ** (-i / divisor) for i in range(128)], dtype=torch.float32)
    angles = timestep.float()[:, None] * frequencies
    t = torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)
    t = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", t)))
    c = silu(t + weights["y_embedder.embedding_table.weight"][labels])[:, None]

    i = 0
    while f"blocks.{i}.attn.qkv.weight" in weights:
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c).split(dim, dim=-1)
        qkv = linear(f"blocks.{i}.attn.qkv", norm(x) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(-1, (3, heads, dim // heads)).permute(2, 0, 3, 1, 4)
        a = ((q @ k.transpose(-1, -2)) / math.sqrt(dim // heads)).softmax(-1) @ v
        x = x + gate1 * linear(f"blocks.{i}.attn.proj", a.transpose(1, 2).flatten(2))
        m = linear(f"blocks.{i}.mlp.fc1", norm(x) * (1 + scale2) + shift2)
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        x = x + gate2 * linear(f"blocks.{i}.mlp.fc2", m)
        i += 1
    shift, scale = linear("final_layer.adaLN_modulation.1", c).split(dim, dim=-1)
    tokens = linear("final_layer.linear", norm(x) * (1 + scale) + shift)

    channels = tokens.shape[2] // patch**2
    out = torch.empty(len(sample), channels, h * patch, w * patch, dtype=dtype)
    for y in range(h * patch):
        for z in range(w * patch):
            start = (y % patch * patch + z % patch) * channels
            out[:, :, y, z] = tokens[:, y // patch * w + z // patch, start : start + channels]
    return out


# Sizes and initial weights


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize(
    "size, depth, dim, millions",
    [("s", 12, 384, 32.9), ("b", 12, 768, 130.3), ("l", 24, 1024, 457.8), ("xl", 28, 1152, 674.8)],
)
def test_sizes_have_the_papers_number_of_parameters(size, depth, dim, millions, patch):
    with torch.device("meta"):
        model = DiTModel.from_name(f"dit-{size}-{patch}")
    embedders = (4 * patch**2 + 1) * dim + (256 + 1) * dim + (dim + 1) * dim + 1001 * dim
    block = 6 * (dim + 1) * dim + 4 * (dim + 1) * dim + (dim + 1) * 4 * dim + (4 * dim + 1) * dim
    output = (dim + 1) * 2 * dim + (dim + 1) * patch**2 * 8
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == embedders + depth * block + output
    if patch == 2:
        assert round(count / 1e6, 1) == millions
    assert model.config.attention_head_dim == (72 if size == "xl" else 64)
    assert model.config.patch_size == patch


def test_names_are_the_published_sizes_and_small_ones():
    published = [f"dit-{size}-{patch}" for size in ("s", "b", "l", "xl") for patch in (2, 4, 8)]
    assert list(DIT_SIZES) == [*published, "dit-tiny-2", "dit-tiny-4", "dit-micro-2"]
    for name in ("dit-tiny-2", "dit-tiny-4"):
        with torch.device("meta"):
            model = DiTModel.from_name(name, num_classes=10)
        assert 2e6 < model.num_parameters() < 3e6
    with pytest.raises(ValueError, match="name must be one of dit-s-2, .*dit-xl-8.*'dit-m-2'"):
        dit_config("dit-m-2")
    assert dit_config("dit-s-4", num_classes=7)["num_classes"] == 7
    assert "num_classes" not in DIT_SIZES["dit-s-4"]


def test_the_defaults_are_dit_xl_2():
    with torch.device("meta"):
        assert public_config(DiTModel()) == public_config(DiTModel.from_name("dit-xl-2"))


def test_initial_weights_are_those_of_the_paper():
    torch.manual_seed(0)
    model = DiTModel(**{**SMALL, "num_attention_heads": 8, "num_classes": 200})
    dim = 128
    block = model.transformer_blocks[1]
    bounds = {
        model.patch_embed.weight: math.sqrt(6 / (4 * 4 + dim)),  # of the flattened (dim, 4 x 2 x 2)
        block.attn.to_q.weight: math.sqrt(6 / (dim + 3 * dim)),  # a part of one (3 dim, dim)
        block.attn.to_k.weight: math.sqrt(6 / (dim + 3 * dim)),
        block.attn.to_v.weight: math.sqrt(6 / (dim + 3 * dim)),
        block.attn.to_out[0].weight: math.sqrt(6 / (dim + dim)),
        block.ff.net[0].proj.weight: math.sqrt(6 / (dim + 4 * dim)),
        block.ff.net[2].weight: math.sqrt(6 / (dim + 4 * dim)),
    }
    for weight, bound in bounds.items():
        assert 0.97 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    normal = [model.time_embedding.linear_1, model.time_embedding.linear_2, model.class_embedding]
    for module in normal:
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert module.weight.abs().max() > 0.05  # beyond a uniform distribution of that deviation
    zero = [model.modulation_out, model.proj_out, *(block.modulation for block in model.transformer_blocks)]
    assert not any(module.weight.any() for module in zero)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_a_new_model_says_zero_and_its_blocks_are_the_identity():
    model = DiTModel(**SMALL)
    sample, timestep, labels = inputs()
    tokens, condition = torch.randn(3, 16, 32), torch.randn(3, 32)
    for block in model.transformer_blocks:
        assert torch.equal(block(tokens, condition, (4, 4)), tokens)
    out = model(sample, timestep, labels).sample
    assert out.shape == (3, 8, 8, 8)
    assert torch.equal(out, torch.zeros_like(out))


def test_initial_weights_follow_the_seed():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(DiTModel(**SMALL).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["patch_embed.weight"], states[2]["patch_embed.weight"])


# Positions


@pytest.mark.parametrize("grid, native", [((4, 4), (4, 4)), ((3, 5), (3, 5)), ((6, 2), (4, 4)), ((7, 1), (3, 5))])
def test_positions_are_sines_and_cosines_of_scaled_places(grid, native):
    made = position_embedding(grid, native, 24, device=torch.device("cpu"), dtype=torch.float64)
    torch.testing.assert_close(made, reference_positions(24, *grid, *native), rtol=0, atol=1e-12)


@pytest.mark.parametrize("height, width", [(16, 16), (24, 24), (8, 12)])
def test_positions_are_those_of_diffusers(height, width):
    embed = PatchEmbed(16, 16, patch_size=2, in_channels=1, embed_dim=32)
    nn.init.zeros_(embed.proj.weight), nn.init.zeros_(embed.proj.bias)
    theirs = embed(torch.zeros(1, 1, height, width))[0]
    ours = position_embedding((height // 2, width // 2), (8, 8), 32, device=torch.device("cpu"), dtype=torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_positions_survive_moves_between_dtypes_and_are_not_saved():
    model = small_model()
    assert not [name for name in model.state_dict() if "pos" in name]
    sample, timestep, labels = inputs()
    with torch.no_grad():
        model(sample, timestep, labels)
        before = model._positions((4, 4), device=torch.device("cpu"), dtype=torch.float32)
        assert model._positions((4, 4), device=torch.device("cpu"), dtype=torch.float32) is before
        model.to(torch.bfloat16)
        model(sample.bfloat16(), timestep, labels)
        model.to(torch.float32)
        model(sample, timestep, labels)
    torch.testing.assert_close(
        model._positions.last[1].double(), reference_positions(32, 4, 4, 4, 4), rtol=0, atol=1e-7
    )


# Conversions


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"out_channels": None, "norm_eps": 1e-2},
        {"attention_bias": False, "patch_size": 4, "sample_size": 16},
        {"out_channels": 4, "in_channels": 4, "num_attention_heads": 1, "attention_head_dim": 36},
    ],
)
def test_a_converted_stock_model_says_the_same(options):
    stock = stock_model(**options)
    model = DiTModel.from_diffusers(stock)
    assert not model.training
    native = stock.config.sample_size
    with torch.no_grad():
        for size in (native, 2 * native, native // 2):
            sample, timestep, labels = inputs(height=size, width=size)
            theirs, ours = stock(sample, timestep, labels).sample, model(sample, timestep, labels).sample
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            assert theirs.std() > 0.05
    assert model.null_class_id == 5
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in stock.parameters())


def test_a_stock_model_is_converted_from_a_folder(tmp_path):
    stock = stock_model(dropout=0.1)
    stock.save_pretrained(tmp_path / "transformer")
    file = tmp_path / "transformer" / "config.json"
    published = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "only_cross_attention": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | published))  # the form of the published weights
    sample, timestep, labels = inputs()
    model = DiTModel.from_diffusers(str(tmp_path), subfolder="transformer", attention="na3*2,full")
    assert model.config.attention == "na3*2,full"
    assert model.config.dropout == 0.1
    model.set_attn_processor("full")
    torch.testing.assert_close(
        model(sample, timestep, labels).sample, stock(sample, timestep, labels).sample, rtol=0, atol=1e-5
    )
    half = DiTModel.from_diffusers(tmp_path / "transformer", torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with pytest.raises(TypeError, match="subfolder"):
        DiTModel.from_diffusers(stock, subfolder="transformer")


def test_a_converted_model_shares_no_memory():
    stock = stock_model()
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    model = DiTModel.from_diffusers(stock)
    weights = reference_weights()
    ours = DiTModel.from_original(weights, 2)
    kept = {name: value.clone() for name, value in weights.items()}
    with torch.no_grad():
        for parameter in [*model.parameters(), *ours.parameters()]:
            assert parameter.requires_grad and parameter.is_contiguous()
            parameter.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in stock.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in weights.items())


def test_stock_models_that_cannot_be_represented_are_refused():
    for options, words in (
        ({"activation_fn": "geglu"}, "activation_fn must be 'gelu-approximate'.*'geglu'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine must be False"),
        ({"upcast_attention": True}, "upcast_attention must be False"),
        ({"out_channels": 6}, "out_channels must be once or twice in_channels=4.*6"),
    ):
        with pytest.raises(ValueError, match=words):
            DiTModel.from_diffusers(stock_model(**options))


@pytest.mark.parametrize("divisor", [128, 127])
@pytest.mark.parametrize("height, width", [(8, 8), (12, 4)])
def test_original_weights_say_the_same_as_the_papers_formulas(divisor, height, width):
    weights = reference_weights()
    model = DiTModel.from_original(weights, num_attention_heads=2, downscale_freq_shift=128 - divisor)
    assert not model.training
    sample, timestep, labels = inputs(height=height, width=width)
    expected = reference_dit(weights, sample, timestep, labels, divisor=divisor)
    with torch.no_grad():
        out = model(sample, timestep, labels).sample
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    other = reference_dit(weights, sample, timestep, labels, divisor=255 - divisor)
    assert (out - other).abs().max() > 1e-2  # the conventions are told apart


def test_original_weights_in_float64_and_of_another_shape():
    weights = reference_weights(
        dim=24, depth=1, in_channels=3, out_channels=3, patch=4, side=3, rows=5, mlp=40, dtype=torch.float64
    )
    model = DiTModel.from_original(weights, num_attention_heads=3, class_dropout_prob=0.0)
    assert public_config(model) == {
        "sample_size": 12,
        "patch_size": 4,
        "in_channels": 3,
        "num_layers": 1,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_classes": 5,
        "learn_sigma": False,
        "class_dropout_prob": 0.0,
        "mlp_ratio": 40 / 24,
        "dropout": 0.0,
        "attention_bias": True,
        "norm_eps": 1e-6,
        "mlp_norm_eps": None,
        "downscale_freq_shift": 0,
        "attention": "full",
        "conditioning": "adaln_zero",
        "qk_norm": None,
        "position": "sincos",
        "mlp": "gelu",
        "embedders": "shared",
    }
    sample, timestep, _ = inputs(channels=3, height=12, width=12, dtype=torch.float64)
    labels = torch.tensor([4, 0, 2])
    out = model(sample, timestep, labels).sample
    torch.testing.assert_close(
        out, reference_dit(weights, sample, timestep, labels, heads=3, side=3), rtol=0, atol=1e-5
    )


def test_published_widths_tell_their_heads():
    for dim, heads in ((384, 6), (768, 12), (1024, 16), (1152, 16)):
        weights = reference_weights(dim=dim, depth=1, side=2, mlp=4)
        assert convert_original(weights)[0]["num_attention_heads"] == heads
    with pytest.raises(ValueError, match="num_attention_heads is needed for a model of width 32"):
        DiTModel.from_original(reference_weights())
    with pytest.raises(ValueError, match="num_attention_heads must divide the width 32, got 5"):
        DiTModel.from_original(reference_weights(), 5)


def test_original_weights_that_are_not_a_dit_are_refused():
    weights = reference_weights()
    with pytest.raises(ValueError, match="missing: blocks.1.attn.qkv.bias; unknown: none"):
        DiTModel.from_original({name: w for name, w in weights.items() if name != "blocks.1.attn.qkv.bias"}, 2)
    with pytest.raises(ValueError, match="missing: none; unknown: blocks.0.attn.q_norm.weight"):
        DiTModel.from_original({**weights, "blocks.0.attn.q_norm.weight": torch.ones(16)}, 2)
    swapped = weights["pos_embed"].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)  # h first
    for positions in (swapped, weights["pos_embed"][:, :12], weights["pos_embed"] * 1.01):
        with pytest.raises(ValueError, match="pos_embed must hold"):
            DiTModel.from_original({**weights, "pos_embed": positions}, 2)
    with pytest.raises(ValueError, match="out_channels must be once or twice in_channels=4.*got 5"):
        DiTModel.from_original(reference_weights(out_channels=5), 2)


def test_original_weights_in_half_precision_are_taken():
    model = DiTModel.from_original(reference_weights(dtype=torch.float16), 2)
    assert model.dtype == torch.float16
    assert model.config.sample_size == 8


# Conditions


def test_labels_are_dropped_once_for_a_sample_and_as_often_as_asked():
    model = small_model(sample_size=2, num_layers=1, class_dropout_prob=0.3).train()
    seen = []
    model.class_embedding.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    labels = torch.arange(4000) % 5
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.zeros(4000, 4, 2, 2), 3, labels)
        model(torch.zeros(4000, 4, 2, 2), 3, labels)
    assert len(seen) == 2  # one draw for the whole model
    for given in seen:
        dropped = given == 5
        assert torch.equal(given[~dropped], labels[~dropped])
        assert abs(dropped.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert not torch.equal(seen[0], seen[1])


def test_a_dropped_label_is_dropped_in_every_block():
    model = small_model(class_dropout_prob=0.5)
    sample = inputs(batch=1)[0].expand(16, 4, 8, 8)
    labels, null = torch.full((16,), 2), torch.full((16,), 5)
    with torch.no_grad():
        with_label, without = model(sample, 100, labels).sample, model(sample, 100, null).sample
        assert not torch.allclose(with_label, without, atol=1e-2)
        model.train()
        torch.manual_seed(0)
        out = model(sample, 100, labels).sample
        torch.manual_seed(0)
        assert torch.equal(model(sample, 100, labels).sample, out)
    kept = torch.isclose(out, with_label, atol=1e-6).flatten(1).all(1)
    dropped = torch.isclose(out, without, atol=1e-6).flatten(1).all(1)
    assert torch.equal(kept, ~dropped)
    assert 0 < kept.sum() < 16


def test_force_drop_ids_decide_in_place_of_chance():
    model = small_model(class_dropout_prob=0.9)
    sample, timestep, _ = inputs()
    labels, drop = torch.tensor([1, 2, 3]), torch.tensor([True, False, True])
    with torch.no_grad():
        expected = model(sample, timestep, torch.tensor([5, 2, 5])).sample
        assert torch.equal(model(sample, timestep, labels, force_drop_ids=drop).sample, expected)
        model.train()
        state = torch.random.get_rng_state()
        assert torch.equal(model(sample, timestep, labels, force_drop_ids=drop).sample, expected)
        assert torch.equal(torch.random.get_rng_state(), state)
        no_drop = torch.zeros(3, dtype=torch.bool)
        assert torch.equal(
            model(sample, timestep, labels, force_drop_ids=no_drop).sample, model.eval()(sample, timestep, labels)[0]
        )


def test_timesteps_may_be_numbers_or_tensors():
    model = small_model()
    sample, _, labels = inputs()
    with torch.no_grad():
        expected = model(sample, torch.tensor([417, 417, 417]), labels).sample
        for timestep in (417, 417.0, torch.tensor(417), torch.tensor(417.0), torch.full((3,), 417.0)):
            assert torch.equal(model(sample, timestep, labels).sample, expected)
        assert not torch.equal(model(sample, 417.5, labels).sample, expected)
        each = model(sample, torch.tensor([1, 417, 9]), labels).sample
    torch.testing.assert_close(each[1], expected[1], rtol=0, atol=1e-6)
    assert not torch.allclose(each[0], expected[0], atol=1e-3)


def test_an_unconditional_model_takes_no_labels():
    model = small_model(num_classes=None)
    sample, timestep, labels = inputs()
    assert not [name for name in model.state_dict() if "class" in name]
    assert model.train()(sample, timestep).sample.shape == (3, 8, 8, 8)
    for arguments in ({"class_labels": labels}, {"force_drop_ids": torch.ones(3, dtype=torch.bool)}):
        with pytest.raises(ValueError, match="unconditional"):
            model(sample, timestep, **arguments)
    with pytest.raises(ValueError, match="num_classes=None.*no null class"):
        _ = model.null_class_id


def test_a_model_without_label_dropout_has_no_null_class():
    model = small_model(class_dropout_prob=0.0).train()
    sample, timestep, _ = inputs()
    assert model.class_embedding.num_embeddings == 5
    assert model(sample, timestep, torch.tensor([4, 0, 1])).sample.isfinite().all()
    with pytest.raises(ValueError, match=r"\[0, 4\], got \[5, 0, 3\]"):
        model(sample, timestep, torch.tensor([5, 0, 3]))
    with pytest.raises(ValueError, match="no null class"):
        model(sample, timestep, torch.tensor([4, 0, 1]), force_drop_ids=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="null_class_id does not exist"):
        model(sample, timestep)


def test_wrong_inputs_are_named():
    model = small_model()
    sample, timestep, labels = inputs()
    for arguments, error, words in (
        ((sample, timestep), ValueError, "class_labels are missing.*null_class_id is 5"),
        ((sample, timestep, torch.tensor([0, 6, 1])), ValueError, r"class_labels must lie in \[0, 5\].*6"),
        ((sample, timestep, torch.tensor([0, -1, 1])), ValueError, r"class_labels must lie in \[0, 5\].*-1"),
        ((sample, timestep, labels.float()), TypeError, "class_labels must be int64, got torch.float32"),
        ((sample, timestep, labels[:2]), ValueError, r"class_labels must have shape \(3,\), got \(2,\)"),
        ((sample, timestep, labels[:, None]), ValueError, r"class_labels must have shape \(3,\), got \(3, 1\)"),
        ((sample, timestep, labels, torch.ones(3)), ValueError, r"force_drop_ids must be \(3,\) bool"),
        ((sample, timestep, labels, torch.ones(2) > 0), ValueError, r"force_drop_ids must be \(3,\) bool"),
        ((sample, timestep[:2], labels), ValueError, r"timestep must be .*\(3,\), got \(2,\)"),
        ((sample, timestep[None], labels), ValueError, r"timestep must be .*\(3,\), got \(1, 3\)"),
        ((sample, [1, 2, 3], labels), TypeError, "timestep must be a tensor or a number, got list"),
        ((sample[:, :3], timestep, labels), ValueError, r"hidden_states must be \(B, 4, H, W\), got \(3, 3, 8, 8\)"),
        ((sample[0], timestep, labels), ValueError, r"hidden_states must be \(B, 4, H, W\), got \(4, 8, 8\)"),
        ((sample[..., :7], timestep, labels), ValueError, "multiples of patch_size=2, got 8 x 7"),
        ((sample[:, :, :5], timestep, labels), ValueError, "multiples of patch_size=2, got 5 x 8"),
        ((sample[:, :, :0], timestep, labels), ValueError, "multiples of patch_size=2, got 0 x 8"),
    ):
        with pytest.raises(error, match=words):
            model(*arguments)


def test_wrong_arguments_are_named():
    for overrides, words in (
        ({"sample_size": 7}, "multiples of patch_size=2, got 7 x 7"),
        ({"sample_size": (8, 5)}, "multiples of patch_size=2, got 8 x 5"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_attention_heads": 1, "attention_head_dim": 18}, "divisible by 4.*1 \\* 18"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"class_dropout_prob": 1.1}, "class_dropout_prob must lie in"),
        ({"downscale_freq_shift": 2}, "downscale_freq_shift must be 0 or 1"),
        ({"attention": "local7"}, "'local7'"),
        ({"attention": "na3*3,full"}, "na3"),
        ({"attention": None}, "attention must be a spec"),
    ):
        with pytest.raises(ValueError, match=words):
            DiTModel(**{**SMALL, **overrides})


# Attention that can be swapped, and files


def test_processors_are_set_by_spec_by_object_and_by_dict():
    model = small_model()
    sample, timestep, labels = inputs()
    names = ["transformer_blocks.0.attn.processor", "transformer_blocks.1.attn.processor"]
    assert list(model.attn_processors) == names
    with torch.no_grad():
        full = model(sample, timestep, labels).sample
        model.set_attn_processor("na3,full")
        assert model.config.attention == "na3,full"
        mixed = model(sample, timestep, labels).sample
        assert not torch.allclose(mixed, full, atol=1e-4)
        model.set_attn_processor(SlidingWindowAttnProcessor(2))
        assert model.config.attention == "swa2"
        processors = {names[1]: FullAttnProcessor(), names[0]: NeighborhoodAttnProcessor(3)}
        model.set_attn_processor(processors)
        assert list(processors) == [names[1], names[0]]  # not emptied
        assert model.config.attention == "na3,full"
        assert torch.equal(model(sample, timestep, labels).sample, mixed)
        model.set_attn_processor("full")
        assert torch.equal(model(sample, timestep, labels).sample, full)


def test_wrong_processors_leave_the_model_as_it_is():
    model = small_model(attention="na3")
    before = list(model.attn_processors.values())
    for processor in (
        "na3*3",
        "local",
        {"transformer_blocks.0.attn.processor": FullAttnProcessor()},
        {"transformer_blocks.0.attn.processor": FullAttnProcessor(), "other.processor": FullAttnProcessor()},
    ):
        with pytest.raises(ValueError):
            model.set_attn_processor(processor)
        assert list(model.attn_processors.values()) == before
        assert model.config.attention == "na3"


def test_a_saved_model_comes_back_equal(tmp_path):
    model = small_model(sample_size=(8, 12), attention="na3*1,full")
    sample, timestep, labels = inputs(height=8, width=12)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["attention"] == "na3,full"
    with torch.no_grad():
        expected = model(sample, timestep, labels).sample
        for options in ({}, {"low_cpu_mem_usage": False}, {"device_map": "cpu"}):
            loaded, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True, **options)
            assert not any(info.values())
            assert torch.equal(loaded(sample, timestep, labels).sample, expected)
            assert loaded.config.attention == "na3,full"
            assert not loaded.training
        other = small_model(sample_size=(8, 12))(sample, timestep, labels).sample
    assert not torch.allclose(other, expected, atol=1e-4)
    assert public_config(DiTModel.from_config(loaded.config)) == public_config(loaded)
    assert public_config(DiTModel.from_config(model.config)) == public_config(model)


def test_attention_set_later_is_kept_by_a_model_made_from_the_config():
    model = small_model()  # `attention` is left at its default, which from_config would prefer
    model.set_attn_processor("na3")
    assert DiTModel.from_config(model.config).config.attention == "na3"
    model.set_attn_processor("full")
    assert DiTModel.from_config(dict(model.config)).config.attention == "full"


def test_processors_set_on_a_layer_are_saved_too(tmp_path):
    model = small_model()
    model.transformer_blocks[1].attn.set_processor(NeighborhoodAttnProcessor(3))
    model.save_pretrained(tmp_path)
    assert model.config.attention == "full,na3"
    assert DiTModel.from_pretrained(tmp_path).config.attention == "full,na3"


def test_a_foreign_processor_works_and_is_never_saved_as_another(tmp_path):
    class Values:
        def __call__(self, attn, hidden_states, grid):
            return attn.to_out[0](attn.to_v(hidden_states))

    model = small_model()
    sample, timestep, labels = inputs()
    model.transformer_blocks[1].attn.set_processor(Values())
    with pytest.raises(ValueError, match="transformer_blocks.1.attn.processor is a Values, which has no spec"):
        model.save_pretrained(tmp_path / "one")
    model.set_attn_processor(Values())
    assert model.config.attention is None
    assert model(sample, timestep, labels).sample.isfinite().all()
    model.check_attention(height=8, width=8)
    with pytest.raises(ValueError, match="transformer_blocks.0.attn.processor is a Values"):
        model.save_pretrained(tmp_path / "all")
    with pytest.raises(ValueError, match="attention must be a spec"):
        DiTModel.from_config(model.config)
    assert not list(tmp_path.rglob("*.*"))
    model.set_attn_processor("full")
    model.save_pretrained(tmp_path / "full")


def test_check_attention_asks_every_layer():
    asked = []

    class Asked(FullAttnProcessor):
        def check(self, **arguments):
            asked.append(arguments)

    model = small_model(sample_size=(8, 12))
    for block in model.transformer_blocks:
        block.attn.set_processor(Asked())
    model.check_attention(height=8, width=12)
    own = {"device": torch.device("cpu"), "dtype": torch.float32, "grid": (4, 6), "head_dim": 16, "training": False}
    assert asked == [own, own]
    model.check_attention(height=4, width=4, device="cuda:1", dtype=torch.float16, training=True)
    assert asked[2] == {
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "grid": (2, 2),
        "head_dim": 16,
        "training": True,
    }
    with torch.autocast("cpu", torch.bfloat16):  # attention gets what autocast makes of the model's float32
        model.check_attention(height=8, width=12)
        assert asked[-1]["dtype"] == torch.bfloat16
        model.check_attention(height=8, width=12, dtype=torch.float16)
        assert asked[-1]["dtype"] == torch.float16
        model.check_attention(height=8, width=12, device="meta")
        assert asked[-1]["dtype"] == torch.float32
        model.double().check_attention(height=8, width=12)
        assert asked[-1]["dtype"] == torch.float64
    with pytest.raises(ValueError, match="multiples of patch_size=2, got 8 x 9"):
        model.check_attention(height=8, width=9)
    model.set_attn_processor("full,flex:na3")
    with pytest.raises(RuntimeError, match="flex:na3"):
        model.check_attention(height=8, width=8, training=True)


def test_bfloat16_models_load_and_stay_close(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    sample, timestep, labels = inputs()
    with torch.no_grad():
        out = loaded(sample.bfloat16(), timestep, labels).sample
        expected = model(sample, timestep, labels).sample
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(sample, timestep, labels).sample
        assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()
        # In bfloat16 the angles of 999 and 998 would be the same.
        first, second = (loaded(sample.bfloat16(), t, labels).sample for t in (998, 999))
    assert not torch.equal(first, second)


# What a model of the library can do


def test_fused_projections_say_the_same():
    for bias in (True, False):
        model = small_model(attention="na3,full", attention_bias=bias)
        sample, timestep, labels = inputs()
        with torch.no_grad():
            expected = model(sample, timestep, labels).sample
            model.fuse_qkv_projections()
            assert model.transformer_blocks[0].attn.fused_projections
            torch.testing.assert_close(model(sample, timestep, labels).sample, expected, rtol=0, atol=1e-6)
            model.unfuse_qkv_projections()
            assert torch.equal(model(sample, timestep, labels).sample, expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    sample, timestep, labels = inputs()
    gradients = []
    for checkpointing in (False, True):
        model = small_model(dropout=0.2, class_dropout_prob=0.5).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        calls = []
        model.transformer_blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        model(sample, timestep, labels).sample.square().mean().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient.any() for gradient in gradients[0].values())


def test_dropout_acts_in_training_alone():
    model = small_model(dropout=0.5, class_dropout_prob=0.0)
    sample, timestep, _ = inputs()
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = small_model(class_dropout_prob=0.0)(sample, timestep, labels).sample
        assert torch.equal(model(sample, timestep, labels).sample, expected)
        model.train()
        assert not torch.allclose(model(sample, timestep, labels).sample, expected, atol=1e-3)


def test_the_whole_model_and_its_blocks_compile_without_a_break():
    sample, timestep, labels = inputs()
    wide = sample.repeat(1, 1, 1, 2)
    model = small_model()
    whole = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    blocks = copy.deepcopy(model)
    blocks.compile_repeated_blocks(backend="eager", fullgraph=True)
    with torch.no_grad():
        for x in (sample, wide):
            expected = model(x, timestep, labels).sample
            for compiled in (whole, blocks):
                torch.testing.assert_close(compiled(x, timestep, labels).sample, expected, rtol=0, atol=1e-5)
    gradients = []
    for trained in (model, whole, blocks):
        trained.train()
        no_drop = torch.zeros(3, dtype=torch.bool)
        trained(sample, timestep, labels, force_drop_ids=no_drop).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in trained.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)


def test_blocks_are_kept_whole_on_a_device():
    model = small_model(num_layers=6)
    whole = model._get_no_split_modules("auto")
    assert whole == ["DiTBlock"]
    size = model.num_parameters() * 4
    device_map = accelerate.infer_auto_device_map(
        model, {"cpu": int(0.8 * size), "disk": 2 * size}, no_split_module_classes=whole
    )
    places = {name: place for name, place in device_map.items() if name.startswith("transformer_blocks")}
    assert places.keys() == {f"transformer_blocks.{i}" for i in range(6)}
    assert set(places.values()) == {"cpu", "disk"}


def test_outputs_are_deterministic_and_may_be_a_tuple():
    model = small_model()
    sample, timestep, labels = inputs()
    with torch.no_grad():
        expected = model(sample, timestep, labels).sample
        (again,) = model(sample, timestep, labels, return_dict=False)
        copied = copy.deepcopy(model)(sample, timestep, labels).sample
        each = torch.cat([model(sample[i : i + 1], timestep[i : i + 1], labels[i : i + 1]).sample for i in range(3)])
    assert torch.equal(again, expected)
    assert torch.equal(copied, expected)
    torch.testing.assert_close(each, expected, rtol=0, atol=1e-6)
    plain = small_model(learn_sigma=False, in_channels=3)
    assert plain.out_channels == 3
    assert plain(sample[:, :3], timestep, labels).sample.shape == (3, 3, 8, 8)
