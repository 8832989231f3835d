"""Renders the document of the stage compare as a page, a summary and metrics.json. Computes no statistic."""
