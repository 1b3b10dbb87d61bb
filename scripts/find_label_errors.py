#!/usr/bin/env python
"""`hf-robust find-label-errors` as a script; --help says what it does."""

from hf_robust.commands.find_label_errors import run

if __name__ == "__main__":
    run()
