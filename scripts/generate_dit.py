#!/usr/bin/env python
"""`hf-dit generate` as a script; --help says what it does."""

from hf_dit.commands.generate import run

if __name__ == "__main__":
    run()
