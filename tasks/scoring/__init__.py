"""Computes the scores of an image from its masks, and confidence intervals from the scores."""
