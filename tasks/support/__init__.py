"""The command line, progress, events and checkpoints, which change no result, and symptoms of a training."""
