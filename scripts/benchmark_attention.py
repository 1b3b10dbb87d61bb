#!/usr/bin/env python
"""`hf-dit benchmark` as a script; --help says what it does."""

from hf_dit.commands.benchmark import run

if __name__ == "__main__":
    run()
