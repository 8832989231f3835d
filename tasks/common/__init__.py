"""Shared by all stages: the raw dataset, atomic file writing, CPU cores."""
