#!/usr/bin/env python
"""`hf-dit sample` as a script; --help says what it does."""

from hf_dit.commands.sample import run

if __name__ == "__main__":
    run()
