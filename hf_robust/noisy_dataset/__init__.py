"""A data set of noisy configs: built, described, published."""
