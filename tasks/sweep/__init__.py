"""Sweeps: trials of experiments with other settings, what they scored on the Val split, and which is best."""
