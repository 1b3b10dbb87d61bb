"""What diffusers' mixins for adapters and caches need to know of a DiT."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def check_no_adapters(model: nn.Module) -> None:
    """Raise a `ValueError` for a model whose layers are wrapped by those of an adapter of peft."""
    wrapped = next((name for name in model.state_dict() if ".base_layer." in name), None)
    if wrapped is not None:
        raise ValueError(
            f"the model holds an adapter ({wrapped}), so that no model would load its weights: unload_lora() leaves "
            "the base model, fuse_lora() before it the merged one, save_lora_adapter() writes the adapter"
        )


# Caches of diffusers that no call of `DiTImagePipeline` would feed: they would fail in the middle, or cache nothing.
UNFIT_CACHES = {
    "FasterCacheConfig": "the two halves of guidance in a layout of their own",
    "SeaCacheConfig": "the scheduler's step and sigma",
    "TextKVCacheConfig": "a text encoder",
}


def check_cache(config: Any) -> None:
    """Raise a `ValueError` for the config of a cache that needs what a DiT or its pipeline does not have."""
    name = type(config).__name__
    if name in UNFIT_CACHES:
        raise ValueError(
            f"config must be one of a cache that fits, as FirstBlockCacheConfig or MagCacheConfig, got a {name}, "
            f"which needs {UNFIT_CACHES[name]}"
        )


def register_cached_blocks(blocks: Iterable[type[nn.Module]]) -> None:
    """Tell diffusers' caches what the blocks take and give: tokens as `hidden_states`, and tokens alone."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    for block in blocks:
        TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=0))
