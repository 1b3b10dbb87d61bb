"""Weights of other DiT implementations as weights of `DiTModel`: dicts of tensors in, configuration and dict out."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor

from .config import CHOICES

# width -> heads of the published sizes
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}

# what diffusers' DiT can be configured to be and `DiTModel` is not
_DIFFUSERS_FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
}
# and what both call by one name
_SAME = (
    "sample_size",
    "patch_size",
    "in_channels",
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "dropout",
    "attention_bias",
)


def convert_diffusers(config: Mapping, state_dict: Mapping[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights of diffusers' `DiTTransformer2DModel` -> those of the `DiTModel` equal to it.

    Its blocks hold one timestep and label embedder each. Those of the published weights are copies of one, which
    becomes the shared one here; embedders that differ, as of every model that diffusers itself trained, stay separate
    (`embedders="separate"`). The tensors of the result are copies. A `ValueError`: options that `DiTModel` lacks
    (another activation or norm, upcast attention, output channels other than once or twice the input's), missing or
    unknown weights.
    """
    for name, value in _DIFFUSERS_FIXED.items():
        if config[name] != value:
            raise ValueError(f"{name} must be {value!r} to be converted, got {config[name]!r}")
    names = _diffusers_names(config["num_layers"], config["attention_bias"], separate=True)
    _check_names(state_dict, names)
    shared = _has_one_embedder(state_dict, names)
    if shared:
        names = _diffusers_names(config["num_layers"], config["attention_bias"], separate=False)
    ours = {
        **{name: config[name] for name in _SAME},
        "num_classes": config["num_embeds_ada_norm"],
        "learn_sigma": _learn_sigma(config["in_channels"], config["out_channels"] or config["in_channels"]),
        "class_dropout_prob": 0.1,
        "norm_eps": 1e-6,
        "mlp_norm_eps": config["norm_eps"],
        "downscale_freq_shift": 1,
        "embedders": "shared" if shared else "separate",
    }
    return ours, {ours: state_dict[theirs].detach().clone() for theirs, ours in reversed(names.items())}


def convert_original(
    state_dict: Mapping[str, Tensor], num_attention_heads: int | None = None, class_dropout_prob: float = 0.1
) -> tuple[dict, dict[str, Tensor]]:
    """Weights with the names of the paper's code -> configuration and weights of the `DiTModel` equal to it.

    Sizes are read from the shapes. `num_attention_heads` cannot be, and is needed for another width than 384, 768,
    1024 and 1152 (6, 12, 16 and 16 heads). `class_dropout_prob` is what the model was trained with: at 0 its label
    table has no row for the null class. The tensors of the result are copies. A `ValueError`: missing or unknown
    weights, positions other than the paper's on a square grid, shapes that do not fit together.
    """
    names = _original_names(state_dict)
    _check_names(state_dict, [*names, "pos_embed"])
    config = _original_config(state_dict, names, num_attention_heads, class_dropout_prob)
    converted = {}
    for theirs, ours in names.items():
        if ".qkv." in theirs:
            for letter, part in zip("qkv", state_dict[theirs].chunk(3), strict=True):
                converted[ours.format(letter)] = part.detach().clone()
        else:
            converted[ours] = state_dict[theirs].detach().clone()
    return config, converted


def check_published_design(overrides: Mapping) -> None:
    """Raise a `ValueError` for arguments of `DiTModel` that ask for other weights than published ones have."""
    for name in ("conditioning", "qk_norm", "mlp", "embedders"):
        default = CHOICES[name][0]
        if overrides.get(name, default) != default:
            raise ValueError(
                f"{name} must be {default!r} for weights of the paper's code, which has no other, got "
                f"{overrides[name]!r:.80}"
            )


def _diffusers_names(depth: int, attention_bias: bool, *, separate: bool) -> dict[str, str]:
    """The weights of diffusers' DiT -> ours, those of the embedders of all blocks included."""
    names = {"pos_embed.proj": "patch_embed", "proj_out_1": "modulation_out", "proj_out_2": "proj_out"}
    embedder = {
        "timestep_embedder.linear_1": "time_embedding.linear_1",
        "timestep_embedder.linear_2": "time_embedding.linear_2",
        "class_embedder.embedding_table": "class_embedding",
    }
    in_block = {
        "norm1.linear": "modulation",
        "attn1.to_q": "attn.to_q",
        "attn1.to_k": "attn.to_k",
        "attn1.to_v": "attn.to_v",
        "attn1.to_out.0": "attn.to_out.0",
        "ff.net.0.proj": "ff.net.0.proj",
        "ff.net.2": "ff.net.2",
    }
    for i in range(depth):
        block = f"transformer_blocks.{i}."
        ours_of = f"block_embedders.{i}." if separate else ""
        names |= {f"{block}norm1.emb.{theirs}": ours_of + ours for theirs, ours in embedder.items()}
        names |= {block + theirs: block + ours for theirs, ours in in_block.items()}
    return _parameters(names, ["embedding_table"] if attention_bias else ["embedding_table", "to_q", "to_k", "to_v"])


def _has_one_embedder(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> bool:
    """Whether the embedders of all blocks are copies of the first."""
    return all(
        torch.equal(state_dict[name], state_dict[re.sub(r"^transformer_blocks\.\d+", "transformer_blocks.0", name)])
        for name in names
        if ".norm1.emb." in name
    )


def _original_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """The weights of the paper's code -> ours; `{}` stands for q, k and v, which are one matrix there."""
    found = [int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in state_dict) if match]
    names = {
        "x_embedder.proj": "patch_embed",
        "t_embedder.mlp.0": "time_embedding.linear_1",
        "t_embedder.mlp.2": "time_embedding.linear_2",
        "y_embedder.embedding_table": "class_embedding",
        "final_layer.adaLN_modulation.1": "modulation_out",
        "final_layer.linear": "proj_out",
    }
    in_block = {
        "adaLN_modulation.1": "modulation",
        "attn.qkv": "attn.to_{}",
        "attn.proj": "attn.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    for i in range(1 + max(found, default=0)):
        names |= {f"blocks.{i}.{theirs}": f"transformer_blocks.{i}.{ours}" for theirs, ours in in_block.items()}
    return _parameters(names, ["embedding_table"])


def _original_config(
    state_dict: Mapping[str, Tensor], names: Iterable[str], num_attention_heads: int | None, class_dropout_prob: float
) -> dict:
    """The configuration that the shapes tell."""
    dim, in_channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
    if num_attention_heads is None:
        if dim not in _HEADS:
            raise ValueError(f"num_attention_heads is needed for a model of width {dim}")
        num_attention_heads = _HEADS[dim]
    if dim % num_attention_heads:
        raise ValueError(f"num_attention_heads must divide the width {dim}, got {num_attention_heads}")
    out_channels, rest = divmod(state_dict["final_layer.linear.weight"].shape[0], patch**2)
    if rest:
        raise ValueError(f"final_layer.linear.weight must have a multiple of {patch}**2 rows")
    return {
        "sample_size": patch * _check_positions(state_dict["pos_embed"], dim),
        "patch_size": patch,
        "in_channels": in_channels,
        "num_layers": sum(name.endswith("attn.qkv.weight") for name in names),
        "num_attention_heads": num_attention_heads,
        "attention_head_dim": dim // num_attention_heads,
        "num_classes": state_dict["y_embedder.embedding_table.weight"].shape[0] - (class_dropout_prob > 0),
        "learn_sigma": _learn_sigma(in_channels, out_channels),
        "class_dropout_prob": class_dropout_prob,
        "mlp_ratio": state_dict["blocks.0.mlp.fc1.weight"].shape[0] / dim,
    }


def _parameters(names: Mapping[str, str], without_bias: Iterable[str]) -> dict[str, str]:
    """Names of modules, theirs -> ours, as names of their weights and biases."""
    parameters = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in names.items()}
    for theirs, ours in names.items():
        if not theirs.endswith(tuple(without_bias)):
            parameters[f"{theirs}.bias"] = f"{ours}.bias"
    return parameters


def _check_names(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in state_dict]
    unknown = [name for name in state_dict if name not in set(names)]
    if missing or unknown:
        raise ValueError(
            f"state_dict must have exactly the weights of a DiT; missing: {_some(missing)}; unknown: {_some(unknown)}"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"


def _learn_sigma(in_channels: int, out_channels: int) -> bool:
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"out_channels must be once or twice in_channels={in_channels} to be converted, got {out_channels}"
        )
    return out_channels == 2 * in_channels


def _check_positions(positions: Tensor, dim: int) -> int:
    """The side of the square grid whose sin-cos positions (1, side * side, dim) these are."""
    side = math.isqrt(positions.shape[1])
    expected = get_2d_sincos_pos_embed(dim, side, base_size=side, output_type="pt")[None]
    close: dict[str, Any] = {"rtol": 0, "atol": max(1e-5, torch.finfo(positions.dtype).eps)}
    if positions.shape != expected.shape or not torch.allclose(positions.cpu().double(), expected.double(), **close):
        raise ValueError(
            f"pos_embed must hold the sine and cosine positions of a square grid and width {dim}; this one, "
            f"{tuple(positions.shape)}, does not"
        )
    return side
