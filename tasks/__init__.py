"""The stages of dvc.yaml, each a command in a module, and the packages that they share."""
