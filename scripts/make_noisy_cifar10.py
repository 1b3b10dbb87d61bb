#!/usr/bin/env python
"""`hf-robust make-dataset` as a script; --help says what it does."""

from hf_robust.commands.make_dataset import run

if __name__ == "__main__":
    run()
