#!/usr/bin/env python
"""`hf-robust train` as a script; --help says what it does."""

from hf_robust.commands.train import run

if __name__ == "__main__":
    run()
