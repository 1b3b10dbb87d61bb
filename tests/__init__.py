"""Tests, in rooms as the packages have them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
