"""Metric modules for `evaluate.load`; each folder is self-contained."""
