"""The schema of params.yaml, and the changes that presets and command lines make to it."""
