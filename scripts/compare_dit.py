#!/usr/bin/env python
"""`hf-dit compare` as a script; --help says what it does."""

from hf_dit.commands.compare import run

if __name__ == "__main__":
    run()
