"""Images in, distances out: what the metrics share, each stage a pure function."""
