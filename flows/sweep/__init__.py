"""Sweeps: one run that trains experiments with many settings, and says which are best on the Val split."""
