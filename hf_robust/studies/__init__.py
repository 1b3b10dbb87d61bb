"""One run, sweeps over runs, label errors, and publishing a run."""
