"""Stages on other machines, and what machines hand each other through the DVC remote."""
