"""From results to figures, tables and the model card."""
