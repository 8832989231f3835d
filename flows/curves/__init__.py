"""Training curves while they grow: read from history.csv, drawn for terminals, Prefect and TensorBoard."""
