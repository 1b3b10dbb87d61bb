"""The commands of `hf-dit`, which scripts/*.py call too: flags, one call, what is printed."""
