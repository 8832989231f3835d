"""Stages on other machines: their dispatch, and the data that machines exchange through the DVC remote."""
