"""Scores of folders and data sets: sources, embedding in several processes, values, evaluation."""
