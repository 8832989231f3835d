"""The engine of a run: reads the stage graph from dvc.yaml, orders the stages, and runs them in slots."""
