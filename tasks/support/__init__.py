"""The command line, progress, checkpoints and what a log says: nothing here changes a result."""
