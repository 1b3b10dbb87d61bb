#!/usr/bin/env python
"""Publish a metric as a Space; --help says how."""

from evaluate_metrics.commands.publish import run

if __name__ == "__main__":
    run()
