"""Diffusion Transformers (DiT): Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023."""

import os
import warnings
from functools import partial
from inspect import signature
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from ..attention.base import DiTAttnProcessor, check_takes_more
from ..attention.rotary import AxialRotary, KeptTable
from ..attention.spec import format_attn_spec, in_tokens, make_attn_processors
from .adapters import check_cache, check_no_adapters, register_cached_blocks
from .checkpoint import original_weights
from .conditions import (
    BLOCKS,
    TIMESTEP_CHANNELS,
    ConditionEmbedder,
    checked_class_labels,
    checked_timestep,
    condition_of,
    make_embedders,
)
from .config import check_dit_config, label_rows, plain
from .convert import check_published_design, convert_diffusers, convert_original
from .initial import draw_initial_weights
from .parts import modulate
from .positions import position_embedding
from .sizes import dit_config, height_and_width
from .weights import whole_model


class DiTModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """The DiT noise predictor with attention that can be swapped.

    One timestep embedder and one label embedder condition every block and the output, as in the paper. The defaults
    are DiT-XL/2 for the latents of 256 x 256 images; `from_name` knows the other sizes.

    Adapters of peft and caches of blocks are diffusers': `add_adapter`, `load_lora_adapter`, `enable_cache`, ...

    Args:
        sample_size: height and width of the training samples, or one number for both; divisible by `patch_size`.
        patch_size: side of a token in latent (or image) pixels.
        in_channels: channels of a sample.
        num_layers, num_attention_heads, attention_head_dim: depth, heads, channels of a head; heads x channels of a
            head is the width, divisible by 4.
        num_classes: classes of the labels; `None` makes an unconditional model.
        learn_sigma: the output has `2 * in_channels` channels: the noise, then the interpolation of the variance.
        class_dropout_prob: share of the labels that become the null class in training, in [0, 1]; at 0 the model has
            no null class.
        mlp_ratio: width of the MLP over the width of the model.
        dropout: dropout after the attention's output projection and inside the MLP.
        attention_bias: biases of the query, key and value projections.
        norm_eps: epsilon of the layer norms.
        mlp_norm_eps: epsilon of the layer norms before the MLPs, where it differs (`None`: `norm_eps`).
        downscale_freq_shift: 0 for the frequencies `10000 ** (-i / 128)` of the timestep embedding as in the paper,
            1 for `10000 ** (-i / 127)` as in diffusers' DiT.
        attention: what each layer attends to, as in `make_attn_processors`: `"full"`, `"na7"`, `"na7*11,full"`, ...
        conditioning: how timestep and label act, the four of the paper's section 3.2: `"adaln_zero"`, `"adaln"` (no
            gates), `"cross_attention"` to a sequence of the two, or `"in_context"`: two tokens after those of the
            image, seen by all and seeing all under local attention too, which then takes the time of full attention.
            The last two end in a plain layer norm.
        qk_norm: `"rms_norm"`: queries and keys are normalised over the channels of each head, epsilon 1e-6.
        position: `"sincos"`, added to the tokens, or `"rope"` in its place: queries and keys are turned by row and
            column (LightningDiT has both at a time). Other grids are scaled onto the native one's extent by both. The
            tokens of `"in_context"` have no place. `"rope"` needs an `attention_head_dim` divisible by 4.
        mlp: `"gelu"`, or `"swiglu"` with two thirds of the hidden channels, rounded up to a multiple of 8.
        embedders: `"shared"`, or `"separate"`: one of timesteps and one of labels for each block, the first block's
            for the output, as diffusers trains its DiT; not for `"in_context"`. Labels are dropped once for all.

    Arguments outside their range are a `ValueError`.
    """

    _supports_gradient_checkpointing = True
    # Those of a model are the class of its own blocks: sharding refuses names that are not in it.
    _no_split_modules = ["DiTBlock"]  # type: ignore[assignment]  # None in the base, which every model replaces
    _repeated_blocks = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        num_classes: int | None = 1000,
        learn_sigma: bool = True,
        class_dropout_prob: float = 0.1,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_bias: bool = True,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float | None = None,
        downscale_freq_shift: int = 0,
        attention: str = "full",
        conditioning: str = "adaln_zero",
        qk_norm: str | None = None,
        position: str = "sincos",
        mlp: str = "gelu",
        embedders: str = "shared",
    ):
        super().__init__()
        check_dit_config(self.config)
        if changed := {name: new for name, value in self.config.items() if (new := plain(value)) is not value}:
            self.register_to_config(**changed)
        dim = num_attention_heads * attention_head_dim
        self._native_grid = self._grid(*height_and_width(sample_size))
        self._positions = KeptTable(partial(position_embedding, native_grid=self._native_grid, dim=dim))

        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.time_proj = Timesteps(TIMESTEP_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=downscale_freq_shift)
        of_embedder = (dim, num_classes, class_dropout_prob)
        if embedders == "shared":
            self.time_embedding, self.class_embedding = make_embedders(*of_embedder)
        else:
            self.block_embedders = nn.ModuleList(ConditionEmbedder(*of_embedder) for _ in range(num_layers))
        self.transformer_blocks = nn.ModuleList(self._make_blocks())
        self._no_split_modules = self._repeated_blocks = [BLOCKS[conditioning].__name__]
        modulates = conditioning in ("adaln_zero", "adaln")
        self.modulation_out = nn.Linear(dim, 2 * dim) if modulates else None
        self.norm_out = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=not modulates)
        self.proj_out = nn.Linear(dim, patch_size**2 * self.out_channels)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def _make_blocks(self) -> list[nn.Module]:
        config = self.config
        processors = make_attn_processors(config.attention, config.num_layers)
        if config.conditioning == "in_context":
            check_takes_more(processors)
        # One for all layers: they share its table.
        rotary = AxialRotary(config.attention_head_dim, self._native_grid) if config.position == "rope" else None
        return [
            BLOCKS[config.conditioning](
                config.num_attention_heads * config.attention_head_dim,
                config.num_attention_heads,
                config.attention_head_dim,
                mlp_ratio=config.mlp_ratio,
                mlp=config.mlp,
                dropout=config.dropout,
                attention_bias=config.attention_bias,
                qk_norm=config.qk_norm,
                norm_eps=config.norm_eps,
                mlp_norm_eps=config.norm_eps if config.mlp_norm_eps is None else config.mlp_norm_eps,
                processor=processor,
                rotary=rotary,
            )
            for processor in processors
        ]

    def embedders_of_blocks(self) -> list[Any]:
        """What holds `time_embedding` and `class_embedding`: this model for all blocks, or one of each block."""
        return [self] if self.config.embedders == "shared" else list(self.block_embedders)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> dict | tuple:
        """The config of a folder or Hub id (also a part of `from_pretrained`); arguments as in diffusers.

        One that is no config of such a model is a `ValueError` that names where it came from.
        """
        where = f"{pretrained_model_name_or_path}: {cls.config_name}"
        try:
            loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        except (RecursionError, ValueError) as error:
            raise ValueError(f"{where}: {str(error)[:150] or 'nested too deeply'}") from None
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict) or not isinstance(config.get("_class_name", ""), str):
            raise ValueError(f"{where} must hold an object with the name of a class")
        try:
            check_dit_config(config)
            if "attention" in config and "num_layers" in config:
                make_attn_processors(config["attention"], config["num_layers"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return loaded

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """The saved model; arguments as in diffusers. Files that lack some of its weights are a `ValueError`."""
        return whole_model(super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> "DiTModel":
        """A model of a size by name, for example `from_name("dit-s-2", num_classes=10, sample_size=16)`.

        The names are in `hf_dit.DIT_SIZES`; another one is a `ValueError`.
        """
        return cls(**dit_config(name, **overrides))

    @classmethod
    def from_diffusers(
        cls, model: DiTTransformer2DModel | str | os.PathLike, attention: str = "full", **kwargs: Any
    ) -> "DiTModel":
        """The model with the weights, and the outputs, of diffusers' DiT; in evaluation mode, sharing no memory.

        `model` is the stock model, or what its `from_pretrained` loads (`kwargs`: its arguments, as
        `subfolder="transformer"`). `hf_dit.models.convert.convert_diffusers` says which models are a `ValueError`.
        """
        stock: Any = model
        if isinstance(model, str | os.PathLike):
            stock = DiTTransformer2DModel.from_pretrained(model, **kwargs)
        elif kwargs:
            raise TypeError(f"{', '.join(kwargs)}: only for a model that is loaded, got a {type(model).__name__}")
        config, state_dict = convert_diffusers(dict(stock.config), stock.state_dict())
        return cls._from_converted({**config, "attention": attention}, state_dict)

    @classmethod
    def from_original(
        cls,
        state_dict: dict[str, Any] | str | os.PathLike,
        num_attention_heads: int | None = None,
        class_dropout_prob: float = 0.1,
        **overrides: Any,
    ) -> "DiTModel":
        """The model with the weights, and the outputs, of the paper's code; in evaluation mode, sharing no memory.

        `state_dict` holds the tensors of a checkpoint, or is the path of its file: `.safetensors`, or what
        `torch.save` wrote, read without running code. A checkpoint of the paper's train.py has its weights under
        `model` and, averaged, under `ema`: the averaged ones are taken, and a warning says so. `module.` before every
        name, of distributed training, is left out. Sizes are read from the shapes;
        `hf_dit.models.convert.convert_original` tells what `num_attention_heads` and `class_dropout_prob` are for and
        what is a `ValueError`. `overrides` are other arguments of the model, but for those that change its weights.
        """
        check_published_design(overrides)
        config, converted = convert_original(original_weights(state_dict), num_attention_heads, class_dropout_prob)
        return cls._from_converted({**config, **overrides}, converted)

    @classmethod
    def _from_converted(cls, config: dict, state_dict: dict[str, Tensor]) -> "DiTModel":
        with torch.device("meta"):
            model = cls(**config)
        model.load_state_dict(state_dict, assign=True)
        return model.eval()

    def reset_parameters(self) -> None:
        """Draw the initial weights: the output is zero and, with adaLN-Zero, every block is the identity."""
        draw_initial_weights(self)

    @property
    def out_channels(self) -> int:
        """Channels of the output: twice the input's where the model learns the variance."""
        return 2 * self.config.in_channels if self.config.learn_sigma else self.config.in_channels

    @property
    def null_class_id(self) -> int:
        """The label that stands for "no class" in classifier-free guidance; `ValueError` where the model has none."""
        if self.config.num_classes is None or self.config.class_dropout_prob == 0:
            raise ValueError(
                f"a model with num_classes={self.config.num_classes} and class_dropout_prob="
                f"{self.config.class_dropout_prob} has no null class"
            )
        return self.config.num_classes

    def set_attn_processor(self, processor: str | DiTAttnProcessor | dict[str, DiTAttnProcessor]) -> None:
        """Change what the layers attend to, and `config.attention` with it.

        `processor` is a spec as in `make_attn_processors` (`"na7*11,full"`), one processor for every layer, or a dict
        with exactly the keys of `attn_processors`, which is left as it is. With a processor that has no spec,
        `config.attention` becomes `None` and the model cannot be saved.
        """
        names = list(self.attn_processors)
        if isinstance(processor, str):
            processor = dict(zip(names, make_attn_processors(processor, len(names)), strict=True))
        elif isinstance(processor, dict):
            if processor.keys() != set(names):
                raise ValueError(
                    f"processor must have the keys {', '.join(names)}, got {', '.join(processor)}: the number of "
                    f"processors is {len(processor)}, that of attention layers {len(names)}"
                )
            processor = dict(processor)  # the library empties the dict it is given
        if self.config.conditioning == "in_context":
            check_takes_more(processor.values() if isinstance(processor, dict) else [processor])
        super().set_attn_processor(processor)
        self._register_attention()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write configuration and weights; arguments as in diffusers.

        A model that adapters were put into is a `ValueError`: its weights bear names that no model would load.
        """
        check_no_adapters(self)
        super().save_pretrained(*args, **kwargs)

    save_pretrained.__signature__ = signature(ModelMixin.save_pretrained)  # type: ignore[attr-defined]  # for pipelines

    def enable_cache(self, config: Any) -> None:
        """Reuse what blocks gave at an earlier step; `config` is one of diffusers', as `FirstBlockCacheConfig`.

        A cache that needs what this model does not have is a `ValueError`.
        """
        check_cache(config)
        register_cached_blocks(BLOCKS.values())
        super().enable_cache(config)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration (also a part of `save_pretrained`); `kwargs` as in diffusers.

        A layer whose processor has no spec is a `ValueError`: it would come back as something else.
        """
        processors = self.attn_processors
        for name, processor in processors.items():
            if format_attn_spec([processor]) is None:
                raise ValueError(
                    f"{name} is a {type(processor).__name__}, which has no spec, so it cannot be saved; "
                    "set_attn_processor with one of hf_dit first"
                )
        self._register_attention()
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _register_attention(self) -> None:
        # `from_config` takes the default of an argument listed here, whatever the configuration says.
        defaults = [name for name in self.config.get("_use_default_values", []) if name != "attention"]
        spec = format_attn_spec(list(self.attn_processors.values()))
        self.register_to_config(attention=spec, _use_default_values=defaults)

    def check_attention(
        self,
        *,
        height: int,
        width: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        training: bool = False,
    ) -> None:
        """Raise what the first layer that cannot run a (height, width) sample raises; else do nothing.

        `device` and `dtype` are the model's own where not given, the dtype under `torch.autocast` that of autocast.
        Processors that are not of this package are not asked. A local pattern that sees the whole grid is a warning.
        """
        device = self.device if device is None else torch.device(device)
        if dtype is None:
            dtype = self.dtype
            # Autocast leaves float64 alone, and does not know every type of device.
            autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
            if autocast and dtype != torch.float64:
                dtype = torch.get_autocast_dtype(device.type)
        grid = self._grid(height, width)
        for processor in self.attn_processors.values():
            if isinstance(processor, DiTAttnProcessor):
                if processor.sees_all(grid):  # Python shows a warning once
                    warnings.warn(f"attention {processor.spec!r} is full attention on {in_tokens(grid)}", stacklevel=2)
                processor.check(
                    device=device,
                    dtype=dtype,
                    grid=grid,
                    head_dim=self.config.attention_head_dim,
                    training=training,
                )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | int | float,
        class_labels: Tensor | None = None,
        force_drop_ids: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the noise (and the variance's interpolation) of noisy samples.

        Args:
            hidden_states: (B, in_channels, H, W) float; H and W divisible by `patch_size`, otherwise any.
            timestep: (B,) or one for all (tensor without axes, int, float); integers or fractions.
            class_labels: (B,) int64 in [0, num_classes), or `null_class_id`; `None` for an unconditional model. Their
                values are checked on the CPU only, as a check would make a GPU wait; its embedding asserts by itself.
            force_drop_ids: (B,) bool, the labels that become the null class. Where not given, each sample's label is
                dropped with `class_dropout_prob` in training mode, once for the whole model.
            return_dict: an output object, or a tuple of one tensor.

        Returns:
            `sample`, (B, out_channels, H, W).
        """
        if hidden_states.ndim != 4 or hidden_states.shape[1] != self.config.in_channels:
            raise ValueError(
                f"hidden_states must be (B, {self.config.in_channels}, H, W), got {tuple(hidden_states.shape)}"
            )
        batch, _, height, width = hidden_states.shape
        grid = self._grid(height, width)
        conditions = self._conditions(timestep, class_labels, force_drop_ids, hidden_states)
        first, layers = conditions[0], len(self.transformer_blocks)

        hidden_states = self.patch_embed(hidden_states).flatten(2).transpose(1, 2)  # (B, N, C)
        if self.config.position == "sincos":
            hidden_states = hidden_states + self._positions(grid, device=first.device, dtype=first.dtype)
        of_blocks: list[Tensor | None] = [*conditions] * (layers // len(conditions))
        if self.config.conditioning == "in_context":
            hidden_states, of_blocks = torch.cat([hidden_states, first], dim=1), [None] * layers
        for block, condition in zip(self.transformer_blocks, of_blocks, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                run: Any = self._gradient_checkpointing_func  # None in the base until it is enabled
                hidden_states = run(block, hidden_states, condition, grid)
            else:
                hidden_states = block(hidden_states, condition, grid)
        hidden_states = self.norm_out(hidden_states[:, : grid[0] * grid[1]])
        if self.modulation_out is not None:
            hidden_states = modulate(hidden_states, *self.modulation_out(first).chunk(2, dim=1))
        tokens = self.proj_out(hidden_states)

        patch = self.config.patch_size
        tokens = tokens.view(batch, *grid, patch, patch, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        sample = tokens.reshape(batch, self.out_channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.config.patch_size
        if height < 1 or width < 1 or height % patch or width % patch:
            raise ValueError(f"height and width must be multiples of patch_size={patch}, got {height} x {width}")
        return height // patch, width // patch

    def _conditions(
        self, timestep: Tensor | int | float, labels: Any, drop: Tensor | None, hidden_states: Tensor
    ) -> list[Tensor]:
        # -> for each embedder, what its blocks are given: see `condition_of`
        batch, dtype = hidden_states.shape[0], hidden_states.dtype
        # The sinusoid is float32 in every case: low precision cannot hold the angles.
        angles = self.time_proj(checked_timestep(timestep, batch, hidden_states.device)).to(dtype)
        if self.config.num_classes is not None:
            labels = self._labels(labels, drop, batch)
        elif labels is not None or drop is not None:
            raise ValueError("class_labels and force_drop_ids must be None: the model is unconditional")
        conditions = []
        for embedder in self.embedders_of_blocks():
            embedded = [embedder.time_embedding(angles)]
            if labels is not None:
                embedded.append(embedder.class_embedding(labels))
            conditions.append(condition_of(self.config.conditioning, embedded))
        return conditions

    def _labels(self, labels: Any, drop: Tensor | None, batch: int) -> Tensor:
        # (B,) int64 -> (B,) int64 with the dropped ones replaced by the null class, once for all blocks
        share = self.config.class_dropout_prob
        checked_class_labels(labels, drop, batch, label_rows(self.config.num_classes, share), share > 0)
        if drop is None and self.training and share:
            drop = torch.rand(batch, device=labels.device) < share
        return labels if drop is None else torch.where(drop, self.null_class_id, labels)
