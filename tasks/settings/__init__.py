"""The schema of params.yaml, and changes to it from presets and command lines."""
