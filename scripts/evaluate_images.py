#!/usr/bin/env python
"""`evaluate-images` as a script; --help says what it does."""

from evaluate_metrics.commands.evaluate_images import run

if __name__ == "__main__":
    run()
