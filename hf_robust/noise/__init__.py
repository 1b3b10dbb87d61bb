"""Label noise: drawn, observed from people, estimated from predictions.

A kind of one's own is a [`NoiseKind`] or [`ClassNoise`] that [`register_noise`] adds to the table.
"""

from .base import ClassNoise, NoiseKind, matrix_to
from .kinds import register_noise

__all__ = ["ClassNoise", "NoiseKind", "matrix_to", "register_noise"]
