"""Attention over tokens of a grid: tiles, local attention in plain PyTorch, and the processors that a model takes."""
