#!/usr/bin/env python
"""`hf-robust make-noisy-dataset` as a script; --help says what it does."""

from hf_robust.commands.make_noisy_dataset import run

if __name__ == "__main__":
    run()
