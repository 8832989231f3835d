"""The command line, progress and checkpoints, which change no result, and symptoms of a training."""
