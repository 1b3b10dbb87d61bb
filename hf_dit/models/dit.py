"""Diffusion Transformers (DiT): Peebles and Xie, "Scalable Diffusion Models with Transformers", ICCV 2023."""

import math
import os
import warnings
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from ..attention.base import DiTAttnProcessor
from ..attention.spec import format_attn_spec, in_tokens, make_attn_processors
from .block import DiTBlock, modulate
from .config import check_dit_config, plain
from .convert import convert_diffusers, convert_original
from .positions import position_embedding
from .sizes import dit_config, height_and_width

TIMESTEP_CHANNELS = 256


class DiTModel(ModelMixin, ConfigMixin, AttentionMixin):
    """The DiT noise predictor with attention that can be swapped.

    One timestep embedder and one label embedder condition every block and the output, as in the paper. The defaults
    are DiT-XL/2 for the latents of 256 x 256 images; `from_name` knows the other sizes.

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

    Arguments outside their range are a `ValueError`.
    """

    _supports_gradient_checkpointing = True
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
    ):
        super().__init__()
        check_dit_config(self.config)
        if changed := {name: new for name, value in self.config.items() if (new := plain(value)) is not value}:
            self.register_to_config(**changed)
        dim = num_attention_heads * attention_head_dim
        self._native_grid = self._grid(*height_and_width(sample_size))
        self._positions: tuple[tuple, Tensor] | None = None  # the last key and its position embedding

        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.time_proj = Timesteps(TIMESTEP_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=downscale_freq_shift)
        self.time_embedding = TimestepEmbedding(TIMESTEP_CHANNELS, dim)
        self.class_embedding = None
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + (class_dropout_prob > 0), dim)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(
                dim,
                num_attention_heads,
                attention_head_dim,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                attention_bias=attention_bias,
                norm_eps=norm_eps,
                mlp_norm_eps=norm_eps if mlp_norm_eps is None else mlp_norm_eps,
                processor=processor,
            )
            for processor in make_attn_processors(attention, num_layers)
        )
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.norm_out = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, patch_size**2 * self.out_channels)
        self.gradient_checkpointing = False
        self.reset_parameters()

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
        state_dict: dict[str, Tensor],
        num_attention_heads: int | None = None,
        class_dropout_prob: float = 0.1,
        **overrides: Any,
    ) -> "DiTModel":
        """The model with the weights, and the outputs, of the paper's code; in evaluation mode, sharing no memory.

        `state_dict` holds the tensors of a checkpoint, as `torch.load(file, weights_only=True)` reads them. Sizes are
        read from their shapes; `hf_dit.models.convert.convert_original` tells what `num_attention_heads` and
        `class_dropout_prob` are for and what is a `ValueError`. `overrides` are other arguments of the model.
        """
        config, state_dict = convert_original(state_dict, num_attention_heads, class_dropout_prob)
        return cls._from_converted({**config, **overrides}, state_dict)

    @classmethod
    def _from_converted(cls, config: dict, state_dict: dict[str, Tensor]) -> "DiTModel":
        with torch.device("meta"):
            model = cls(**config)
        model.load_state_dict(state_dict, assign=True)
        return model.eval()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the paper's initial weights (adaLN-Zero): every block is the identity and the output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(len(self.patch_embed.weight), -1))
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.time_embedding.linear_1.weight, std=0.02)
        nn.init.normal_(self.time_embedding.linear_2.weight, std=0.02)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        blocks: Any = self.transformer_blocks
        for block in blocks:
            for projection in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
                # The paper's code draws the three as one (3 C, C) matrix: bound sqrt(6 / 4C), not sqrt(6 / 2C).
                nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.modulation_out.weight)
        nn.init.zeros_(self.proj_out.weight)

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
        super().set_attn_processor(processor)
        self._register_attention()

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
        condition = self._condition(timestep, class_labels, force_drop_ids, hidden_states)

        hidden_states = self.patch_embed(hidden_states).flatten(2).transpose(1, 2)  # (B, N, C)
        hidden_states = hidden_states + self._position_embedding(grid, condition.device, condition.dtype)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                run: Any = self._gradient_checkpointing_func  # None in the base until it is enabled
                hidden_states = run(block, hidden_states, condition, grid)
            else:
                hidden_states = block(hidden_states, condition, grid)
        shift, scale = self.modulation_out(condition).chunk(2, dim=1)
        tokens = self.proj_out(modulate(self.norm_out(hidden_states), shift, scale))

        patch = self.config.patch_size
        tokens = tokens.view(batch, *grid, patch, patch, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        sample = tokens.reshape(batch, self.out_channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.config.patch_size
        if height < 1 or width < 1 or height % patch or width % patch:
            raise ValueError(f"height and width must be multiples of patch_size={patch}, got {height} x {width}")
        return height // patch, width // patch

    def _position_embedding(self, grid: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
        native, dim = self._native_grid, self.patch_embed.out_channels
        if torch.compiler.is_compiling():  # a graph must not keep a tensor that it made; it is cheap to make again
            return position_embedding(grid, native, dim, device=device, dtype=dtype)
        # Not a buffer: that would lose digits in `.to(bfloat16)` and come back empty from the meta device.
        key = (grid, device, dtype)
        positions = self._positions  # another thread may set it to those of another grid meanwhile
        if positions is None or positions[0] != key:
            self._positions = positions = (key, position_embedding(grid, native, dim, device=device, dtype=dtype))
        return positions[1]

    def _condition(
        self, timestep: Tensor | int | float, labels: Tensor | None, drop: Tensor | None, hidden_states: Tensor
    ) -> Tensor:
        # -> (B, C), after the SiLU that comes before every modulation
        batch, device, dtype = hidden_states.shape[0], hidden_states.device, hidden_states.dtype
        if isinstance(timestep, int | float):
            timestep = torch.full((batch,), float(timestep), device=device)
        elif not isinstance(timestep, Tensor):
            raise TypeError(f"timestep must be a tensor or a number, got {type(timestep).__name__}")
        elif timestep.shape not in ((), (batch,)):
            raise ValueError(f"timestep must be one number or of shape ({batch},), got {tuple(timestep.shape)}")
        # The sinusoid is float32 in every case: low precision cannot hold the angles.
        condition = self.time_embedding(self.time_proj(timestep.to(device).expand(batch)).to(dtype))
        if self.class_embedding is not None:
            condition = condition + self.class_embedding(
                self._labels(labels, drop, batch, self.class_embedding.num_embeddings)
            )
        elif labels is not None or drop is not None:
            raise ValueError("class_labels and force_drop_ids must be None: the model is unconditional")
        return nn.functional.silu(condition)

    def _labels(self, labels: Tensor | None, drop: Tensor | None, batch: int, rows: int) -> Tensor:
        # (B,) int64 -> (B,) int64 with the dropped ones replaced by the null class; rows: of the embedding
        if labels is None:
            raise ValueError(
                "class_labels are missing: the model is conditional. "
                f"Its null_class_id {'is ' + str(rows - 1) if self.config.class_dropout_prob else 'does not exist'}"
            )
        if labels.dtype != torch.int64:
            raise TypeError(f"class_labels must be int64, got {labels.dtype}")
        if labels.shape != (batch,):
            raise ValueError(f"class_labels must have shape ({batch},), got {tuple(labels.shape)}")
        looks = labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch > 0
        if looks and not 0 <= int(labels.min()) <= int(labels.max()) < rows:
            raise ValueError(f"class_labels must lie in [0, {rows - 1}], got {labels.tolist()}")
        if drop is not None:
            if drop.dtype != torch.bool or drop.shape != (batch,):
                raise ValueError(f"force_drop_ids must be ({batch},) bool, got {tuple(drop.shape)} {drop.dtype}")
        elif self.training and self.config.class_dropout_prob:
            drop = torch.rand(batch, device=labels.device) < self.config.class_dropout_prob
        return labels if drop is None else torch.where(drop, self.null_class_id, labels)
