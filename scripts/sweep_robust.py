#!/usr/bin/env python
"""`hf-robust sweep` as a script; --help says what it does."""

from hf_robust.commands.sweep import run

if __name__ == "__main__":
    run()
