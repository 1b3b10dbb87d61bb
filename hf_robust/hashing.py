"""Random bits that depend on integers alone: no generator's state, the same on every device and process."""

import torch


def mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function (Steele et al. 2014) on int64, top bit cleared: the same bits on every device."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return (x ^ _shift(x, 31)) & 0x7FFFFFFFFFFFFFFF


def as_int64(seed: int) -> torch.Tensor:
    """A Python int, which may be larger, as an int64 scalar."""
    return torch.tensor(seed & 0x7FFFFFFFFFFFFFFF)


def _signed(constant: int) -> int:
    return constant - (1 << 64)  # all three constants have their top bit set: the same 64 bits as an int64


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where int64's own shift keeps the sign
