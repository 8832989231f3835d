"""Writes the CLAIM checklist of a run from the document of the stage compare. Computes no statistic."""
