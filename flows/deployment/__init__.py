"""Deployments on a Prefect server, and the processes that `make serve` and `make worker` start."""
