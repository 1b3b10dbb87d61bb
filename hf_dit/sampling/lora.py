"""LoRA (Hu et al. 2022, arXiv:2106.09685) for a pipeline, in the files and by the methods of diffusers."""

import os
import re
from inspect import signature
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from diffusers.utils.import_utils import is_peft_available
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

PREFIX = "transformer."
PEFT_PREFIX, PEFT_CONFIG, PEFT_WEIGHTS = "base_model.model.", "adapter_config.json", "adapter_model.safetensors"


def check_transformer(transformer: nn.Module) -> None:
    """Raise a `TypeError` with the remedy unless a pipeline's transformer is a `DiTModel`."""
    names = [base.__name__ for base in type(unwrap_module(transformer)).__mro__]
    # By name: the code that comes with an exported pipeline has a class of its own.
    if "DiTModel" in names:
        return
    if "PeftModel" in names:  # its save_pretrained writes the adapter alone
        remedy = (
            "give its merge_and_unload(), or a pipeline of the base model its adapter: "
            "load_lora_weights(folder of PeftModel.save_pretrained)"
        )
    else:
        remedy = (
            "DiTModel.from_diffusers converts a DiTTransformer2DModel, DiTImagePipeline.from_diffusers a whole "
            "DiTPipeline"
        )
    raise TypeError(f"transformer must be a DiTModel, got {type(transformer).__name__}; {remedy}")


class DiTLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """What diffusers gives its pipelines of one transformer, and nothing lost on the way.

    `load_lora_weights`, `save_lora_weights`, `set_adapters`, `fuse_lora`, `unfuse_lora`, `unload_lora_weights`,
    `get_list_adapters`, ... do what they do in diffusers, but for two silent losses: a file none of whose weights is
    the transformer's is refused, and so are weights to be saved without their `lora_alpha`.
    """

    transformer: Any  # of the pipeline

    @classmethod
    def lora_state_dict(  # type: ignore[override]  # LoraBaseMixin names no arguments; all that derive from it do
        cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any
    ) -> Any:
        """The adapter's weights by their names in the pipeline, as diffusers; with `return_lora_metadata` its config.

        Beside the files of `save_lora_weights`, those of the model's `save_lora_adapter` and the folders of a
        `PeftModel` are read, which have other names.
        """
        with_metadata = kwargs.pop("return_lora_metadata", False)
        source, peft_config = pretrained_model_name_or_path_or_dict, None
        if isinstance(source, str | os.PathLike) and (Path(source) / PEFT_CONFIG).is_file():
            from peft import LoraConfig

            peft_config = LoraConfig.from_pretrained(os.fspath(source)).to_dict()
            kwargs.setdefault("weight_name", PEFT_WEIGHTS)
        weights, metadata = super().lora_state_dict(source, return_lora_metadata=True, **kwargs)
        metadata = metadata or peft_config
        if metadata is None and not isinstance(source, dict) and any(name.startswith(PEFT_PREFIX) for name in weights):
            raise ValueError(
                f"{source} holds weights of a PeftModel without their {PEFT_CONFIG}, which has the lora_alpha: give "
                "the folder of both"
            )
        weights = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in weights.items()}
        if not any(name.startswith(PREFIX) for name in weights):
            weights = {PREFIX + name: tensor for name, tensor in weights.items()}
            metadata = metadata and {PREFIX + name: value for name, value in metadata.items()}
        return (weights, metadata) if with_metadata else weights

    def load_lora_weights(  # type: ignore[override]  # see above
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Put an adapter into the transformer, which becomes the active one; arguments as in diffusers.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, Hub id or dict of tensors by name. A dict does not know
                its `lora_alpha`, for which diffusers takes the rank; a file does.

        Raises:
            ImportError: peft is not installed.
            ValueError: weights that are not LoRA's, or of layers that the transformer does not have.
        """
        if not is_peft_available():
            raise ImportError("load_lora_weights needs peft: pip install peft")
        source = pretrained_model_name_or_path_or_dict
        weights = self.lora_state_dict(source.copy() if isinstance(source, dict) else source, **kwargs)
        layers = {name.removesuffix(".base_layer") for name, _ in self.transformer.named_modules()}
        unknown = [name for name in weights if _layer_of(name) not in layers]
        if unknown or not weights:
            raise ValueError(
                f"LoRA weights must be of layers of the transformer, got {unknown[0] if unknown else 'none'}"
                + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
            )
        super().load_lora_weights(source, adapter_name, hotswap, **kwargs)

    @classmethod
    def save_lora_weights(cls, *args: Any, **kwargs: Any) -> None:
        """Write an adapter's weights as `pytorch_lora_weights.safetensors`; arguments as in diffusers.

        Args:
            save_directory: a folder.
            transformer_lora_layers: `peft.get_peft_model_state_dict(transformer)`.
            transformer_lora_adapter_metadata: `transformer.peft_config[adapter_name].to_dict()`, without which the
                file would be loaded with another `lora_alpha`.

        Raises:
            ValueError: no weights, or no metadata.
        """
        given = signature(super().save_lora_weights).bind(*args, **kwargs).arguments
        if given.get("transformer_lora_layers") and not given.get("transformer_lora_adapter_metadata"):
            raise ValueError(
                "transformer_lora_adapter_metadata must be given, or lora_alpha is lost: "
                "transformer.peft_config['default'].to_dict(); transformer.save_lora_adapter(folder) writes both"
            )
        super().save_lora_weights(*args, **kwargs)


def _layer_of(name: str) -> str:
    """`"transformer.a.to_q.lora_A.weight"` -> `"a.to_q"`."""
    return re.split(r"\.lora[._]", name.removeprefix(PREFIX))[0]
