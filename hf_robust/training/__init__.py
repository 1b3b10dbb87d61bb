"""A Trainer for robust losses: arguments, trainer, diagnostics, recipes."""
