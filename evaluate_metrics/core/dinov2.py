"""DINOv2 as FD-DINOv2 was published: the whole picture squeezed to 224 x 224, positions resized as its first code."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedModel

from .batches import placed

DINO_SIDE = 224
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What the first code adds to the side of the new grid of positions before it divides by that of the old one.
GRID_OFFSET = 0.1
DINO_WORDS = (
    f"whole picture, Pillow bicubic to {DINO_SIDE} x {DINO_SIDE}; x / 255, mean {DINO_MEAN}, "
    f"standard deviation {DINO_STD}; positions bicubic by the factor (side + {GRID_OFFSET}) / side, as "
    "facebookresearch/dinov2"
)


def squeezed(image: Image.Image, out: torch.Tensor | None = None) -> torch.Tensor:  # RGB -> (3, 224, 224) float32
    """The picture as Stein et al. 2023 gave it to DINOv2: its proportions are not kept, nothing is cut off."""
    small = image.resize((DINO_SIDE, DINO_SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    return placed((pixels - torch.tensor(DINO_MEAN)[:, None, None]) / torch.tensor(DINO_STD)[:, None, None], out)


def published_preparation(model: PreTrainedModel, processor: Any = None) -> tuple[str, Callable]:
    """What happens to an image before the model, in words and as a function; gives the model its positions for it.

    Those of a checkpoint are a grid for larger pictures. The first code of DINOv2 resizes them by the factor
    (16 + 0.1) / 37, transformers to 16 x 16, which differs by some percent: here they are resized once, as there. The
    checkpoint's own processor, which crops, has no say.

    Raises:
        ValueError: it is no DINOv2 without registers.
    """
    if model.config.model_type != "dinov2":
        raise ValueError(f"the published preparation is of dinov2 models without registers, got {model.name_or_path}")
    embeddings: Any = model.embeddings
    side = DINO_SIDE // model.config.patch_size
    with torch.no_grad():
        embeddings.position_embeddings = torch.nn.Parameter(
            resized_positions(embeddings.position_embeddings.detach(), side), requires_grad=False
        )
    return DINO_WORDS, squeezed


def resized_positions(positions: torch.Tensor, side: int) -> torch.Tensor:  # (1, 1 + g^2, d) -> (1, 1 + side^2, d)
    """Positions of a grid of `side` x `side` patches, as `interpolate_pos_encoding` of facebookresearch/dinov2."""
    own, grid = positions[:, :1], positions[:, 1:]
    old = round(grid.shape[1] ** 0.5)
    if old == side:
        return positions
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, scale_factor=(side + GRID_OFFSET) / old, mode="bicubic", antialias=False)
    return torch.cat((own, grid.permute(0, 2, 3, 1).flatten(1, 2)), dim=1)
