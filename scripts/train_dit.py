#!/usr/bin/env python
"""`hf-dit train` as a script; --help says what it does."""

from hf_dit.commands.train import run

if __name__ == "__main__":
    run()
