"""How the stages of a checkout are run: the graph of dvc.yaml, the order, the slots of this machine."""
