"""Command line, progress, events and checkpoints, which change no result; symptoms of failed trainings."""
