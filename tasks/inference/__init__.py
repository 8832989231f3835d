"""Predicts probabilities from images, and masks from probabilities."""
