"""The commands of `hf-robust`, which scripts/*.py call too: flags, one call, what is printed."""
