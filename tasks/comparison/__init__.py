"""Computes what the report states: scores with intervals, differences, findings, and the images it shows."""
