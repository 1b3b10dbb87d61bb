"""The commands of the metrics, which scripts/*.py call: flags, one call, what is printed."""
