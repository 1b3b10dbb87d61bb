#!/usr/bin/env python
"""`hf-robust plot-losses` as a script; --help says what it does."""

from hf_robust.commands.plot_losses import run

if __name__ == "__main__":
    run()
