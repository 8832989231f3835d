"""Writes and reads the arrays of data/packed and data/lungs."""
