"""The variants of a DiT, each against the paper's counts, its formulas written out in float64, or another library."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed, get_timestep_embedding
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_dit import DiTModel, FullAttnProcessor
from hf_dit.attention.layer import DiTAttention
from hf_dit.attention.rotary import AxialRotary
from hf_dit.models.conditions import BLOCKS
from hf_dit.models.config import CHOICES
from hf_dit.models.parts import gated_width
from hf_dit.training.arguments import ModelArguments, model_overrides
from tests.hf_dit.models.test_dit import inputs, randomise, reference_positions, small_model, stock_model

CONDITIONINGS = ("in_context", "cross_attention", "adaln", "adaln_zero")
CPU = torch.device("cpu")


def forward(model, sample, timestep, labels):
    with torch.no_grad():
        return model(sample, timestep, labels).sample


# Sizes


@pytest.mark.parametrize(
    "size, dim, millions",  # of the paper's four designs at patch 2 and 1000 classes, in the order of CONDITIONINGS
    [
        ("s", 384, (21.94, 29.05, 29.32, 32.87)),
        ("b", 768, (86.65, 115.02, 116.14, 130.32)),
        ("l", 1024, (304.70, 405.51, 407.46, 457.84)),
        ("xl", 1152, (449.16, 597.99, 600.45, 674.83)),
    ],
)
def test_each_conditioning_has_the_parameters_of_its_design(size, dim, millions):
    plain = 4 * (dim + 1) * dim + (dim + 1) * 4 * dim + (4 * dim + 1) * dim  # attention and MLP
    of_block = {
        "in_context": plain + 2 * 2 * dim,
        "cross_attention": plain + 4 * (dim + 1) * dim + 3 * 2 * dim,
        "adaln": plain + (dim + 1) * 4 * dim,
        "adaln_zero": plain + (dim + 1) * 6 * dim,
    }
    for conditioning, published in zip(CONDITIONINGS, millions, strict=True):
        with torch.device("meta"):
            model = DiTModel.from_name(f"dit-{size}-2", conditioning=conditioning)
        assert round(model.num_parameters() / 1e6, 2) == published
        assert sum(p.numel() for p in model.transformer_blocks[0].parameters()) == of_block[conditioning]
    if size == "xl":
        assert list(of_block.values()) == [15_940_224, 21_255_552, 21_248_640, 23_905_152]


def test_each_conditioning_costs_what_the_paper_says():
    published = {"in_context": 119.4, "cross_attention": 137.6, "adaln": 118.6, "adaln_zero": 118.6}  # XL/2, 256 x 256
    for conditioning, gflops in published.items():
        with torch.device("meta"):
            model = DiTModel.from_name("dit-xl-2", conditioning=conditioning).eval()
            given = torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*given)
        assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=0.06)  # theirs count multiply-adds


def test_the_table_of_blocks_has_the_names_of_the_config():
    assert tuple(BLOCKS) == CHOICES["conditioning"]
    defaults = DiTModel.__init__.__wrapped__.__defaults__[-5:]
    assert defaults == tuple(choices[0] for choices in CHOICES.values())


@pytest.mark.parametrize("dim, hidden", [(384, 1024), (768, 2048), (1024, 2736), (1152, 3072), (32, 88)])
def test_swiglu_has_two_thirds_of_the_channels_and_hardly_other_weights(dim, hidden):
    assert gated_width(dim, 4.0) == hidden
    assert hidden % 8 == 0 and 0 <= hidden - int(8 * dim / 3) < 8
    counts = []
    for mlp in ("gelu", "swiglu"):
        with torch.device("meta"):
            model = DiTModel(num_layers=1, num_attention_heads=1, attention_head_dim=dim, mlp=mlp)
        counts.append(sum(p.numel() for p in model.transformer_blocks[0].ff.parameters()))
    assert counts[1] == 2 * (dim + 1) * hidden + (hidden + 1) * dim
    assert counts[1] / counts[0] == pytest.approx(1, abs=0.04)


# A model of every variant in plain formulas: explicit softmax over dense masks, names of our weights, any dtype.


def rotated(x, places):
    """(B, heads, N, D): pairs of channels as complex numbers, the first half by the row, the other by the column."""
    width = x.shape[-1] // 2
    turned = x.clone()
    for token, place in enumerate(places):
        for axis in range(2):
            for pair in range(width // 2):
                angle = place[axis] * 10000 ** (-2 * pair / width)
                at = axis * width + 2 * pair
                a, b = x[:, :, token, at], x[:, :, token, at + 1]
                turned[:, :, token, at] = a * math.cos(angle) - b * math.sin(angle)
                turned[:, :, token, at + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def plain_model(weights, config, sample, timestep, labels, masks):
    """`masks`: of each layer, (N, N) bool of the image's tokens or None."""
    heads, native = config.num_attention_heads, config.sample_size // 2
    dim = heads * config.attention_head_dim
    h, w = sample.shape[2] // 2, sample.shape[3] // 2

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"] if f"{name}.weight" in weights else x

    def silu(x):
        return x * torch.sigmoid(x)

    def heads_of(name, x, normed):
        x = linear(name, x).unflatten(-1, (heads, dim // heads)).transpose(1, 2)
        if config.qk_norm and normed:
            scale = (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            x = x / scale * weights[f"{name.replace('to_', 'norm_')}.weight"]
        return x

    def attention(name, x, others, seen, places):
        q, k = heads_of(f"{name}.to_q", x, True), heads_of(f"{name}.to_k", others, True)
        if places is not None:
            q, k = rotated(q, places), rotated(k, places)
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(dim // heads)
        out = scores.masked_fill(~seen, -math.inf).softmax(-1) @ heads_of(f"{name}.to_v", others, False)
        return linear(f"{name}.to_out.0", out.transpose(1, 2).flatten(2))

    def mlp(name, x):
        x = linear(f"{name}.net.0.proj", x)
        if config.mlp == "swiglu":
            value, gate = x.chunk(2, dim=-1)
            x = value * silu(gate)
        else:
            x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return linear(f"{name}.net.2", x)

    def embedded(prefix):
        t = get_timestep_embedding(timestep, 256, flip_sin_to_cos=True, downscale_freq_shift=0).to(sample.dtype)
        t = linear(f"{prefix}time_embedding.linear_2", silu(linear(f"{prefix}time_embedding.linear_1", t)))
        return [t] if labels is None else [t, weights[f"{prefix}class_embedding.weight"][labels]]

    separate = config.embedders == "separate"
    x = F.unfold(sample, 2, stride=2).transpose(1, 2) @ weights["patch_embed.weight"].flatten(1).T
    x = x + weights["patch_embed.bias"]
    places = None
    if config.position == "rope":
        places = [(row * native / h, column * native / w) for row in range(h) for column in range(w)]
    else:
        x = x + reference_positions(dim, h, w, native, native).to(x.dtype)
    tokens = x.shape[1]
    if config.conditioning == "in_context":
        x = torch.cat([x, torch.stack(embedded(""), dim=1)], dim=1)
        places = places and places + [(0, 0)] * (x.shape[1] - tokens)  # an angle of 0 turns nothing
    for i, mask in enumerate(masks):
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
        seen[:tokens, :tokens] = True if mask is None else mask
        at = f"transformer_blocks.{i}."
        condition = embedded(f"block_embedders.{i}." if separate else "")
        if config.conditioning.startswith("adaln"):
            parts = linear(f"{at}modulation", silu(sum(condition)))[:, None].split(dim, dim=-1)
            if config.conditioning == "adaln_zero":
                shift1, scale1, gate1, shift2, scale2, gate2 = parts
            else:
                (shift1, scale1, shift2, scale2), gate1, gate2 = parts, 1, 1
            y = norm(f"{at}norm1", x) * (1 + scale1) + shift1
            x = x + gate1 * attention(f"{at}attn", y, y, seen, places)
            x = x + gate2 * mlp(f"{at}ff", norm(f"{at}norm2", x) * (1 + scale2) + shift2)
            continue
        y = norm(f"{at}norm1", x)
        x = x + attention(f"{at}attn", y, y, seen, places)
        if config.conditioning == "cross_attention":
            y, others = norm(f"{at}norm_cross", x), torch.stack(condition, dim=1)
            all_seen = torch.ones(tokens, len(condition), dtype=torch.bool)
            x = x + attention(f"{at}cross_attn", y, others, all_seen, None)
        x = x + mlp(f"{at}ff", norm(f"{at}norm2", x))
    x = norm("norm_out", x[:, :tokens])
    if "modulation_out.weight" in weights:
        total = silu(sum(embedded("block_embedders.0." if separate else "")))
        shift, scale = linear("modulation_out", total)[:, None].split(dim, dim=-1)
        x = x * (1 + scale) + shift
    x = linear("proj_out", x).unflatten(1, (h, w)).unflatten(-1, (2, 2, -1))  # (B, h, w, 2, 2, channels)
    return torch.einsum("bhwpqc->bchpwq", x).reshape(len(sample), -1, 2 * h, 2 * w)


VARIANTS = [
    *({"conditioning": name} for name in CONDITIONINGS),
    *({"conditioning": name, "num_classes": None} for name in CONDITIONINGS),
    *(
        {"conditioning": name, "qk_norm": "rms_norm", "position": "rope", "mlp": "swiglu", "attention": attention}
        for name, attention in itertools.product(CONDITIONINGS, ("na3", "swa2,na3/truncate"))
    ),
    {"conditioning": "cross_attention", "embedders": "separate"},
    {"conditioning": "adaln", "embedders": "separate", "position": "rope", "num_classes": None},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
@pytest.mark.parametrize("height, width", [(8, 8), (12, 4)])
def test_a_variant_computes_its_formulas(variant, height, width):
    model = small_model(**variant).double()
    sample, timestep, labels = inputs(height=height, width=width, dtype=torch.float64)
    labels = None if model.config.num_classes is None else labels
    masks = [processor.mask((height // 2, width // 2)) for processor in model.attn_processors.values()]
    expected = plain_model(model.state_dict(), model.config, sample, timestep, labels, masks)
    torch.testing.assert_close(forward(model, sample, timestep, labels), expected, rtol=0, atol=1e-10)
    assert expected.std() > 0.05


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_new_model_says_zero_and_learns_everywhere(conditioning):
    torch.manual_seed(0)
    model = DiTModel.from_name(
        "dit-micro-2", sample_size=8, num_classes=5, conditioning=conditioning, qk_norm="rms_norm", mlp="swiglu"
    ).train()
    sample, timestep, labels = inputs()
    out = model(sample, timestep, labels).sample
    assert torch.equal(out, torch.zeros_like(out))
    tokens = torch.randn(3, 16, 32)
    condition = {"in_context": None, "cross_attention": torch.randn(3, 2, 32)}.get(conditioning, torch.randn(3, 32))
    is_identity = torch.equal(model.transformer_blocks[0](tokens, condition, (4, 4)), tokens)
    assert is_identity == (conditioning == "adaln_zero")
    norms = [
        m for m in model.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.RMSNorm) and m.weight is not None
    ]
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    # A few steps: those of the zeros have to be left before everything gets a gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        drop = torch.tensor([True, False, False])
        (model(sample, timestep, labels, force_drop_ids=drop).sample - 1).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in model.parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(0)
    model.reset_parameters()
    assert not all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(bool((norm.weight == 1).all()) for norm in norms)


# Tokens of a condition, and local attention


@pytest.mark.parametrize("attention", ["na3", "na3/truncate", "swa1"])
def test_tokens_in_context_see_all_and_are_seen_by_all(attention):
    model = small_model(num_layers=1, conditioning="in_context", attention=attention)
    sample, timestep, labels = inputs(height=12, width=12)
    base = forward(model, sample, timestep, labels)
    other_label = forward(model, sample, timestep, (labels + 1) % 5)
    assert ((base - other_label).abs().amax(1) > 1e-7).all()  # every pixel of every token hears of the label
    changed = sample.clone()
    changed[:, :, :2, :2] += 1  # one token: with one layer, the others see it if it stands in their window
    far = forward(model, changed, timestep, labels)[:, :, 6:, 6:]
    assert torch.equal(far, base[:, :, 6:, 6:])
    two = small_model(num_layers=2, conditioning="in_context", attention=attention)
    difference = forward(two, changed, timestep, labels) - forward(two, sample, timestep, labels)
    assert (difference.abs().amax(1) > 1e-9).float().mean() > 0.9  # by way of the tokens that see all


def test_kernels_of_local_patterns_refuse_tokens_in_context():
    for spec, remedy in (("flex:na3", "na3"), ("natten:na3", "na3"), ("xformers:swa2", "swa2")):
        words = f"attention '{spec}' takes no tokens beside .*conditioning='in_context'.* take '{remedy}', or full"
        with pytest.raises(ValueError, match=words):
            small_model(conditioning="in_context", attention=spec)
        model = small_model(conditioning="in_context")
        processor = small_model(attention=spec).transformer_blocks[0].attn.processor
        for given in (spec, processor, dict.fromkeys(model.attn_processors, processor)):
            with pytest.raises(ValueError, match=words):
                model.set_attn_processor(given)
        assert model.config.attention == "full"
        model.transformer_blocks[0].attn.set_processor(processor)  # past the model
        with pytest.raises(ValueError, match=words):
            model(*inputs())
    small_model(conditioning="in_context", attention="flex:full").set_attn_processor("xformers:full")


# Rotations


@pytest.mark.parametrize("head_dim", [8, 72])
@pytest.mark.parametrize("grid, native", [((3, 5), (3, 5)), ((6, 2), (4, 4))])
def test_rotations_are_those_of_diffusers(head_dim, grid, native):
    x = torch.randn(2, grid[0] * grid[1] + 2, 3, head_dim, dtype=torch.float64)
    row, column = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    halves = [
        get_1d_rotary_pos_embed(
            head_dim // 2, (places * (n / tokens)).double().flatten(), theta=10000.0, use_real=True,
            repeat_interleave_real=True, freqs_dtype=torch.float64,
        )
        for places, n, tokens in zip((row, column), native, grid, strict=True)
    ]  # fmt: skip
    cos, sin = (torch.cat(parts, dim=1) for parts in zip(*halves, strict=True))
    theirs = apply_rotary_emb(x[:, :-2], (cos, sin), use_real_unbind_dim=-1, sequence_dim=1)
    ours = AxialRotary(head_dim, native)(x, grid)
    torch.testing.assert_close(ours[:, :-2], theirs, rtol=0, atol=1e-6)  # their cosines are float32
    assert torch.equal(ours[:, -2:], x[:, -2:])  # tokens without a place


def test_rotations_by_hand_and_scores_that_know_distances_alone():
    rotary = AxialRotary(8, (4, 4))
    x = torch.tensor([1.0, 2, 3, 4, 1, 2, 3, 4]).double().expand(1, 16, 1, 8)
    turned = rotary(x, (4, 4))[0, 2 * 4, 0]  # row 2, column 0: the golden values of an axis of 4 channels at place 2
    expected = torch.tensor([-2.234742, 0.077004, 2.919405, 4.059196, 1, 2, 3, 4]).double()
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)
    q, k = torch.randn(2, 1, 1, 1, 8).double().expand(2, 1, 16, 1, 8)
    scores = (rotary(q, (4, 4))[0, :, 0] @ rotary(k, (4, 4))[0, :, 0].T).unflatten(0, (4, 4)).unflatten(2, (4, 4))
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1])
    assert not torch.allclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0])
    half = rotary(x.bfloat16(), (4, 4))
    assert half.dtype == torch.bfloat16 and torch.equal(half, rotary(x.float().bfloat16().float(), (4, 4)).bfloat16())


def test_a_table_of_rotations_is_made_once_for_all_layers():
    model = small_model(num_layers=3, position="rope")
    assert len({id(block.attn.rotary) for block in model.transformer_blocks}) == 1
    model(*inputs())
    table = model.transformer_blocks[0].attn.rotary.table
    before = table.last[1]
    model(*inputs())
    assert table.last[1] is before and before.shape == (2, 16, 8)
    assert not [name for name in model.state_dict() if "rot" in name]
    twin = copy.deepcopy(model)
    assert torch.equal(forward(twin, *inputs()), forward(model, *inputs()))


# Norms of queries and keys


def test_queries_and_keys_are_normalised_as_torch_does():
    attn = DiTAttention(16, 2, 8, processor=FullAttnProcessor(), qk_norm="rms_norm").double()
    with torch.no_grad():
        attn.norm_q.weight.normal_(), attn.norm_k.weight.normal_()
    x = torch.randn(2, 4, 16).double()
    query, key, value = attn.project(x, (2, 2))
    for made, layer, norm in ((query, attn.to_q, attn.norm_q), (key, attn.to_k, attn.norm_k)):
        expected = F.rms_norm(layer(x).view(2, 4, 2, 8), (8,), norm.weight, eps=1e-6)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert torch.equal(value, attn.to_v(x).view(2, 4, 2, 8))
    attn.norm_q.reset_parameters()
    small = torch.full((1, 1, 1, 8), 1e-4, dtype=torch.float64)
    assert attn.norm_q(small)[0, 0, 0, 0].item() == pytest.approx(0.0995, abs=1e-4)  # of epsilon 1e-6
    attn.fuse_projections()
    torch.testing.assert_close(attn.project(x, (2, 2))[1], key, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_low_precision_keeps_one_dtype_and_stays_close(conditioning):
    model = small_model(conditioning=conditioning, qk_norm="rms_norm", position="rope", mlp="swiglu")
    sample, timestep, labels = inputs()
    expected = forward(model, sample, timestep, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of a norm whose weight has another dtype than its input
        with torch.autocast("cpu", torch.bfloat16):
            attn = model.transformer_blocks[0].attn
            assert {x.dtype for x in attn.project(torch.randn(3, 16, 32), (4, 4))} == {torch.bfloat16}
            autocast = forward(model, sample, timestep, labels)
        half = forward(copy.deepcopy(model).to(torch.bfloat16), sample.bfloat16(), timestep, labels)
    for out in (autocast, half):
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


# Embedders of each block


@pytest.mark.parametrize("options", [{}, {"attention_bias": False, "out_channels": 4}, {"norm_eps": 1e-3}])
def test_a_stock_model_that_diffusers_trained_says_the_same(options, tmp_path):
    stock = stock_model(tied=False, **options)
    model = DiTModel.from_diffusers(stock)
    assert model.config.embedders == "separate"
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in stock.parameters())
    sample, timestep, labels = inputs()
    with torch.no_grad():
        theirs = stock(sample, timestep, labels).sample
    torch.testing.assert_close(forward(model, sample, timestep, labels), theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.05
    model.save_pretrained(tmp_path)
    assert torch.equal(
        forward(DiTModel.from_pretrained(tmp_path), sample, timestep, labels),
        forward(model, sample, timestep, labels),
    )


def test_one_weight_that_differs_makes_embedders_separate():
    stock = stock_model()
    assert DiTModel.from_diffusers(stock).config.embedders == "shared"
    with torch.no_grad():
        stock.transformer_blocks[2].norm1.emb.class_embedder.embedding_table.weight[5, 0] += 1e-6
    assert DiTModel.from_diffusers(stock).config.embedders == "separate"


def test_a_model_that_diffusers_trains_for_a_step_converts():
    torch.manual_seed(0)
    stock = DiTTransformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        num_embeds_ada_norm=5,
    )  # fmt: skip
    sample, timestep, labels = inputs()
    stock(sample, timestep, labels.clamp(max=4)).sample.square().mean().backward()
    torch.optim.SGD(stock.parameters(), lr=0.1).step()
    model = DiTModel.from_diffusers(stock.eval())
    torch.testing.assert_close(
        forward(model, sample, timestep, labels), stock(sample, timestep, labels).sample, rtol=0, atol=1e-5
    )


def test_labels_are_dropped_once_for_all_embedders():
    model = small_model(num_layers=3, embedders="separate", class_dropout_prob=0.5).train()
    seen = []
    for embedder in model.block_embedders:
        embedder.class_embedding.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(torch.zeros(64, 4, 8, 8), 3, torch.arange(64) % 5)
    assert len(seen) == 3 and torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert 0 < (seen[0] == 5).sum() < 64


# Files, training, compilation


@pytest.mark.parametrize("variant", VARIANTS[:4] + VARIANTS[-6:], ids=lambda v: "-".join(map(str, v.values())))
def test_variants_come_back_train_fuse_and_compile(variant, tmp_path):
    model = small_model(**variant)
    sample, timestep, labels = inputs()
    labels = None if model.config.num_classes is None else labels
    expected = forward(model, sample, timestep, labels)
    model.save_pretrained(tmp_path)
    loaded, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(forward(loaded, sample, timestep, labels), expected)
    for name, value in variant.items():
        assert loaded.config[name] == value
    loaded.fuse_qkv_projections()
    torch.testing.assert_close(forward(loaded, sample, timestep, labels), expected, rtol=0, atol=1e-6)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(forward(compiled, sample, timestep, labels), expected, rtol=0, atol=1e-5)
    gradients = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model).train()
        if checkpointing:
            twin.enable_gradient_checkpointing()
        torch.manual_seed(0)
        twin(sample, timestep, labels).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_blocks_of_each_kind_are_kept_whole():
    for conditioning in CONDITIONINGS:
        model = small_model(conditioning=conditioning)
        assert model._get_no_split_modules("auto") == [type(model.transformer_blocks[0]).__name__]
        policy = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
        policy.set_auto_wrap_policy(model)  # which finds every class that it is told of
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
        assert forward(model, *inputs()).isfinite().all()


# What is refused, and the command line


def test_variants_that_do_not_go_together_are_named():
    for variant, words in (
        (
            {"position": "rope", "attention_head_dim": 18},
            "attention_head_dim must be divisible by 4 for position='rope'.*got 18",
        ),
        (
            {"embedders": "separate", "conditioning": "in_context"},
            "embedders must be 'shared' for conditioning='in_context'",
        ),
        ({"conditioning": "film"}, "conditioning must be adaln_zero or adaln or .* got 'film'"),
        ({"qk_norm": "l2"}, "qk_norm must be None or rms_norm, got 'l2'"),
    ):
        with pytest.raises(ValueError, match=words):
            small_model(**variant)
    with pytest.raises(ValueError, match="1e.*are taken"):
        DiTModel(num_layers=4096, num_classes=10_000_000, embedders="separate")


def test_variants_are_named_on_the_command_line():
    overrides = (
        "conditioning=cross_attention, qk_norm=rms_norm, position=rope,mlp=swiglu,embedders=separate,dropout=0.1"
    )
    arguments = ModelArguments(model="dit-micro-2", config_overrides=overrides)
    model = DiTModel.from_name(arguments.model, sample_size=8, **model_overrides(arguments.config_overrides))
    assert (model.config.conditioning, model.config.qk_norm, model.config.dropout) == (
        "cross_attention",
        "rms_norm",
        0.1,
    )
    for wrong, words in (
        ("conditioning=film", "conditioning must be adaln_zero or .* got 'film'"),
        ("num_layers=two", "num_layers must be a whole number, got 'two'"),
        ("attention_head_dim=18,position=rope", "attention_head_dim must be divisible by 4"),
        ("position=", "position must be sincos or rope, got ''"),
    ):
        with pytest.raises(ValueError, match=words):
            ModelArguments(model="dit-micro-2", config_overrides=wrong)


def test_randomised_variants_differ():
    """Each option changes what a model computes: none is read and left."""
    outs = [forward(small_model(**variant), *inputs()) for variant in ({}, {"qk_norm": "rms_norm"}, {"mlp": "swiglu"})]
    outs += [forward(randomise(small_model(position="rope")), *inputs())]
    for one, other in itertools.combinations(outs, 2):
        assert not torch.allclose(one, other, atol=1e-3)
