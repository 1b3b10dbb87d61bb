"""What a DiT is told beside its noisy sample: which step, which class."""

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from .attended import CrossAttentionBlock, InContextBlock
from .block import AdaLNBlock, DiTBlock
from .config import label_rows
from .parts import DiTBlockBase

TIMESTEP_CHANNELS = 256

# By the name of `conditioning`.
BLOCKS: dict[str, type[DiTBlockBase]] = {
    "adaln_zero": DiTBlock,
    "adaln": AdaLNBlock,
    "cross_attention": CrossAttentionBlock,
    "in_context": InContextBlock,
}


class ConditionEmbedder(nn.Module):
    """A timestep's and a label's embedding, those of one block where each has its own.

    Args:
        dim: width of the model.
        num_classes, class_dropout_prob: as in `DiTModel`.
    """

    def __init__(self, dim: int, num_classes: int | None, class_dropout_prob: float):
        super().__init__()
        self.time_embedding, self.class_embedding = make_embedders(dim, num_classes, class_dropout_prob)


def make_embedders(
    dim: int, num_classes: int | None, class_dropout_prob: float
) -> tuple[TimestepEmbedding, nn.Embedding | None]:
    """The embedder of timesteps and that of labels; None for the labels of an unconditional model."""
    time_embedding = TimestepEmbedding(TIMESTEP_CHANNELS, dim)
    rows = label_rows(num_classes, class_dropout_prob)
    return time_embedding, nn.Embedding(rows, dim) if rows else None


def condition_of(conditioning: str, embedded: Sequence[Tensor]) -> Tensor:
    """One or two embeddings, (B, C) each, as the blocks of a kind of conditioning take them.

    The sum after its SiLU, (B, C), for those that modulate; a sequence, (B, 1 or 2, C), for those that attend.
    """
    if conditioning in ("adaln_zero", "adaln"):
        total = embedded[0] if len(embedded) == 1 else embedded[0] + embedded[1]
        return nn.functional.silu(total)
    return torch.cat([embedding[:, None] for embedding in embedded], dim=1)


def checked_timestep(timestep: Tensor | int | float, batch: int, device: torch.device) -> Tensor:
    """One timestep for all, or (B,) -> (B,) of the same numbers on the device."""
    if isinstance(timestep, int | float):
        return torch.full((batch,), float(timestep), device=device)
    if not isinstance(timestep, Tensor):
        raise TypeError(f"timestep must be a tensor or a number, got {type(timestep).__name__}")
    if timestep.shape not in ((), (batch,)):
        raise ValueError(f"timestep must be one number or of shape ({batch},), got {tuple(timestep.shape)}")
    return timestep.to(device).expand(batch)


def checked_class_labels(labels: Tensor | None, drop: Tensor | None, batch: int, rows: int, has_null: bool) -> None:
    """Raise what is wrong with labels and `force_drop_ids` of a conditional model; `rows` are those of its table."""
    if labels is None:
        raise ValueError(
            "class_labels are missing: the model is conditional. "
            f"Its null_class_id {'is ' + str(rows - 1) if has_null else 'does not exist'}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"class_labels must be int64, got {labels.dtype}")
    if labels.shape != (batch,):
        raise ValueError(f"class_labels must have shape ({batch},), got {tuple(labels.shape)}")
    looks = labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch > 0
    if looks and not 0 <= int(labels.min()) <= int(labels.max()) < rows:
        raise ValueError(f"class_labels must lie in [0, {rows - 1}], got {labels.tolist()}")
    if drop is not None and (drop.dtype != torch.bool or drop.shape != (batch,)):
        raise ValueError(f"force_drop_ids must be ({batch},) bool, got {tuple(drop.shape)} {drop.dtype}")
